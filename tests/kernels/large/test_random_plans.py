"""Random plans: whatever the network, the sizes, the memory and the way of computing, the kernel is the dense one."""

import copy
import random
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kernelmem as km
from kernelmem.kernels import reference
from tests.kernels.large.networks import Network
from tests.profiles import examples

MEMORY = ["1GiB", "64MiB", "1MiB", "100KiB", "30KiB", "12KiB", "6KiB"]


def random_network(rng):
    """Return a network and the shape of an example; without normalization, which amplifies rounding where a variance is small."""
    width, kind = rng.randint(1, 6), rng.choice(["mlp", "conv", "mixed"])
    activation = rng.choice([nn.Tanh, nn.ReLU, nn.GELU])
    bias = rng.random() < 0.7
    if kind == "mixed":
        return Network(), (2, 6)
    if kind == "conv":
        channels = rng.randint(1, 3)
        conv = nn.Conv2d(channels, width, 3, stride=rng.randint(1, 2), padding=1, bias=bias)
        head = nn.Linear(width, rng.randint(1, 3))
        return nn.Sequential(conv, activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), (channels, 4, 4)
    n_inputs = rng.randint(1, 5)
    sizes = [n_inputs, *(rng.randint(1, 6) for _ in range(rng.randint(1, 3)))]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, bias), activation())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], rng.randint(1, 4))), (n_inputs,)


def check_random_plan(seed):
    """Compute a random kernel with a store and in memory; return False if the memory was too small, which is refused."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = rng.choice([torch.float32, torch.float64])
    model, shape = random_network(rng)
    model.to(dtype)
    x = torch.randn(rng.randint(1, 9), *shape, dtype=dtype)
    y = torch.randn(rng.randint(1, 6), *shape, dtype=dtype) if rng.random() < 0.4 else None
    outputs, memory = rng.choice(["trace", "trace", "pseudo"]), rng.choice(MEMORY)
    options = km.StoreOptions(tile=rng.choice([None, *range(1, len(x) + 2)]), verify=rng.random() < 0.3)
    exact = reference.ntk(copy.deepcopy(model).double(), x.double(), None if y is None else y.double(), outputs=outputs)
    tolerance = 16 * torch.finfo(dtype).eps * float(exact.abs().max())
    try:
        in_memory = km.ntk(model, x, y, outputs=outputs, memory=memory, verify=options.verify)
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"outputs": outputs, "memory": memory, "options": options, "progress": False}
            with km.ntk_store(model, x, y, path=Path(folder) / "k", **arguments) as store:
                stored = store.rows(0, len(x))
    except km.InputError as error:
        assert "memory" in error.hint, error  # noqa: PT017
        return False
    for found in (in_memory, stored):
        assert float((found - exact).abs().max()) <= tolerance, seed
    return True


@examples(0.5)
@given(st.integers(0, 2**31))
def test_a_random_plan_gives_the_dense_kernel(seed):
    check_random_plan(seed)


@pytest.mark.soak
def test_ten_thousand_random_plans():
    start = random.SystemRandom().randrange(2**30)
    assert sum(check_random_plan(start + k) for k in range(10_000)) > 5000
