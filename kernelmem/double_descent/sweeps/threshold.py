"""Interpolation threshold: where a training error crosses a level along an axis, with a confidence interval."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import stdtrit

from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.double_descent.sweeps.peak import mean_se

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Threshold(Result):
    """Point where the mean training error over seeds crosses ``epsilon`` along an axis, in units of the axis.

    Attributes:
        value: the crossing; NaN if it lies outside of the evaluated values.
        low, high: 95 % interval over seeds (Student's t): crossings of mean ± t·se; -inf or inf if they lie outside.
        epsilon: the level.
        direction: "falling" (width, steps: fitted from ``value`` on) or "rising" (samples, noise: fitted up to ``value``).
        outside: "" if found; "below" or "above": the threshold lies below or above all evaluated values.
        cost: cost of the search as a fraction of the sweep's; 0 if it was read from a sweep or is known.
        evaluated: evaluated values, increasing.
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
        """True if the threshold lies within the evaluated values."""
        return math.isfinite(self.value)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row, without the evaluated values."""
        import pandas as pd  # slow to import

        row = asdict(self)
        del row["evaluated"]
        return pd.DataFrame([row])

    def __str__(self) -> str:
        place = f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g})" if self.found else "not found"
        if self.outside:
            place = f"{self.outside} the evaluated values"
        return f"interpolation threshold (training error {self.epsilon:g}, {self.direction}): {place}"


def crossing(
    axis: ArrayLike,
    train_error: ArrayLike,
    *,
    epsilon: float = 0.1,
    direction: Literal["falling", "rising"] = "falling",
) -> Threshold:
    """Compute where the mean training error over seeds crosses ``epsilon``, linear between the points of the axis.

    Falling: the smallest value from which the mean stays at or below epsilon. Rising: the largest up to which it does. The
    effective model complexity of Nakkiran et al. 2019 is the rising case over the number of samples.

    Args:
        axis: (A,) increasing.
        train_error: (S, A) training errors, one row per seed.
        epsilon: the level; 0 < epsilon < 1.
        direction: "falling" or "rising", how the error changes along the axis.

    Raises:
        InputError: axis not increasing, shapes that do not match, NaN, epsilon outside of (0, 1).
    """
    places, errors = np.asarray(axis, dtype=np.float64), np.asarray(train_error, dtype=np.float64)
    if places.ndim != 1 or errors.ndim != 2 or errors.shape[1] != len(places) or not errors.size:
        raise InputError(
            f"axis of shape {places.shape} and training errors of shape {errors.shape}",
            expected="(A,) and (S, A)",
            hint="pass one row of errors per seed",
        )
    if not (np.diff(places) > 0).all() or not np.isfinite(errors).all() or not 0 < epsilon < 1:
        raise InputError(
            f"axis {places.tolist()} and epsilon={epsilon!r}",
            expected="an increasing axis, finite errors, epsilon between 0 and 1",
            hint="sort the axis",
        )
    evaluated = tuple(places.tolist())
    if direction == "rising":
        mirrored = crossing(-places[::-1], errors[:, ::-1], epsilon=epsilon)
        sides: dict[str, Literal["", "below", "above"]] = {"": "", "below": "above", "above": "below"}
        outside = sides[mirrored.outside]
        return Threshold(
            -mirrored.value, -mirrored.high, -mirrored.low, epsilon, "rising", outside, evaluated=evaluated
        )
    mean, se = mean_se(errors)
    reach = float(stdtrit(len(errors) - 1, 0.975)) * se if len(errors) > 1 else np.full_like(mean, math.inf)
    value, low, high = (_first_below(places, curve, epsilon) for curve in (mean, mean - reach, mean + reach))
    outside: Literal["", "below", "above"] = "" if math.isfinite(value) else "above" if value > 0 else "below"
    return Threshold(value if not outside else math.nan, low, high, epsilon, "falling", outside, evaluated=evaluated)


def _first_below(places: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Smallest place from which the curve stays at or below the level; -inf if everywhere, inf if not at the end."""
    above = np.flatnonzero(~(curve <= level))
    if not len(above):
        return -math.inf
    last = int(above[-1])
    if last == len(places) - 1:
        return math.inf
    fraction = (curve[last] - level) / (curve[last] - curve[last + 1]) if math.isfinite(curve[last]) else 1.0
    return float(places[last] + fraction * (places[last + 1] - places[last]))
