"""Where a training error crosses a level along an axis: the interpolation threshold of a curve, with an interval."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.peak import mean_se

__all__ = ["Threshold", "crossing"]


@dataclass(frozen=True)
class Threshold:
    """Where the mean training error over seeds crosses ``epsilon`` along an axis.

    Attributes:
        value: the crossing; NaN where it lies outside of what was seen.
        low, high: 95 % interval over seeds (Student): where mean ± t·se crosses; -inf or inf where that lies outside.
        epsilon: the level.
        direction: "falling" (width, steps: fitted from ``value`` on) or "rising" (samples, noise: fitted up to it).
        outside: "" where found; "below" or "above": the threshold lies below or above all values seen.
        cost: of the search, as a share of the sweep's; 0 where it was read from a sweep or is known.
        evaluated: values seen, in order.
    """

    value: float
    low: float
    high: float
    epsilon: float
    direction: Literal["falling", "rising"]
    outside: Literal["", "below", "above"] = ""
    cost: float = 0.0
    evaluated: tuple[float, ...] = ()

    @property
    def found(self) -> bool:
        """Whether it lies within what was seen."""
        return math.isfinite(self.value)


def crossing(
    axis: Any, train_error: Any, *, epsilon: float = 0.1, direction: Literal["falling", "rising"] = "falling"
) -> Threshold:
    """Compute where the mean training error over seeds crosses ``epsilon``, linear between the points of the axis.

    Falling: the least value from which the mean stays at or below epsilon. Rising: the largest up to which it does. The
    effective model complexity of Nakkiran et al. 2019 is the rising case over the number of samples.

    Args:
        axis: (A,) increasing.
        train_error: (S, A) training errors, one line a seed.
        epsilon: the level; 0 < epsilon < 1.
        direction: which way the error goes along the axis.

    Raises:
        InputError: axis not increasing, shapes that do not match, NaN, epsilon outside of (0, 1).
    """
    places, errors = np.asarray(axis, dtype=np.float64), np.asarray(train_error, dtype=np.float64)
    if places.ndim != 1 or errors.ndim != 2 or errors.shape[1] != len(places) or not errors.size:
        raise InputError(
            f"axis of shape {places.shape}, training errors of shape {errors.shape}",
            expected="(A,) and (S, A)",
            hint="pass one line of errors a seed",
        )
    if not (np.diff(places) > 0).all() or not np.isfinite(errors).all() or not 0 < epsilon < 1:
        raise InputError(
            f"axis {places.tolist()}, epsilon {epsilon!r}",
            expected="an increasing axis, finite errors, epsilon between 0 and 1",
            hint="sort the axis",
        )
    if direction == "rising":
        other = crossing(-places[::-1], errors[:, ::-1], epsilon=epsilon)
        flipped: dict[str, Literal["", "below", "above"]] = {"": "", "below": "above", "above": "below"}
        return Threshold(
            -other.value,
            -other.high,
            -other.low,
            epsilon,
            "rising",
            flipped[other.outside],
            evaluated=tuple(places.tolist()),
        )
    mean, se = mean_se(errors)
    reach = float(stdtrit(len(errors) - 1, 0.975)) * se if len(errors) > 1 else np.full_like(mean, math.inf)
    value, low, high = (_first_below(places, own, epsilon) for own in (mean, mean - reach, mean + reach))
    outside: Literal["", "below", "above"] = "" if math.isfinite(value) else "above" if value > 0 else "below"
    return Threshold(
        value if not outside else math.nan, low, high, epsilon, "falling", outside, evaluated=tuple(places.tolist())
    )


def _first_below(places: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Least place from which the curve stays at or below the level; -inf if everywhere, inf if not even at the end."""
    above = np.flatnonzero(~(curve <= level))
    if not len(above):
        return -math.inf
    last = int(above[-1])
    if last == len(places) - 1:
        return math.inf
    share = (curve[last] - level) / (curve[last] - curve[last + 1]) if math.isfinite(curve[last]) else 1.0
    return float(places[last] + share * (places[last + 1] - places[last]))
