"""Hypothesis strategies: random networks together with rows that they take."""

import itertools
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["Case", "linear_networks"]

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)


@dataclass(frozen=True)
class Case:
    """A network with two sets of rows."""

    model: nn.Module
    x: Tensor  # (n, ...)
    y: Tensor  # (m, ...)
    name: str

    def __repr__(self) -> str:
        return f"Case({self.name}, x {tuple(self.x.shape)}, y {tuple(self.y.shape)})"


@st.composite
def linear_networks(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64) -> Case:
    """Draw a network of Linear layers and activations: widths, depth, biases, nesting, in-place activations.

    Weights and rows come from a drawn seed, so that a failing example is replayed to the bit.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers.append(nn.Linear(fan_in, fan_out, bias=draw(st.booleans())))
        activation = draw(st.sampled_from(ACTIVATIONS))
        layers.append(nn.ReLU(inplace=True) if draw(st.booleans()) else activation())
    if draw(st.booleans()):
        layers = [nn.Sequential(*layers[:2]), *layers[2:]]
    model = nn.Sequential(*layers[:-1] if len(layers) > 1 else layers).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    x = torch.randn(n, widths[0], generator=generator, dtype=dtype)
    y = torch.randn(m, widths[0], generator=generator, dtype=dtype)
    return Case(model, x, y, "-".join(map(str, widths)))
