"""True-positive rate at a false-positive rate, with an interval that includes the error of the threshold."""

from dataclasses import dataclass

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_number, as_tensor
from kernelmem.core.errors import InputError

RESOLUTION = 10  # expected non-members above the threshold, below which no rate is reported
SMALLEST_EFFECT = 0.5  # of the ratio of variances, which is estimated from few targets
GRID = 200  # largest number of counts of non-members above the threshold that an interval averages over


@dataclass(frozen=True)
class TprAtFpr:
    """True-positive rate of an attack at one false-positive rate.

    Attributes:
        fpr: false-positive rate.
        value: true-positive rate; None if there are fewer than 10 / fpr non-members.
        low: lower limit of the interval, valid with any number of non-members.
        high: upper limit.
        level: confidence level.
        n_nonmembers: number of non-members, of all targets together.
        n_targets: number of target models; the interval is over targets if there are several, over rows if there is one.
        reason: why there is no value, or "".
    """

    fpr: float
    value: float | None
    low: float
    high: float
    level: float
    n_nonmembers: int
    n_targets: int
    reason: str

    def precision(self, prior: float) -> float | None:
        """Return the share of members among rows called members (PPV), if the share ``prior`` of all rows are members."""
        prior = as_number(prior, "prior", exclusive=True, maximum=1.0)
        if self.value is None:
            return None
        return prior * self.value / (prior * self.value + (1 - prior) * self.fpr)

    def __str__(self) -> str:
        """Return rate, estimate and interval in one line."""
        pooled = f", pooled over {self.n_targets} targets" if self.n_targets > 1 else ""
        if self.value is None:
            return f"TPR at FPR {self.fpr:g}: not reported, {self.reason} (at most {self.high:.3g})"
        return (
            f"TPR at FPR {self.fpr:g}: {self.value:.3g} ({self.low:.3g} to {self.high:.3g};"
            f" {self.n_nonmembers:,} non-members{pooled})"
        )


def tpr_at_fpr(
    scores: ArrayLike, members: ArrayLike, fpr: float, *, level: float = 0.95, variance_factor: float = 1.0
) -> TprAtFpr:
    """Return the share of members above the threshold that the share ``fpr`` of non-members exceeds.

    With c_j the share of members above the j-th largest of N non-members, tied rows in random order, the estimate is c at
    j = fpr (N + 1), interpolated: a score without information has expectation fpr, a constant score exactly fpr.

    The number of non-members above the true threshold is Binomial(N, fpr), whatever the score. The interval averages
    Clopper-Pearson limits of the share of members over this number, so that it includes the error of the threshold. For
    several targets, N and the number of members are replaced by effective numbers, from the variances of both rates over
    targets and Student's t (as Korn and Graubard 1998), because rows of one target are not independent.

    Args:
        scores: (n,) scores of one target, or (K, n) scores of K targets that are pooled; larger = more likely a member.
        members: bool of the same shape.
        fpr: false-positive rate in (0, 1).
        level: confidence level.
        variance_factor: variance of a mean over several targets relative to that of independent targets; above 1 if the
            targets are each other's shadow models (``Membership.variance_factor``).

    Raises:
        InputError: shapes that differ, scores that are not finite, only members or only non-members, a number out of range.

    >>> round(tpr_at_fpr([3.0] * 200, [True] * 100 + [False] * 100, 0.1).value, 12)
    0.1
    """
    fpr = as_number(fpr, "fpr", exclusive=True, maximum=0.999)
    level = as_number(level, "level", minimum=0.01, maximum=0.9999)
    factor = as_number(variance_factor, "variance_factor", minimum=1.0)
    return roc(scores, members, (fpr,), level=level, variance_factor=factor)[0]


def roc(
    scores: ArrayLike,
    members: ArrayLike,
    fprs: tuple[float, ...] | list[float],
    *,
    level: float = 0.95,
    variance_factor: float = 1.0,
) -> list[TprAtFpr]:
    """Return :func:`tpr_at_fpr` at several false-positive rates."""
    values, flags = as_scored(scores, members)
    counts = members_above(values, flags)
    return [_rate(values, flags, counts, fpr, level, variance_factor) for fpr in fprs]


