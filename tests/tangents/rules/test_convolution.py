"""kernelmem.tangents.rules.convolution: closed form of grouped convolutions, few positions, patches."""

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
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


TRANSPOSED = {
    "plain": {},
    "stride": {"stride": 2},
    "stride larger than the kernel": {"stride": 4},
    "padding": {"stride": 2, "padding": 1},
    "output padding": {"stride": 3, "padding": 1, "output_padding": 2},
    "dilation": {"dilation": 2, "padding": 2},
    "dilation, output padding": {"dilation": 2, "stride": 2, "output_padding": 1},
    "groups": {"stride": 2, "groups": 2},
    "depthwise": {"groups": 4, "padding": 1},
    "no bias": {"stride": 2, "bias": False},
}


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
@pytest.mark.parametrize("dims", [1, 2])
def test_transposed_convolutions(options, dims, assert_covered):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
    model = nn.Sequential(nn.Conv1d(4, 4, 1) if dims == 1 else nn.Conv2d(4, 4, 1), nn.Tanh())
    model.extend([kind(4, 4, 3, **TRANSPOSED[options]), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)])
    x = rows(3, 4, *(3, 2)[:dims])
    model.double()(x)
    assert_covered(model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_transposed_convolution_of_volumes(dtype, assert_covered):
    layer = nn.ConvTranspose3d(2, 4, (2, 3, 1), stride=(1, 2, 2), padding=(0, 1, 0), groups=2)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    x = rows(3, 2, 2, 2, 2)
    model.double()(x)
    assert_covered(model, x, dtype)


@pytest.mark.parametrize("selected", [["0.weight"], ["0.bias"], ["0.weight", "0.bias"]], ids=str)
@pytest.mark.parametrize("frames", [1, 2])
def test_weight_or_bias_of_a_transposed_convolution_alone(selected, frames):
    """Frames of an example on the batch axis, and parts of the parameters."""
    layer = nn.ConvTranspose2d(2, 3, 2, stride=2)
    split = Apply(lambda x: x.reshape(-1, 2, 2, 2))
    join = Apply(lambda h: h.tanh().reshape(len(h) // frames, -1))
    model = with_random_weights(nn.Sequential(layer, nn.Tanh()))
    model = nn.Sequential(split, model[0], join)
    names = [name.replace("0.", "1.") for name in selected]
    assert_exact(model, rows(3, frames, 2, 2, 2), parameters=names)


def test_a_transposed_convolution_by_hand():
    """One input position and no overlap: f = x · W + b, K = (output positions of W) · x·x' + positions of b."""
    model, x = with_random_weights(nn.Sequential(nn.ConvTranspose1d(3, 2, 4), nn.Flatten())), rows(5, 3, 1)
    inner = x[:, :, 0] @ x[:, :, 0].T
    assert_close(ntk(model, x), 8 * inner + 8, 1e-13, 8 * float(inner.max()) + 8)


def test_factors_of_a_transposed_convolution(engine_of):
    """The sizes that the plan counts with are those of the factors."""
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, (2, 3), stride=2, groups=2), nn.Tanh(), nn.Flatten())
    model, x = with_random_weights(model), rows(3, 4, 2, 2)
    captured = engine_of(model, x, "pseudo").capture(as_rows(x).slice(0, 3), 3)
    use = next(use for use in captured.uses if use.names == {"weight": "0.weight"})
    shape, gradient = use.rule.outer_shape(use, 3), torch.zeros(use.output_shape, dtype=torch.float64)
    a, g = (
        use.rule.activations(use, 3, ones=False),
        use.rule.output_gradients(use, use.rule.arrange(use, gradient).unsqueeze(-2)),
    )
    assert a.shape == (3, shape.groups, shape.positions, shape.fan_in) == (3, 2, 4, 2)
    assert g.shape == (3, 2, 4, 1, shape.fan_out) == (3, 2, 4, 1, 18)
