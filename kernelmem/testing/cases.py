"""Networks with matching inputs, all weights and inputs drawn from one seed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm


@dataclass(frozen=True)
class Case:
    """A network with two batches of inputs: ``x`` with n examples, ``y`` with m examples."""

    model: nn.Module
    x: Tensor
    y: Tensor
    name: str

    def __repr__(self) -> str:
        return f"Case({self.name}, x {tuple(self.x.shape)}, y {tuple(self.y.shape)})"


@dataclass(frozen=True)
class Inputs:
    """Shape and type of one input: real numbers, or integers in 0..vocabulary-1 if ``vocabulary`` is positive."""

    size: tuple[int, ...]
    vocabulary: int = 0

    def draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return ``n`` inputs: standard normal numbers of type ``dtype``, or integers if there is a vocabulary."""
        if self.vocabulary:
            return torch.randint(self.vocabulary, (n, *self.size), generator=generator)
        return torch.randn(n, *self.size, generator=generator, dtype=torch.float64).to(dtype)


@torch.no_grad()
def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter and running statistic, in place, so that nothing depends on the global seed.

    Matrices and convolution kernels have variance 1/fan-in; gains are near 1, other vectors near 0.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            noise /= math.sqrt(max(parameter.numel() // parameter.shape[0], 1))
        else:
            noise = 0.5 * noise + (1.0 if name.rpartition(".")[2].endswith(("weight", "gain")) else 0.0)
        parameter.copy_(noise)
    for name, buffer in model.named_buffers():
        statistic = name.rpartition(".")[2]
        if statistic == "running_mean":
            buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
        elif statistic == "running_var":
            buffer.copy_(0.5 + 2.0 * torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    for module in model.modules():
        for parametrization_list in (
            getattr(module, "parametrizations", {}).values() if hasattr(module, "parametrizations") else ()
        ):
            for parametrization in parametrization_list:
                if isinstance(parametrization, _SpectralNorm):
                    _power_iterate(parametrization, parametrization_list.original, generator)


def _power_iterate(spectral_norm: nn.Module, weight: Tensor, generator: torch.Generator) -> None:
    """Recompute the singular vectors that a spectral norm stores, for ``weight``.

    Vectors of other weights could give a norm close to 0, which would scale the weight by a huge factor.
    """
    for name in ("_u", "_v"):
        buffer = getattr(spectral_norm, name)
        buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
        buffer /= buffer.norm()
    was_training = spectral_norm.training
    spectral_norm.train()
    for _ in range(8):
        spectral_norm(weight)
    spectral_norm.train(was_training)


def with_random_weights(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return ``model``, modified in place: in eval mode, with all weights and running statistics drawn from ``seed``.

    Values are drawn in float64 and converted to ``dtype``.
    """
    model = model.double().eval()
    draw_weights(model, torch.Generator().manual_seed(seed))
    return model.to(dtype)


def make_case(
    name: str,
    model: nn.Module,
    inputs: Inputs,
    *,
    seed: int = 0,
    n: int = 4,
    m: int = 3,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Build a case: the network in eval mode, its weights, n inputs x and m inputs y drawn from ``seed``.

    Values are drawn in float64 and cast: the float32 case equals the float64 case up to rounding.

    Args:
        name: name of the case in ``repr`` and in test reports.
        model: any network; it is modified in place.
        inputs: shape and type of one input.
        seed: seed of all random draws.
        n: number of inputs x.
        m: number of inputs y.
        dtype: floating-point type of weights and real inputs.

    >>> make_case("linear", nn.Linear(3, 2), Inputs((3,)))
    Case(linear, x (4, 3), y (3, 3))
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    draw_weights(model, generator)
    x, y = inputs.draw(n, generator, dtype), inputs.draw(m, generator, dtype)
    return Case(model.to(dtype), x, y, name)