def as_scored(scores: ArrayLike, members: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (K, n) float64 and members (K, n) bool; (n,) is one target.

    Raises:
        InputError: shapes that differ, values that are not finite, only members or only non-members.
    """
    values = as_tensor(scores, "scores", dtype=torch.float64).cpu().numpy()
    flags = as_tensor(members, "members").cpu().numpy()
    if values.shape != flags.shape or values.ndim not in (1, 2) or not np.isin(flags, (0, 1)).all():
        raise InputError(
            f"scores of shape {values.shape} and members of shape {flags.shape} and dtype {flags.dtype}",
            expected="scores and bool members of the same shape, (n,) or (K, n)",
            hint="pass one score and one flag per row",
        )
    values, flags = np.atleast_2d(values), np.atleast_2d(flags).astype(bool)
    if flags.all() or not flags.any():
        raise InputError(
            f"{int(flags.sum())} members among {flags.size} rows",
            expected="at least one member and one non-member",
            hint="include rows that the target was not trained on",
        )
    return values, flags


def members_above(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return c (N + 2,): the expected number of members above the j-th largest of N non-members, ties in random order.

    c_0 = 0 and c_{N+1} is the number of members.
    """
    _, group = np.unique(-scores.ravel(), return_inverse=True)
    flags = members.ravel()
    positives = np.bincount(group, flags)
    negatives = np.bincount(group, ~flags).astype(int)
    before = np.cumsum(positives) - positives
    position = np.arange(1, negatives.sum() + 1) - np.repeat(np.cumsum(negatives) - negatives, negatives)
    within = np.repeat(positives / (negatives + 1), negatives) * position
    return np.concatenate([[0.0], np.repeat(before, negatives) + within, [float(flags.sum())]])


def _rate(
    scores: np.ndarray, members: np.ndarray, counts: np.ndarray, fpr: float, level: float, factor: float
) -> TprAtFpr:
    n_members, n_nonmembers = int(members.sum()), int((~members).sum())
    value = float(np.interp(fpr * (n_nonmembers + 1), np.arange(len(counts)), counts)) / n_members
    effective = (n_members, n_nonmembers)
    if len(scores) > 1:
        effective = _effective_sizes(scores, members, fpr, level, factor)
    low, high = _limits(counts, n_members, effective, fpr, level)
    needed = RESOLUTION / fpr
    reason = ""
    if n_nonmembers < needed:
        reason = f"{n_nonmembers:,} non-members, fewer than {RESOLUTION} / {fpr:g} = {needed:,.0f}"
    estimate = None if reason else value
    return TprAtFpr(fpr, estimate, min(low, value), max(high, value), level, n_nonmembers, len(scores), reason)


def _effective_sizes(
    scores: np.ndarray, members: np.ndarray, fpr: float, level: float, factor: float
) -> tuple[float, float]:
    """Return effective numbers of members and of non-members of K targets: N · binomial variance / variance over targets.

    Both are reduced by (z / t)² for the K − 1 degrees of freedom of the variance over targets, and by ``factor`` for the
    dependence of targets.
    """
    from scipy.stats import norm, t

    K = len(scores)
    threshold = np.quantile(scores[~members], 1 - fpr)
    above = (scores > threshold) + 0.5 * (scores == threshold)
    quantile = (1 + level) / 2
    reduction = float(norm.ppf(quantile) / t.ppf(quantile, K - 1)) ** 2
    sizes = []
    for flags in (members, ~members):
        size = flags.sum(1)
        rates = (above * flags).sum(1) / np.maximum(size, 1)
        mean = float(above[flags].mean())
        # variance of the pooled rate over targets, targets weighted by their number of rows
        over_targets = float(((size / size.sum()) ** 2 * (rates - mean) ** 2).sum()) * K / (K - 1)
        binomial = mean * (1 - mean) / int(size.sum())
        effect = over_targets / binomial if binomial > 0 else 1.0
        sizes.append(int(size.sum()) / max(effect, SMALLEST_EFFECT) / factor * reduction)
    return sizes[0], sizes[1]


def _limits(
    counts: np.ndarray, n_members: int, effective: tuple[float, float], fpr: float, level: float
) -> tuple[float, float]:
    """Return the limits of the share of members above the true threshold, from c (N + 2,) and effective numbers of rows."""
    from scipy.special import betainc
    from scipy.stats import binom

    N, size = len(counts) - 2, effective[0]
    trials = max(round(effective[1]), 1)
    lowest, highest = (int(j) for j in binom.ppf([1e-9, 1 - 1e-9], trials, fpr))
    if highest - lowest < GRID:
        above = np.arange(lowest, highest + 1)
        weights = binom.pmf(above, trials, fpr)
    else:
        above = binom.ppf((np.arange(GRID) + 0.5) / GRID, trials, fpr)
        weights = np.full(GRID, 1 / GRID)
    weights = weights / weights.sum()
    # threshold between the j-th and the (j + 1)-th largest non-member
    j = above * (N / trials)
    share = np.interp(j, np.arange(N + 2), counts) / n_members
    share_next = np.interp(np.minimum(j + 1, N + 1), np.arange(N + 2), counts) / n_members
    x, x_next = share * size, share_next * size
    tail = (1 - level) / 2

    def below_low(p: float) -> float:  # Pr[lower fiducial value < p]
        return float(weights @ np.where(x <= 0, 1.0, betainc(np.maximum(x, 1e-9), size - x + 1, p)))

    def below_high(p: float) -> float:  # Pr[upper fiducial value < p]
        rest = size - x_next
        return float(weights @ np.where(rest <= 0, 0.0, betainc(x_next + 1, np.maximum(rest, 1e-9), p)))

    return _solve(below_low, tail), _solve(below_high, 1 - tail)


def _solve(increasing, value: float) -> float:
    """Return the p in [0, 1] at which an increasing function of p has ``value``, by bisection of the logarithm of p."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2 if low > 0 or high > 1e-2 else high / 4
        low, high = (middle, high) if increasing(middle) < value else (low, middle)
    return (low + high) / 2
