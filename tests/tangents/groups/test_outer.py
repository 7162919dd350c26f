"""kernelmem.tangents.groups.outer: each form of contraction equals the kernel from the dense Jacobian."""

import pytest
import torch
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.groups.outer import ExplicitGroup, TokenGroup, VectorGroup
from kernelmem.tangents.groups.readout import ChannelGroup, ReadoutGroup
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, scale_of
from kernelmem.testing.modules import Apply


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 3, 2),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


CASES = {
    "vector": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        (6,),
        VectorGroup,
        ("trace", "diagonal", "full", "pseudo"),
    ),
    "token": (
        lambda: nn.Sequential(nn.Linear(48, 48), nn.Tanh(), Apply(lambda h: h[:, 0] * h[:, 1]), nn.Linear(48, 3)),
        (2, 48),
        TokenGroup,
        ("trace", "pseudo"),
    ),
    "explicit": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)),
        (2, 4, 4),
        ExplicitGroup,
        ("trace", "diagonal", "full", "pseudo"),
    ),
    "readout": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        (6,),
        ReadoutGroup,
        ("trace", "diagonal", "full"),
    ),
    "channels": (convolutional, (2, 4, 4), ChannelGroup, ("full",)),
}


@pytest.mark.parametrize(("name", "outputs"), [(name, outputs) for name, case in CASES.items() for outputs in case[3]])
def test_each_form_equals_the_definition(name, outputs, blocks_of):
    make, shape, form, _ = CASES[name]
    model, x = with_random_weights(make()), rows(5, *shape)
    blocks = blocks_of(model, x, outputs)
    assert any(type(group) is form for group, _, _ in blocks)
    for group, block, symmetric in blocks:
        J = reference.jacobian(model, x, parameters=list(group.names))
        expected = reference.kernel_of(J, J, outputs)
        if symmetric:  # only the upper half is filled in
            mask = torch.ones(5, 5, dtype=torch.bool).triu()
            block, expected = block[mask], expected[mask]
        assert_close(block, expected, 1e-12, scale_of(J), f"{name}, {group.names}")


def test_a_factored_layer_is_swept_once(blocks_of):
    model, x = with_random_weights(convolutional()), rows(5, 2, 4, 4)
    groups = {group.names[0]: group for group, _, _ in blocks_of(model, x, "trace")}
    assert groups["2.weight"].factored
    assert groups["2.weight"].all_directions
    assert groups["2.weight"].numbers_per_row(3) == groups["2.weight"].numbers_per_row(1)


@pytest.mark.parametrize("selected", [["0.weight"], ["0.bias"], ["0.weight", "0.bias"]], ids=str)
def test_weight_or_bias_alone(selected):
    model, x = with_random_weights(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))), rows(5, 6)
    for outputs in ("trace", "diagonal", "full"):
        J = reference.jacobian(model, x, parameters=selected)
        expected = reference.kernel_of(J, J, outputs)
        assert_close(ntk(model, x, outputs=outputs, parameters=selected), expected, 1e-12, scale_of(J))
