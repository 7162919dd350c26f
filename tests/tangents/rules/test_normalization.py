"""kernelmem.tangents.rules.normalization: closed forms, and normalized images against elementary operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact
from kernelmem.testing.modules import Apply


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS = {
    "channels": lambda h: h.square().flatten(1),  # the control, which torch has right
    "tokens": lambda h: h.flatten(2).transpose(1, 2).square().flatten(1),
    "one token": lambda h: h.flatten(2).transpose(1, 2)[:, 0],
}


def by_arithmetic(norm):
    """The same normalization from elementary operations."""

    def batch_norm(h):
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        return (h - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias.detach()[:, None, None]

    def instance_norm(h):
        centered = h - h.mean((2, 3), keepdim=True)
        return centered / (centered.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()

    return Apply(batch_norm if isinstance(norm, nn.BatchNorm2d) else instance_norm)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("way", TOKENS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_normalized_images_that_are_read_as_tokens(norm, way, n, by_autograd):
    """Torch's CPU backward of batch_norm is wrong for a batch of one whose output gradient is strided as channels-last.

    A batch of one is what a row-by-row definition runs, and what instance_norm makes of every batch.
    """
    conv = nn.Conv2d(2, 3, 2)
    model = with_random_weights(nn.Sequential(conv, norm, Apply(TOKENS[way])))
    same = with_random_weights(nn.Sequential(conv, by_arithmetic(norm), Apply(TOKENS[way])))
    with_random_weights(model)  # both share the layers: the same draw again
    x, names = rows(n, 2, 4, 4), ["0.weight", "0.bias"]
    expected = by_autograd(same, x)
    scale = float(expected.diagonal().max())
    assert_close(reference.ntk(model, x, parameters=names), expected, 1e-10, scale, "the reference")
    assert_close(ntk(model, x, parameters=names), expected, 1e-10, scale)


def test_layer_norm_by_hand():
    """f = γ ∘ x̂ + β: the kernel of output c is x̂_c x̂'_c + 1."""
    x = rows(4, 5)
    normalized = F.layer_norm(x, (5,))
    expected = normalized[:, None] * normalized[None] + 1
    assert_close(
        ntk(with_random_weights(nn.LayerNorm(5)), x, outputs="diagonal"), expected, 1e-13, float(expected.max())
    )


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(3), nn.GroupNorm(3, 3), nn.InstanceNorm1d(3, affine=True), nn.LayerNorm((3, 4)), nn.RMSNorm(4)],
    ids=lambda m: type(m).__name__,
)
def test_every_normalization(norm):
    assert_exact(with_random_weights(nn.Sequential(norm, nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))), rows(3, 3, 4))
