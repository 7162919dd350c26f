"""Peak of a mean curve over seeds: place, rise and fall, cross-fitted to remove the bias of selecting the peak."""

import math
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import stdtrit

from kernelmem.core.checks import ArrayLike, as_tensor, as_text
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd

MIN_SEEDS = 4  # each half needs two seeds for a standard error
MAX_SPLITS = 64  # 8 seeds have C(8, 4) / 2 = 35 splits; for more seeds 64 are drawn


@dataclass(frozen=True, eq=False, repr=False)
class Peak(Result):
    """Peak of a mean curve over seeds, in the units of the curve.

    Attributes:
        metric: name of the curve.
        index: index of the peak on the axis, from the mean of all seeds.
        axis_value: value of the axis at the peak.
        picked: (smallest, largest) axis value selected by any half of the seeds.
        height: mean of the curve at ``axis_value``; selected and evaluated on the same seeds, hence biased upward.
        height_se: standard error of ``height`` over seeds; it ignores the selection of the peak.
        rise: curve at the peak minus the curve at the minimum to its left, cross-fitted; 0 if the peak
            is the first value. A rise or fall below 0 is chance and means no peak: for a monotone curve it is slightly
            negative on average.
        rise_se: standard error of ``rise``.
        fall: curve at the peak minus the curve at the minimum to its right, cross-fitted.
        fall_se: standard error of ``fall``.
        seeds: number of curves.
    """

    metric: str
    index: int
    axis_value: float
    picked: tuple[float, float]
    height: float
    height_se: float
    rise: float
    rise_se: float
    fall: float
    fall_se: float
    seeds: int

    @property
    def rise_interval(self) -> tuple[float, float]:
        """95 % interval of ``rise``, rise ± t rise_se with Student's t of S − 1 degrees of freedom.

        For a clear peak it covers 95 % at 4 to 12 seeds, where ± 2 standard errors covers 86 to 93 %.
        """
        return self._interval(self.rise, self.rise_se)

    @property
    def fall_interval(self) -> tuple[float, float]:
        """95 % interval of ``fall``, as ``rise_interval``."""
        return self._interval(self.fall, self.fall_se)

    def _interval(self, value: float, se: float) -> tuple[float, float]:
        half_width = float(stdtrit(self.seeds - 1, 0.975)) * se
        return value - half_width, value + half_width

    @property
    def verdict(self) -> str:
        """Conclusion from rise and fall: "peak", "no peak", or "not distinguishable from no peak".

        A peak needs both intervals above 0; there is none if the rise or the fall is at most 0.
        """
        if min(self.rise, self.fall) <= 0:
            return "no peak"
        is_clear = min(self.rise_interval[0], self.fall_interval[0]) > 0
        return "peak" if is_clear else "not distinguishable from no peak"

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row and a column per attribute; pairs become two columns, such as picked_low, picked_high."""
        import pandas as pd  # slow to import

        row = asdict(self)
        pairs = {"picked": row.pop("picked"), "rise": self.rise_interval, "fall": self.fall_interval}
        for name, (low, high) in pairs.items():
            row[f"{name}_low"], row[f"{name}_high"] = low, high
        return pd.DataFrame([row])

    def __str__(self) -> str:
        rise, fall = (f"{low:+.4g} to {high:+.4g}" for low, high in (self.rise_interval, self.fall_interval))
        return (
            f"peak of {self.metric} over {self.seeds} seeds: {self.height:.4g} ± {self.height_se:.2g} at"
            f" {self.axis_value:g} (halves of the seeds: {self.picked[0]:g} to {self.picked[1]:g}),"
            f" rise {self.rise:+.4g} ({rise}), fall {self.fall:+.4g} ({fall}), 95 % intervals: {self.verdict}"
        )


def mean_se(curves: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard error over seeds, s / √S with the sample standard deviation s.

    Args:
        curves: (S, A), one curve per seed; NaN propagates.

    Returns:
        mean (A,) and standard error (A,), float64; the standard error of a single seed is NaN.

    Raises:
        InputError: the curves are not two-dimensional, or there is no seed.
    """
    values = np.asarray(curves, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise InputError(
            f"curves of shape {values.shape}",
            expected="(S, A), one curve per seed",
            hint="stack the curves of all seeds",
        )
    if len(values) < 2:
        return values.mean(0), np.full(values.shape[1], math.nan)
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def find_peak(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the minimum to the left, the peak and the minimum to the right of curves; indices into the last axis.

    The peak is the point of largest prominence, min(m_p - min_{l <= p} m_l, m_p - min_{r >= p} m_r), so that a curve which
    starts higher than its peak (a network that is too small to learn) still has that peak. If no point has a prominence
    (monotone, constant), it is the largest value, and one of the minima is the peak itself.

    Args:
        mean: (..., A).

    Returns:
        left, peak, right: int64 (...,). Cost: O(A) per curve.
    """
    left_minimum = np.minimum.accumulate(mean, -1)
    right_minimum = np.minimum.accumulate(mean[..., ::-1], -1)[..., ::-1]
    prominence = np.minimum(mean - left_minimum, mean - right_minimum)
    candidates = np.where(prominence == prominence.max(-1, keepdims=True), mean, -np.inf)
    peak = candidates.argmax(-1)
    index = np.arange(mean.shape[-1])
    left = np.where(index <= peak[..., None], mean, np.inf).argmin(-1)
    right = np.where(index >= peak[..., None], mean, np.inf).argmin(-1)
    return left, peak, right


def peak(curves: ArrayLike, axis: ArrayLike | None = None, *, metric: str = "test_error") -> Peak:
    """Compute the cross-fitted rise and fall of the mean curve over seeds.

    For a split of the seeds into halves H and G, and l, p, r the left minimum, peak and right minimum of the mean of H::

        rise_H = mean over s in G of c_s(p) - c_s(l)        fall_H = mean over s in G of c_s(p) - c_s(r)

    and likewise with H and G exchanged. The estimate is the mean of both directions over all splits (64 random ones for more
    than 8 seeds). Each is unbiased for the true difference of the curve at the selected points, so a constant or monotone
    curve has no rise and fall on average, whereas points selected and evaluated on the same seeds always have both. If the
    halves miss the true peak, the estimate is below the true height.

    Standard error: differences are paired by seed; with v the sample variance of c_s(p) - c_s(l) within a half, a split has
    (v_H / |H| + v_G / |G|) / 4, and the splits, which share their seeds, together have at most the mean of these. Intervals
    use Student's t of S − 1 degrees of freedom.

    Args:
        curves: (S, A), S >= 4, finite.
        axis: (A,) values of the axis; None: 0, 1, ...
        metric: name of the curve, stored in the result.

    Raises:
        InputError: there are fewer than 4 seeds or no values, the shapes do not match, or a value is NaN.

    Cost: O(splits · S · A).

    Source: sample splitting, Cox 1975; cross-fitting, Chernozhukov et al. 2018.

    >>> falling = np.array([[0.5, 0.4, 0.3]] * 4)
    >>> result = peak(falling, [1, 2, 3])
    >>> result.axis_value, result.rise, round(result.fall, 3)
    (1.0, 0.0, 0.2)
    """
    values, metric = (
        as_tensor(curves, "curves", dtype=torch.float64, squared=True).cpu().numpy(),
        as_text(metric, "metric"),
    )
    if values.ndim != 2 or values.shape[0] < MIN_SEEDS or values.shape[1] == 0:
        raise InputError(
            f"curves of shape {values.shape}",
            expected=f"(S, A) with S >= {MIN_SEEDS} seeds (two per half, for a standard error)",
            hint="run more seeds",
        )
    S, A = values.shape
    axis_values = (
        np.arange(A, dtype=np.float64) if axis is None else as_tensor(axis, "axis", dtype=torch.float64).cpu().numpy()
    )
    if axis_values.shape != (A,):
        raise InputError(
            f"axis of shape {axis_values.shape}",
            expected=f"({A},), one value per column",
            hint="pass the axis value of every column",
        )

    halves = _split_in_halves(S)  # (J, S) bool
    selecting_seeds = np.concatenate([halves, ~halves])  # (2J, S); the differences are evaluated on the other seeds
    weights = selecting_seeds / selecting_seeds.sum(1, keepdims=True)
    left_minima, peaks, right_minima = find_peak(weights @ values)  # (2J,)
    rise, rise_se = _mean_difference(values, peaks, left_minima, ~selecting_seeds)
    fall, fall_se = _mean_difference(values, peaks, right_minima, ~selecting_seeds)
    mean, se = mean_se(values)
    index = int(find_peak(mean)[1])
    return Peak(
        metric=metric,
        index=index,
        axis_value=float(axis_values[index]),
        picked=(float(axis_values[peaks].min()), float(axis_values[peaks].max())),
        height=float(mean[index]),
        height_se=float(se[index]),
        rise=rise,
        rise_se=rise_se,
        fall=fall,
        fall_se=fall_se,
        seeds=S,
    )


def _mean_difference(
    values: np.ndarray, high_indices: np.ndarray, low_indices: np.ndarray, evaluating_seeds: np.ndarray
) -> tuple[float, float]:
    """Return the mean of c_s(high) − c_s(low) over halves and their evaluating seeds, and its standard error.

    ``values`` (S, A) are the curves c_s of S seeds. For each of the 2J halves ``high_indices`` and ``low_indices`` (2J,) are
    points of the axis, and ``evaluating_seeds`` (2J, S) bool marks the seeds whose curves are averaged.
    """
    differences = (values[:, high_indices] - values[:, low_indices]).T  # (2J, S)
    n_evaluating = evaluating_seeds.sum(1)
    means = (differences * evaluating_seeds).sum(1) / n_evaluating
    variances = ((differences - means[:, None]) ** 2 * evaluating_seeds).sum(1) / (n_evaluating - 1)
    # A split has two halves, each with weight 1/2: (v_H/|H| + v_G/|G|) / 4, averaged over splits.
    return float(means.mean()), math.sqrt(float((variances / n_evaluating).mean()) / 2)


def _split_in_halves(S: int) -> np.ndarray:
    """Return J splits of S seeds into two halves, (J, S) bool; True marks the seeds of the first half.

    All splits are returned for up to 8 seeds, otherwise 64 random ones, which are the same in every call.
    """
    if S <= 8:
        half_indices = [indices for indices in combinations(range(S), S // 2) if S % 2 or 0 in indices]
    else:
        generator = np.random.default_rng(S)
        half_indices = [generator.permutation(S)[: S // 2] for _ in range(MAX_SPLITS)]
    halves = np.zeros((len(half_indices), S), dtype=bool)
    for j, indices in enumerate(half_indices):
        halves[j, list(indices)] = True
    return halves
