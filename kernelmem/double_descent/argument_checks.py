"""Checks of what theory and predictions take: axes, squared coefficients and eigenvalues, seeds."""

import math

import numpy as np

from kernelmem.core.checks import ArrayLike, as_count, as_tensor
from kernelmem.core.errors import InputError


def as_axis(
    value: ArrayLike,
    name: str,
    *,
    whole: bool = False,
    minimum: float = 0.0,
    maximum: float = math.inf,
    exclusive: bool = True,
) -> np.ndarray:
    """Return the values of an axis, (A,) float64, strictly increasing, in (minimum, maximum], or [minimum, maximum].

    Raises:
        InputError: empty, not one-dimensional, not finite, not increasing, out of range, or fractions where ``whole``.
    """
    axis = as_tensor(value, name).double()
    axis = axis.reshape(1) if axis.ndim == 0 else axis
    if axis.ndim != 1 or not len(axis):
        raise InputError(
            f"{name} of shape {tuple(axis.shape)}",
            expected="a list of at least one value",
            hint=f"pass {name}=[1, 2, 3]",
        )
    values = axis.cpu().numpy().copy()
    outside = ~(values > minimum if exclusive else values >= minimum) | (values > maximum)
    if outside.any():
        raise InputError(
            f"{name} with the value {values[outside][0]:g}",
            expected=f"values {'>' if exclusive else '>='} {minimum:g}" + f" and <= {maximum:g}" * (maximum < math.inf),
            hint="remove the values outside of this range",
        )
    if whole and (values != np.round(values)).any():
        raise InputError(f"{name} with fractions", expected="whole numbers", hint=f"round {name}")
    if (np.diff(values) <= 0).any():
        raise InputError(
            f"{name} that does not increase",
            expected="strictly increasing values",
            hint=f"sort {name}, without repeats",
        )
    return values


def as_scaled_count(ratio: float, n: int, name: str) -> int:
    """Return ratio · n as a whole number >= 1 (rounding errors up to 1e-9 are removed).

    Raises:
        InputError: the product is not a whole number, or is below 1.
    """
    product = round(float(ratio) * n, 9)
    return as_count(int(product) if product.is_integer() else product, name)


def as_powers(value: ArrayLike, name: str) -> np.ndarray:
    """Return numbers >= 0 (squares, eigenvalues), (M,) float64; negative ones within rounding become 0.

    Rounding is 10 M eps times the largest absolute value. If there are negative values, positive ones up to twice their
    size count as rounding too.

    Raises:
        InputError: empty, not one-dimensional, not finite, negative beyond rounding.
    """
    tensor = as_tensor(value, name).double()
    if tensor.ndim != 1 or not len(tensor):
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)}", expected="at least one number, shape (M,)", hint=f"flatten {name}"
        )
    values = tensor.cpu().numpy().copy()
    lowest, rounding = values.min(), 10 * len(values) * np.finfo(float).eps * np.abs(values).max()
    if lowest < -rounding:
        raise InputError(
            f"{name} with values from {lowest:.3g} to {values.max():.3g}",
            expected=f"numbers >= 0 (up to rounding, {rounding:.1g})",
            hint="check that the kernel is positive semidefinite and computed in float64",
        )
    values[values < max(-2 * lowest, 0.0)] = 0.0
    return values


def generators(seed: int, count: int) -> list[np.random.Generator]:
    """Return ``count`` independent generators of one seed; the first ones do not depend on ``count``.

    Raises:
        InputError: the seed is not a whole number >= 0.
    """
    children = np.random.SeedSequence(as_count(seed, "seed", minimum=0)).spawn(count)
    return [np.random.default_rng(child) for child in children]
