"""Re-initialized copies: nothing of the weights is left, the seed decides, torch's random state stays."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from kernelmem.compression.accounting.reinitialize import reinitialize


class Custom(nn.Module):
    """A module with a parameter of its own, a buffer, a constant, and layers."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(5, 4) * 3 + 1)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.randn(4))
        self.norm = nn.BatchNorm1d(4)
        self.layer = weight_norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.layer(self.norm((x - self.mean) * self.scale + self.own.mean(0)))


class Argument(nn.Linear):
    def reset_parameters(self, gain=None):
        if gain is None and hasattr(self, "built"):
            raise TypeError("needs a gain")
        super().reset_parameters()


def trained(model):
    """The model after random changes of all parameters but scales, and of running statistics."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "scale":
                parameter.add_(torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.add_(1.0)
    return model


@pytest.mark.parametrize(
    "make",
    [
        Custom,
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 2)),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.GRU(4, 3)),
        lambda: Argument(4, 3),
    ],
)
def test_no_parameter_is_left_and_the_seed_decides(make):
    model = trained(make())
    if isinstance(model, Argument):
        model.built = True
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(False)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first, second, other = (reinitialize(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    differs = False
    for name, parameter in first.module.named_parameters():
        assert torch.equal(parameter, second.module.get_parameter(name))
        differs |= not torch.equal(parameter, other.module.get_parameter(name))
        if name != "scale":
            assert not bool((parameter == before[name]).any()), name
    assert differs
    assert not first.module.training


def test_statistics_are_reset_and_other_buffers_kept():
    model = trained(Custom())
    result = reinitialize(model, 0)
    copy = result.module
    assert torch.equal(copy.norm.running_mean, torch.zeros(4))
    assert torch.equal(copy.mean, model.mean)
    assert torch.equal(copy.scale, torch.ones(4))
    assert float(copy.own.detach().std()) == pytest.approx(float(model.own.detach().std()), rel=0.6)
    assert "drawn with equal mean" in result.note


def test_a_module_initializes_its_layers_itself():
    class Zeros(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.constant_(self.layer.weight, 0.25)

    assert torch.equal(reinitialize(trained(Zeros()), 0).module.layer.weight, torch.full((2, 3), 0.25))
