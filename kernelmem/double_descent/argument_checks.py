"""Validation of the arguments of theory and predictions: axes, squared coefficients, eigenvalues and seeds."""

import math

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_seed, as_tensor, check_kernel_range
from kernelmem.core.errors import InputError

MAX_VARIANCE = 1e100  # products of variances stay in float64


def as_axis(
    value: ArrayLike,
    name: str,
    *,
    integer: bool = False,
    minimum: float = 0.0,
    maximum: float = math.inf,
    exclusive: bool = True,
) -> np.ndarray:
    """Validate an axis and return its values, (A,) float64: strictly increasing and from minimum to maximum.

    The minimum itself is allowed only if ``exclusive`` is false.

    Raises:
        InputError: the axis is empty, not one-dimensional, not finite, not increasing or out of range, or it has
            fractions although ``integer`` is true.
    """
    axis = as_tensor(value, name, dtype=torch.float64)
    axis = axis.reshape(1) if axis.ndim == 0 else axis
    if axis.ndim != 1 or not len(axis):
        raise InputError(
            f"{name} of shape {tuple(axis.shape)}",
            expected="a list of at least one value",
            hint=f"pass {name}=[1, 2, 3]",
        )
    values = axis.cpu().numpy().copy()
    if np.abs(values).max() > 1:
        check_kernel_range(float(np.abs(values).max()), name)
    out_of_range = ~(values > minimum if exclusive else values >= minimum) | (values > maximum)
    if out_of_range.any():
        raise InputError(
            f"{name} with the value {values[out_of_range][0]:g}",
            expected=f"values {'>' if exclusive else '>='} {minimum:g}" + f" and <= {maximum:g}" * (maximum < math.inf),
            hint="remove the values outside of this range",
        )
    if integer and (values != np.round(values)).any():
        raise InputError(f"{name} with fractions", expected="whole numbers", hint=f"round {name}")
    if (np.diff(values) <= 0).any():
        position = int((np.diff(values) <= 0).argmax())
        pair = values[position : position + 2]
        raise InputError(
            f"{name} with the consecutive values {pair[0]:g}, {pair[1]:g}",
            expected="strictly increasing values",
            hint=f"sort {name} and remove repeated values",
        )
    return values


def as_scaled_count(ratio: float, n: int, name: str) -> int:
    """Return ratio · n as a whole number >= 1; rounding errors of up to 1e-9 are removed.

    Raises:
        InputError: the product is not a whole number, or is below 1.
    """
    product = round(as_number(ratio, name) * n, 9)
    return as_count(int(product) if product.is_integer() else product, name)


def as_nonnegative(value: ArrayLike, name: str) -> np.ndarray:
    """Validate numbers >= 0 (squares, eigenvalues), (M,) float64; negative values within rounding become 0.

    The rounding error is taken as 10 M eps times the largest absolute value. If there are negative values, positive
    values up to twice their size also count as rounding errors.

    Raises:
        InputError: the values are empty, not one-dimensional, not finite, or negative beyond rounding.
    """
    tensor = as_tensor(value, name, dtype=torch.float64)
    if tensor.ndim != 1 or not len(tensor):
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)}", expected="at least one number, shape (M,)", hint=f"flatten {name}"
        )
    values = tensor.cpu().numpy().copy()
    minimum, rounding = values.min(), 10 * len(values) * np.finfo(float).eps * np.abs(values).max()
    if minimum < -rounding:
        raise InputError(
            f"{name} with values from {minimum:.3g} to {values.max():.3g}",
            expected=f"numbers >= 0 (up to rounding, {rounding:.1g})",
            hint="check that the kernel is positive semidefinite and computed in float64",
        )
    values[values < max(-2 * minimum, 0.0)] = 0.0
    return values


def spawn_generators(seed: int, count: int) -> list[np.random.Generator]:
    """Derive ``count`` independent random generators from one seed; generator k does not depend on ``count``.

    Raises:
        InputError: the seed is not a whole number >= 0.
    """
    child_seeds = np.random.SeedSequence(as_seed(seed)).spawn(count)
    return [np.random.default_rng(child_seed) for child_seed in child_seeds]
