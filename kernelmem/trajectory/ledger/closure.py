"""Closure of a ledger: limits of the terms that explain nothing, the residual and the rounding."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kernelmem.core.errors import VerificationError

RESIDUAL_SHARES = {"float64": 1e-9, "float32": 1e-4}
"""Largest rounding error of a residual, relative to the terms, for the narrowest type in which the model computes."""
ROUNDING_SHARES = {"float64": 1e-6, "float32": 1e-2}
"""Largest effect of rounding in training, relative to the terms, for the narrowest type of the trained parameters."""
NARROW_SHARE = 0.3  # for half precision
PARTS_SHARE = 1e-3  # of the parts of a step: largest difference from it


def narrowest(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the floating-point type with the largest machine epsilon among the tensors of a state."""
    dtypes = [tensor.dtype for tensor in state.values() if tensor.is_floating_point() or tensor.is_complex()]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def training_dtype(state: Mapping[str, Tensor], autocasts: Iterable[str | None]) -> str:
    """Return the name of the narrowest type in which training computed: of the trained parameters, or of autocast."""
    names = [dtype_name(narrowest(state))]
    if names != ["float64"]:  # which autocast leaves alone
        names += [name for name in autocasts if name is not None]
    return max(names, key=lambda name: torch.finfo(getattr(torch, name)).eps)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of the real type: "float64" for torch.float64 and torch.complex128."""
    return torch.finfo(dtype).dtype


def residual_limit(scale: Tensor, tolerance: float, dtype: str) -> Tensor:
    """Return the largest residual of a closed ledger, of the shape of ``scale``, the sum of its absolute terms."""
    return tolerance + RESIDUAL_SHARES.get(dtype, NARROW_SHARE) * scale


def rounding_limit(scale: Tensor, dtype: str) -> Tensor:
    """Return the largest rounding line of a closed ledger, of the shape of ``scale``, the sum of its absolute terms."""
    return ROUNDING_SHARES.get(dtype, NARROW_SHARE) * scale


def check_gradients_add_up(difference: Tensor, limit: Tensor) -> None:
    """Check that the gradients of the examples add up to those of their batches, from the effect of the difference.

    Raises:
        VerificationError: a difference exceeds its limit.
    """
    if not bool((difference.abs() <= limit).all()):
        raise _gradients_error(float(difference.abs().max() / limit.max()))


def check_parts(parts: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> None:
    """Check that the parts of a step, (G, *shape) for each parameter, add up to the step.

    Raises:
        VerificationError: they do not, by more than a thousandth of their absolute values.
    """
    difference = math.hypot(*(float((part.sum(0) - step[name]).norm()) for name, part in parts.items()))
    size = math.hypot(*(float(part.abs().sum(0).norm()) for part in parts.values()))
    if not difference <= PARTS_SHARE * size:
        raise _gradients_error(difference / (PARTS_SHARE * size))


def _gradients_error(excess: float) -> VerificationError:
    return VerificationError(
        f"gradients of the training examples that do not add up to those of their batches (the difference is {excess:.2g}"
        " times what rounding allows)",
        expected="a training pass that the model repeats: the same random numbers, batch statistics and branches",
        hint="draw random numbers from torch's CPU generator only, and keep state that changes in buffers",
    )
