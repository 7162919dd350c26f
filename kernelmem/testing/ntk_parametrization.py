"""Finite networks in NTK parametrization, whose tangent kernel tends to the infinite-width kernel."""

import itertools
import math

import torch
from torch import Tensor, nn


class Erf(nn.Module):
    """The error function, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Return erf(x)."""
        return torch.erf(x)


class NTKLinear(nn.Module):
    """Linear layer y = √(weight_var / in) W x + √bias_var β with ``in`` inputs, in NTK parametrization.

    The entries of W and β are drawn from N(0, 1). The two factors are constants, not part of the parameters.
    """

    def __init__(
        self, inputs: int, outputs: int, *, weight_var: float, bias_var: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator, dtype=torch.float64))
        self.scales = math.sqrt(weight_var / inputs), math.sqrt(bias_var)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (n, in) to (n, out), for n examples."""
        return x @ self.weight.T * self.scales[0] + self.bias * self.scales[1]


def ntk_mlp(
    inputs: int,
    width: int,
    outputs: int = 1,
    *,
    depth: int,
    activation: str = "relu",
    weight_var: float = 2.0,
    bias_var: float = 0.0,
    seed: int,
) -> nn.Sequential:
    """Build a fully connected network of ``depth`` hidden layers of ``width`` in NTK parametrization, in float64.

    As ``width`` grows, ``km.ntk(model, x)`` tends to ``outputs * km.infinite_ntk(x, depth=depth, ...)``; the
    difference falls as 1/√width. ``activation`` is "relu" or "erf".

    >>> sum(p.numel() for p in ntk_mlp(2, 8, depth=2, seed=0).parameters())
    105
    """
    generator = torch.Generator().manual_seed(seed)
    widths = [inputs, *[width] * depth, outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers.append(NTKLinear(fan_in, fan_out, weight_var=weight_var, bias_var=bias_var, generator=generator))
        layers.append({"relu": nn.ReLU, "erf": Erf}[activation]())
    return nn.Sequential(*layers[:-1])
