"""The border of the theory: axes, numbers and seeds are checked once, with errors that say what to do."""

import math
from typing import Any

import numpy as np

from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import InputError

__all__ = ["as_axis", "as_number", "as_powers", "as_whole", "generators"]


def as_axis(value: Any, name: str, *, whole: bool = False, least: float = 0.0, open_end: bool = True) -> np.ndarray:
    """Return the values of an axis, (G,) float64, strictly increasing, above ``least`` (or equal, if not ``open_end``).

    Raises:
        InputError: empty, not one-dimensional, not finite, not increasing, out of range, or fractions where ``whole``.
    """
    axis = as_tensor(value, name).double().reshape(-1) if np.ndim(value) == 0 else as_tensor(value, name).double()
    if axis.ndim != 1 or not len(axis):
        raise InputError(
            f"{name} of shape {tuple(axis.shape)}",
            expected="a list of at least one value",
            hint=f"pass {name}=[1, 2, 3]",
        )
    values = axis.cpu().numpy().copy()
    low = values <= least if open_end else values < least
    if low.any():
        sign = ">" if open_end else ">="
        raise InputError(
            f"{name} with {values[low][0]:g}", expected=f"values {sign} {least:g}", hint=f"leave out the {name} below"
        )
    if whole and (values != np.round(values)).any():
        raise InputError(f"{name} with fractions", expected="whole numbers", hint=f"round {name}")
    if (np.diff(values) <= 0).any():
        raise InputError(
            f"{name} that does not increase", expected="values in increasing order, none twice", hint=f"sort {name}"
        )
    return values


def as_number(value: Any, name: str, *, least: float = 0.0, open_end: bool = False, most: float = math.inf) -> float:
    """Return one finite number of [least, most], or (least, most] if ``open_end``.

    Raises:
        InputError: not a number, not finite, or out of range.
    """
    scalar = value.item() if getattr(value, "ndim", None) == 0 else value
    number = math.nan
    if isinstance(scalar, int | float) and not isinstance(scalar, bool):
        number = float(scalar)
    if not math.isfinite(number) or number < least or number > most or (open_end and number == least):
        bounds = f"{'>' if open_end else '>='} {least:g}" + (f" and <= {most:g}" if most < math.inf else "")
        raise InputError(f"{name} {value!r}", expected=f"one finite number {bounds}", hint=f"pass {name} in this range")
    return number


def as_whole(value: Any, name: str, *, least: int = 1, most: float = math.inf) -> int:
    """Return one whole number of [least, most].

    Raises:
        InputError: not a whole number, or out of range.
    """
    number = as_number(value, name, least=least, most=most)
    if number != round(number):
        raise InputError(f"{name} {value!r}", expected="a whole number", hint=f"round {name}")
    return int(number)


def as_powers(value: Any, name: str) -> np.ndarray:
    """Return numbers >= 0 (squares, eigenvalues), (M,) float64; negative ones within rounding become 0.

    Rounding is M eps times the largest value. If there are negative values, positive ones up to twice their size are
    taken for rounding too.

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
            f"{name} with {lowest:.3g} beside values up to {values.max():.3g}",
            expected=f"numbers >= 0 (rounding: {rounding:.1g})",
            hint="check that the kernel is positive semidefinite, computed in float64",
        )
    values[values < max(-2 * lowest, 0.0)] = 0.0
    return values


def generators(seed: Any, count: int) -> list[np.random.Generator]:
    """Return ``count`` independent generators of one seed; the first ones do not depend on ``count``.

    Raises:
        InputError: the seed is not a whole number >= 0.
    """
    children = np.random.SeedSequence(as_whole(seed, "seed", least=0)).spawn(count)
    return [np.random.default_rng(child) for child in children]
