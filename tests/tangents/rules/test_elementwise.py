"""kernelmem.tangents.rules.elementwise: closed forms of sums, products and expansions; PReLU."""

import pytest
import torch
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Shift


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_free_parameter_counts():
    """f = x + b: K = 1 for every pair and output."""
    x = rows(4, 3)
    assert_close(ntk(Shift(3).double(), x), torch.full((4, 4), 3.0), 1e-14, 3.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("C", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 4])
def test_prelu_where_sizes_agree_and_where_not(n, C, size):
    """torch.func's rule for the weight's gradient gives other values, or none, as the sizes meet."""
    assert_exact(with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.PReLU(size), nn.Linear(4, C))), rows(n, 4))


class Elementwise(nn.Module):
    """One parameter in one operation with the rows."""

    def __init__(self, run, shape):
        super().__init__()
        self.p, self.run = nn.Parameter(torch.zeros(shape)), run

    def forward(self, x):
        return self.run(x, self.p).reshape(len(x), -1)


OPERATIONS = {
    "x + p": (lambda x, p: x + p, lambda x: torch.ones_like(x)),
    "x - p": (lambda x, p: x - p, lambda x: -torch.ones_like(x)),
    "p - x": (lambda x, p: p - x, lambda x: torch.ones_like(x)),
    "x * p": (lambda x, p: x * p, lambda x: x),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 3, 4)], ids=str)
def test_sums_and_products_by_hand(name, shape):
    """∂f/∂p is ±1 or x, summed over the entries that share a parameter."""
    run, slope = OPERATIONS[name]
    x = rows(5, 3, 4)
    J = torch.zeros(5, 12, max(1, torch.Size(shape).numel()), dtype=torch.float64)
    index = torch.arange(J.shape[2]).reshape(shape).expand(1, 3, 4).flatten()
    J[:, torch.arange(12), index] = slope(x).flatten(1)
    for outputs in ("trace", "full"):
        found = ntk(with_random_weights(Elementwise(run, shape)), x, outputs=outputs)
        assert_close(found, reference.kernel_of(J, J, outputs), 1e-13, scale_of(J))


@pytest.mark.parametrize(
    "run",
    [lambda x, p: torch.cat([p.expand(len(x), 1, 4), x], 1), lambda x, p: torch.cat([p.repeat(len(x), 1, 1), x], 1)],
    ids=["expand", "repeat"],
)
def test_a_class_token_has_the_kernel_of_a_constant(run):
    expected = torch.full((5, 5), 4.0, dtype=torch.float64)
    assert_close(ntk(with_random_weights(Elementwise(run, (1, 1, 4))), rows(5, 3, 4)), expected, 1e-14, 4.0)
