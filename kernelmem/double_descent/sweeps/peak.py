"""The peak of a curve over seeds: where it is, how far it rises and falls, without the bias of having picked it."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import InputError

__all__ = ["FEWEST", "Peak", "find_peak", "mean_se", "peak"]

FEWEST = 4  # seeds: each half needs two for a standard error
MOST_SPLITS = 64  # C(8, 4) / 2 = 35 are all of 8 seeds; of more seeds 64 are drawn


@dataclass(frozen=True)
class Peak:
    """The peak of a mean curve over seeds, and what it stands above.

    Attributes:
        metric: of which curve.
        index: of the axis, on the mean of all seeds.
        axis_value: the axis there.
        picked: (least, largest) axis value that a half of the seeds picked.
        height: mean of the curve at ``axis_value``: picked and evaluated on the same seeds, so biased upward.
        height_se: its standard error, of the seeds alone.
        rise: curve at the peak minus the curve at the minimum to its left, cross-fitted; 0 if nothing lies to its left.
        rise_se: standard error of ``rise``.
        fall: the same to the right.
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


def mean_se(curves: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard error over seeds, s / √S with the sample standard deviation s.

    Args:
        curves: (S, A), one curve a seed. NaN where there is nothing to average makes NaN.

    Returns:
        mean (A,) and standard error (A,), float64; the error of a single seed is NaN.
    """
    values = np.asarray(curves, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise InputError(f"curves of shape {values.shape}", expected="(S, A), one curve a seed", hint="stack them")
    if len(values) < 2:
        return values.mean(0), np.full(values.shape[1], math.nan)
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def find_peak(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the minimum to the left, the peak and the minimum to the right of curves; indices into the last axis.

    The peak is the point of largest prominence, min(m_p - min_{l <= p} m_l, m_p - min_{r >= p} m_r): a curve that starts
    higher than its peak (too small a network says nothing) still has that peak. Where no point has any (monotone, flat),
    it is the largest value, and one of the minima is the peak itself.

    Args:
        mean: (..., A).

    Returns:
        left, peak, right: int64 (...,). Cost O(A) a curve.
    """
    left_least = np.minimum.accumulate(mean, -1)
    right_least = np.minimum.accumulate(mean[..., ::-1], -1)[..., ::-1]
    prominence = np.minimum(mean - left_least, mean - right_least)
    best = np.where(prominence == prominence.max(-1, keepdims=True), mean, -np.inf)
    peak = best.argmax(-1)
    places = np.arange(mean.shape[-1])
    left = np.where(places <= peak[..., None], mean, np.inf).argmin(-1)
    right = np.where(places >= peak[..., None], mean, np.inf).argmin(-1)
    return left, peak, right


def peak(curves: Any, axis: Any = None, *, metric: str = "test_error") -> Peak:
    """Compute the cross-fitted rise and fall of the mean curve over seeds.

    For a split of the seeds in halves H and G, with (l, p, r) found on the mean of H::

        rise_H = mean over s in G of c_s(p) - c_s(l)        fall_H = mean over s in G of c_s(p) - c_s(r)

    and likewise with H and G exchanged. The estimate is the mean of both directions over all splits (64 random ones for more
    than 8 seeds). Each is unbiased for the curve's true difference at the points that were picked, so a flat or monotone
    curve has no rise and fall on average; what is picked on the same seeds always has both. Where halves pick beside the
    true peak, the estimate is below the true height.

    Standard error: differences are paired by seed; with v the sample variance of c_s(p) - c_s(l) within a half, a split has
    (v_H / |H| + v_G / |G|) / 4, and the splits, which share their seeds, together at most the mean of these.

    Args:
        curves: (S, A), S >= 4, finite.
        axis: (A,) numbers; default 0, 1, ...
        metric: a word for the result.

    Raises:
        InputError: fewer than 4 seeds, no axis, wrong shapes, NaN.

    Cost: O(splits · S · A). Source: sample splitting, Cox 1975; cross-fitting, Chernozhukov et al. 2018.

    >>> falling = np.array([[0.5, 0.4, 0.3]] * 4)
    >>> found = peak(falling, [1, 2, 3])
    >>> found.axis_value, found.rise, round(found.fall, 3)
    (1.0, 0.0, 0.2)
    """
    values = as_tensor(curves, "curves").double().cpu().numpy()
    if values.ndim != 2 or values.shape[0] < FEWEST or values.shape[1] == 0:
        raise InputError(
            f"curves of shape {values.shape}",
            expected=f"(S, A) with S >= {FEWEST} seeds: each half of them needs two for a standard error",
            hint="run more seeds",
        )
    S, A = values.shape
    places = np.arange(A, dtype=np.float64) if axis is None else as_tensor(axis, "axis").double().cpu().numpy()
    if places.shape != (A,):
        raise InputError(f"axis of shape {places.shape}", expected=f"({A},), one value a column", hint="pass them all")

    halves = _halves(S)  # (J, S) bool
    picking = np.concatenate([halves, ~halves])
    weights = picking / picking.sum(1, keepdims=True)
    left, top, right = find_peak(weights @ values)  # (2J,)
    evaluating = ~picking
    rise, rise_se = _held_out(values, top, left, evaluating)
    fall, fall_se = _held_out(values, top, right, evaluating)
    mean, se = mean_se(values)
    at = int(find_peak(mean)[1])
    picked = (float(places[top].min()), float(places[top].max()))
    return Peak(metric, at, float(places[at]), picked, float(mean[at]), float(se[at]), rise, rise_se, fall, fall_se, S)


def _held_out(values: np.ndarray, high: np.ndarray, low: np.ndarray, evaluating: np.ndarray) -> tuple[float, float]:
    """Mean of c(high) - c(low) over the evaluating seeds of each line, averaged over lines, and its standard error."""
    differences = (values[:, high] - values[:, low]).T  # (2J, S)
    count = evaluating.sum(1)
    means = (differences * evaluating).sum(1) / count
    squares = ((differences - means[:, None]) ** 2 * evaluating).sum(1) / (count - 1)
    # A split has two lines, each with weight 1/2: (v_H/|H| + v_G/|G|) / 4, and that averaged over splits.
    return float(means.mean()), math.sqrt(float((squares / count).mean()) / 2)


def _halves(S: int) -> np.ndarray:
    """Splits of S seeds in halves, (J, S) bool: all of them up to 8 seeds, else 64 drawn with a fixed seed."""
    if S <= 8:
        rows = [own for own in combinations(range(S), S // 2) if S % 2 or 0 in own]
    else:
        generator = np.random.default_rng(S)
        rows = [generator.permutation(S)[: S // 2] for _ in range(MOST_SPLITS)]
    halves = np.zeros((len(rows), S), dtype=bool)
    for line, own in zip(halves, rows, strict=True):
        line[list(own)] = True
    return halves
