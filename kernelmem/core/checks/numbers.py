"""Checks of numbers: real numbers in a range, counts, flags and seeds."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kernelmem.core.checks.objects import as_names, describe
from kernelmem.core.errors import InputError

LARGE_COUNT = 100_000  # an upper bound from here on is named only if it is exceeded
MAX_COUNT = 2**31 - 1  # above it, no array or loop of this length is possible; most functions have a smaller bound


def as_number(
    value: object, name: str, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> float:
    """Return one finite number in [minimum, maximum], or in (minimum, maximum] if ``exclusive``.

    Raises:
        InputError: not a number (True and False are not), not finite, or out of range.
    """
    scalar = _scalar(value)
    try:
        number = math.nan if scalar is None else float(scalar)
    except OverflowError:  # a whole number above 1.8e308
        number = math.inf
    if not math.isfinite(number) or not minimum <= number <= maximum or (exclusive and number == minimum):
        bounds = f"{'>' if exclusive else '>='} {minimum:g}" if minimum > -math.inf else ""
        bounds += f"{' and' if bounds else ''} <= {maximum:g}" if maximum < math.inf else ""
        raise InputError(
            f"{name}={describe(value)}",
            expected=f"a finite number {bounds}".rstrip(),
            hint=f"pass {name} in this range",
        )
    return number


def as_count(value: object, name: str, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return one whole number in [minimum, maximum]; None: no upper bound but ``MAX_COUNT``.

    Raises:
        InputError: not a whole number (True and False are not), or out of range.
    """
    scalar = _scalar(value)
    if not isinstance(scalar, int) or not minimum <= scalar <= (MAX_COUNT if maximum is None else maximum):
        upper_bound = MAX_COUNT if maximum is None else maximum
        is_too_large = isinstance(scalar, int) and scalar > upper_bound
        bounds = f"in {minimum}..{upper_bound}" if is_too_large or upper_bound < LARGE_COUNT else f">= {minimum}"
        raise InputError(
            f"{name}={describe(value)}", expected=f"a whole number {bounds}", hint=f"pass {name} in this range"
        )
    return scalar


def as_flag(value: object, name: str) -> bool:
    """Return True or False.

    Raises:
        InputError: another value, also if Python would take it as true or false.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name}={describe(value)}", expected="True or False", hint=f"pass {name}=True")


def as_seed(value: object, name: str = "seed") -> int:
    """Return a seed: a whole number in 0..2⁶³−1.

    Raises:
        InputError: not a whole number, negative, or too large.
    """
    return as_count(value, name, minimum=0, maximum=2**63 - 1)


def seed_sequence(seed: int, names: Sequence[str]) -> dict[str, int]:
    """Derive one independent 63-bit seed for each name from one explicit seed.

    The same ``seed`` and position give the same numbers on every machine (NumPy's SeedSequence).

    Raises:
        InputError: the seed is not a whole number in 0..2⁶³−1.
    """
    names = as_names(names, "names") or []
    states = np.random.SeedSequence(as_seed(seed)).generate_state(len(names), np.uint64)
    return {name: int(state >> np.uint64(1)) for name, state in zip(names, states, strict=True)}


def _scalar(value: object) -> int | float | None:
    """Return ``value`` as a Python number, or None if it is not a number or is True or False."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = None if isinstance(value, Tensor) and value.is_meta else value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
