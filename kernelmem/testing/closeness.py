"""Closeness of two kernels, measured against the tangents that they are made of."""

from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk

__all__ = ["assert_close", "assert_exact", "scale_of"]

# A tangent that is zero but for rounding (the mean of an instance norm) has no scale of its own.
SMALLEST = 1e-3


def scale_of(left: Tensor, right: Tensor | None = None) -> float:
    """Largest norm of a row's tangents in ``left`` (n, C, P) times the largest in ``right``.

    An entry of a kernel is an inner product of two tangents: its rounding is relative to their norms, not to its own
    size, which may be zero.

    >>> scale_of(torch.tensor([[[3.0, 4.0]]]))
    25.0
    """
    largest = [float(J.flatten(1).norm(dim=1).max()) for J in (left, left if right is None else right)]
    return max(largest[0] * largest[1], SMALLEST)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, scale: float, label: str = "kernel") -> None:
    """Assert that the largest difference is at most tolerance · scale, and that shapes are equal.

    >>> assert_close(torch.ones(2), torch.ones(2) + 1e-7, 1e-6, scale=1.0)
    """
    assert actual.shape == expected.shape, f"{label}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    gap = float((actual.double() - expected.double()).abs().max())
    assert gap <= tolerance * scale, (
        f"{label}: differs by {gap / scale:.2g} of the scale, at most {tolerance:g} allowed"
    )


def assert_exact(model: nn.Module, x: Any, y: Any = None, **options: Any) -> None:
    """Assert that every kind of kernel equals the definition: to 1e-10 of the scale in float64, 1e-4 in float32.

    ``options`` go to :func:`kernelmem.ntk`.

    >>> assert_exact(nn.Linear(2, 3), torch.eye(2))
    """
    selected = {key: options[key] for key in ("parameters", "forward") if key in options}
    left = reference.jacobian(model, x, dtype=torch.float64, **selected)
    right = left if y is None else reference.jacobian(model, y, dtype=torch.float64, **selected)
    for outputs in ("trace", "diagonal", "full", "pseudo"):
        actual = ntk(model, x, y, outputs=outputs, **options)
        tolerance = 1e-4 if actual.dtype == torch.float32 else 1e-10
        assert_close(actual, reference.kernel_of(left, right, outputs), tolerance, scale_of(left, right), outputs)
