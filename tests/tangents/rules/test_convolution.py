"""kernelmem.tangents.rules.convolution: closed form of grouped convolutions, few positions, patches."""

import pytest
import torch
from torch import nn

from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact
from kernelmem.testing.modules import Apply


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolution_by_hand(groups):
    """A convolution with one position and no readout is a block-diagonal linear map."""
    model, x = with_random_weights(nn.Sequential(nn.Conv1d(4, 4, 3, groups=groups), nn.Flatten())), rows(3, 4, 3)
    parts = x.reshape(3, groups, -1)
    inner = torch.einsum("ngi,mgi->nmg", parts, parts).repeat_interleave(4 // groups, dim=2) + 1
    assert_close(ntk(model, x, outputs="diagonal"), inner, 1e-13, float(inner.max()))
    assert_close(ntk(model, x), inner.sum(-1), 1e-13, float(inner.max()))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_signals_of_few_positions_from_sequences(length, n):
    """Strides that torch.func's own convolution gradient does not take in float64, from two rows on."""
    turn = Apply(lambda x: x.transpose(1, 2))
    model = nn.Sequential(turn, nn.Conv1d(3, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * length, 2))
    assert_exact(with_random_weights(model), rows(n, length, 3))


def test_factors_give_the_dense_jacobian(assert_factors):
    model, x = (
        with_random_weights(
            nn.Sequential(
                nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 2)
            )
        ),
        rows(3, 4, 3, 6),
    )
    assert_factors(model, x, "0.weight")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_dimension_padding_and_dilation(dims, padding, dilation):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = nn.Sequential(kind(2, 3, 3, padding=padding, dilation=dilation), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    x = rows(2, 2, *(5,) * dims)
    with torch.no_grad():
        model.double()(x)
    assert_exact(with_random_weights(model), x)
