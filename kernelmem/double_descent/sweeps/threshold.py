"""Interpolation threshold: where a training error crosses a level along an axis, with a confidence interval."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.special import stdtrit

from kernelmem.core.checks import ArrayLike, as_number, as_tensor, check_choice
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.sweeps.peak import mean_se

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Threshold(Result):
    """Point where the mean training error over seeds crosses ``epsilon`` along an axis, in units of the axis.

    Attributes:
        value: axis value of the crossing; NaN if it lies outside of the evaluated values.
        low, high: 95 % interval: the evaluated values next to the crossings of mean ± t·se over seeds (Student's t), since the
            error between two evaluated values is unknown; -inf or inf if they lie outside. It is exact for an error that is
            monotone along the axis.
        epsilon: training error at the threshold.
        direction: "falling" (width, steps: fitted from ``value`` on) or "rising" (samples, noise: fitted up to ``value``).
        outside: "" if found; "below" or "above": the threshold lies below or above all evaluated values.
        cost: cost of the search as a fraction of the cost of the sweep; 0 if the threshold was read from a sweep or known.
        evaluated: axis values at which the training error was evaluated, increasing.
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
        """Return a table with one row: all attributes except the evaluated values."""
        import pandas as pd  # slow to import

        row = asdict(self)
        del row["evaluated"]
        return pd.DataFrame([row])

    def __str__(self) -> str:
        location = f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g})" if self.found else "not found"
        if self.outside:
            location = f"{self.outside} the evaluated values"
        return f"interpolation threshold (training error {self.epsilon:g}, {self.direction}): {location}"


def crossing(
    axis: ArrayLike,
    train_error: ArrayLike,
    *,
    epsilon: float = 0.1,
    direction: Literal["falling", "rising"] = "falling",
) -> Threshold:
    """Compute where the mean training error over seeds crosses ``epsilon``, linear between the points of the axis.

    If the direction is falling, it is the smallest value from which the mean stays at or below epsilon; if it is rising, the
    largest value up to which it does. The
    effective model complexity of Nakkiran et al. 2019 is the rising case over the number of samples.

    The interval assumes only that the expected error is monotone. If it falls, its lower end is the evaluated value before
    the first one with mean − t·se <= epsilon, its upper end the one after the last one with mean + t·se > epsilon; t is
    Student's t at 97.5 % with S − 1 degrees of freedom. Each end fails only if the test at the one evaluated value next to
    the threshold fails, in 2.5 % of cases, however coarse or fine the axis is.

    Args:
        axis: (A,) increasing values of the axis.
        train_error: (S, A) training errors, one row per seed.
        epsilon: training error at the threshold, 0 < epsilon < 1.
        direction: "falling" or "rising", how the error changes along the axis.

    Raises:
        InputError: the axis does not increase, the shapes do not match, an error is NaN, or epsilon is outside of (0, 1).
    """
    axis_values = as_tensor(axis, "axis", dtype=torch.float64).cpu().numpy()
    errors = as_tensor(train_error, "train_error", dtype=torch.float64).cpu().numpy()
    epsilon = as_number(epsilon, "epsilon")
    check_choice(direction, "direction", ("falling", "rising"))
    if axis_values.ndim != 1 or errors.ndim != 2 or errors.shape[1] != len(axis_values) or not errors.size:
        raise InputError(
            f"axis of shape {axis_values.shape} and training errors of shape {errors.shape}",
            expected="(A,) and (S, A)",
            hint="pass one row of errors per seed",
        )
    if not (np.diff(axis_values) > 0).all() or not np.isfinite(errors).all() or not 0 < epsilon < 1:
        raise InputError(
            f"axis {axis_values.tolist()} and epsilon={epsilon!r}",
            expected="an increasing axis, finite errors, epsilon between 0 and 1",
            hint="sort the axis, and remove values at which training diverged",
        )
    evaluated = tuple(axis_values.tolist())
    if direction == "rising":
        mirrored = crossing(-axis_values[::-1], errors[:, ::-1], epsilon=epsilon)
        opposite_sides: dict[str, Literal["", "below", "above"]] = {"": "", "below": "above", "above": "below"}
        outside = opposite_sides[mirrored.outside]
        return Threshold(
            -mirrored.value, -mirrored.high, -mirrored.low, epsilon, "rising", outside, evaluated=evaluated
        )
    mean, se = mean_se(errors)
    half_width = float(stdtrit(len(errors) - 1, 0.975)) * se if len(errors) > 1 else np.full_like(mean, math.inf)
    value = _first_below(axis_values, mean, epsilon)
    fitted, unfitted = (np.flatnonzero(found) for found in (mean - half_width <= epsilon, mean + half_width > epsilon))
    ends = np.concatenate(
        [[-math.inf], axis_values, [math.inf]]
    )  # ends[k] and ends[k + 2] are the neighbors of value k
    low = float(ends[fitted[0] if len(fitted) else -2])
    high = float(ends[unfitted[-1] + 2 if len(unfitted) else 1])
    outside: Literal["", "below", "above"] = "" if math.isfinite(value) else "above" if value > 0 else "below"
    return Threshold(value if not outside else math.nan, low, high, epsilon, "falling", outside, evaluated=evaluated)


def _first_below(axis_values: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Return the axis value from which ``curve`` (A,) stays at or below ``level``, by linear interpolation.

    The result is -inf if all values of the curve are at or below the level, and inf if the last one is above it or NaN.
    """
    above_level = np.flatnonzero(~(curve <= level))
    if not len(above_level):
        return -math.inf
    last = int(above_level[-1])
    if last == len(axis_values) - 1:
        return math.inf
    fraction = (curve[last] - level) / (curve[last] - curve[last + 1]) if math.isfinite(curve[last]) else 1.0
    return float(axis_values[last] + fraction * (axis_values[last + 1] - axis_values[last]))
