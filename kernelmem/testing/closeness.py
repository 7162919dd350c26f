"""Assertions that kernels agree up to rounding, relative to the norms of their tangents."""

from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk

# Tangents that are zero up to rounding (mean of an instance norm) do not define a scale.
SMALLEST_SCALE = 1e-3


def scale_of(left: Tensor, right: Tensor | None = None) -> float:
    """Return the largest norm of an example's tangents in ``left`` times the largest in ``right``.

    Tangents are derivatives of the outputs with respect to the parameters, (n, C, P) for n examples, C outputs and P
    parameters; ``right=None`` means ``left``.

    An entry of a kernel is an inner product of two tangents: its rounding error is relative to their norms, not to the
    entry itself, which can be zero.

    >>> scale_of(torch.tensor([[[3.0, 4.0]]]))
    25.0
    """
    largest_norms = [float(J.flatten(1).norm(dim=1).max()) for J in (left, left if right is None else right)]
    return max(largest_norms[0] * largest_norms[1], SMALLEST_SCALE)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, scale: float, label: str = "kernel") -> None:
    """Assert equal shapes and max |actual - expected| <= tolerance · scale; ``label`` names the kernel in the message.

    >>> assert_close(torch.ones(2), torch.ones(2) + 1e-7, 1e-6, scale=1.0)
    """
    assert actual.shape == expected.shape, f"{label}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    largest_difference = float((actual.double() - expected.double()).abs().max())
    assert largest_difference <= tolerance * scale, (
        f"{label}: differs by {largest_difference / scale:.2g} of the scale, at most {tolerance:g} allowed"
    )


def assert_exact(model: nn.Module, x: Batch, y: Batch | None = None, **options: Any) -> None:
    """Assert that :func:`kernelmem.ntk` equals the slow reference, for every ``outputs=``.

    The tolerance is 1e-10 of :func:`scale_of` in float64, 1e-4 in float32.

    Args:
        model: any network.
        x: batch of n examples.
        y: batch of m examples; None: x.
        **options: options of :func:`kernelmem.ntk`.

    >>> assert_exact(nn.Linear(2, 3), torch.eye(2))
    """
    reference_options = {key: options[key] for key in ("parameters", "forward") if key in options}
    left_jacobian = reference.jacobian(model, x, dtype=torch.float64, **reference_options)
    right_jacobian = (
        left_jacobian if y is None else reference.jacobian(model, y, dtype=torch.float64, **reference_options)
    )
    for outputs in ("trace", "diagonal", "full", "pseudo"):
        actual = ntk(model, x, y, outputs=outputs, **options)
        tolerance = 1e-4 if actual.dtype == torch.float32 else 1e-10
        assert_close(
            actual,
            reference.kernel_of(left_jacobian, right_jacobian, outputs),
            tolerance,
            scale_of(left_jacobian, right_jacobian),
            outputs,
        )
