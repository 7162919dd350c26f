"""Area under the ROC curve (AUROC), its standard error and its confidence interval."""

import math

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.statistics.intervals import Interval, as_level


def auroc(scores: ArrayLike, flags: ArrayLike) -> float:
    """Return P(score of a flagged row > score of another row) + P(equal) / 2.

    AUROC = (Σ midranks of the m flagged rows − m (m + 1) / 2) / (m (n − m)), the Mann-Whitney statistic divided by its maximum.

    Args:
        scores: real numbers (n,), larger = more like a flagged row.
        flags: bool or 0/1 (n,), at least one of each.

    Raises:
        InputError: NaN or infinite scores, shapes that differ, flags other than 0 and 1, all or none flagged.

    Cost: O(n log n).

    >>> auroc([0.9, 0.8, 0.1, 0.2], [True, False, False, True])
    0.75
    """
    from scipy.stats import rankdata  # slow to import

    x, flagged = _check(scores, flags)
    return auroc_from_midranks(rankdata(x)[flagged], len(x))


def auroc_from_midranks(midranks: np.ndarray, n_rows: int) -> float:
    """Return the AUROC from the midranks (m,) of the m flagged rows among all ``n_rows`` scores; nothing is checked."""
    m = len(midranks)
    return float((midranks.sum() - m * (m + 1) / 2) / (m * (n_rows - m)))


def auroc_standard_error(scores: ArrayLike, flags: ArrayLike) -> float:
    """Return DeLong's standard error of the AUROC, √(s₁² / m + s₀² / (n − m)).

    s₁ and s₀ are the standard deviations of the placements: for each flagged row the share of other rows with a smaller
    score, and for each other row the share of flagged rows with a larger score; ties count one half. It is 0 for groups that
    the scores separate, where the sample does not determine it: use :func:`auroc_interval`. For a group of one row it is
    undefined, and the upper bound √(AUROC (1 − AUROC)) of Birnbaum and Klose (1957) is returned.

    Args and errors: those of :func:`auroc`. Cost: O(n log n).

    Source: DeLong, DeLong and Clarke-Pearson 1988; midranks: Sun and Xu 2014.

    >>> auroc_standard_error([3.0, 2.0, 1.0, 0.0], [True, True, False, False])
    0.0
    """
    x, flagged = _check(scores, flags)
    area, variance, _ = _delong(x, flagged)
    return math.sqrt(area * (1 - area) if math.isnan(variance) else variance)


def auroc_interval(scores: ArrayLike, flags: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the AUROC with a confidence interval that also holds for few flagged rows and for an AUROC of 1.

    The interval is the union of two:

    - DeLong's on the logit scale, logit A ± t √V / (A (1 − A)), with Student's t of Welch's degrees of freedom; it follows the
      shape of the two distributions, and shrinks to a point where the sample separates them;
    - Newcombe's, the areas θ with (A − θ)² ≤ z² V(θ), V(θ) = θ (1 − θ) (1 + (N − 1) ((1 − θ) / (2 − θ) + θ / (1 + θ))) /
      (m (n − m)) and N = n / 2; it assumes a shape, and has a width for every sample.

    For a group of one row, V(θ) is the largest possible variance, θ (1 − θ) / min(m, n − m).

    Coverage at level 0.95, 1,000 other rows, in percent (standard deviation of the flagged scores 1, then 2; ± 0.4), compared
    with A ± 1.96 times DeLong's standard error at standard deviation 1:

    ======  ======  ==========  ==========  =========
    AUROC   m       equal       unequal     ± 1.96 SE
    ======  ======  ==========  ==========  =========
    .5      5       97.7        96.1        87.5
    .5      30      95.7        96.3        93.7
    .5      150     95.4        95.7        94.9
    .8      5       99.4        97.4        81.5
    .8      30      96.3        95.7        92.5
    .8      150     95.6        95.2        94.5
    .95     5       99.5        99.5        66.5
    .95     30      98.4        94.4        87.8
    .95     150     97.6        94.8        93.6
    .998    5       99.0        98.2        40.8
    .998    30      99.1        96.6        66.4
    .998    150     99.7        97.9        83.7
    ======  ======  ==========  ==========  =========

    Exponential scores, whose tails are heavier: 93.6 to 99.5. Rows must be independent: for several models on the same rows,
    average the scores per row first, or use one AUROC per model and :func:`mean_interval`.

    Args:
        scores: real numbers (n,), larger = more like a flagged row.
        flags: bool or 0/1 (n,), at least one of each.
        level: confidence level, between 0 and 1.

    Raises:
        InputError: those of :func:`auroc`, or a level out of range.

    Cost: O(n log n).

    Source: DeLong, DeLong and Clarke-Pearson 1988; Newcombe 2006 (method 5).

    >>> print(auroc_interval([3.0, 2.0, 1.0, 0.0], [True, True, False, False]))
    1 (0.3856 to 1)
    """
    from scipy.stats import norm, t

    level = as_level(level)
    x, flagged = _check(scores, flags)
    area, variance, degrees_of_freedom = _delong(x, flagged)
    m, n_others = int(flagged.sum()), int((~flagged).sum())
    z = float(norm.isf((1 - level) / 2))
    low, high = _newcombe_lower_end(area, m, n_others, z), 1 - _newcombe_lower_end(1 - area, m, n_others, z)
    if variance > 0 and 0 < area < 1:
        half_width = float(t.isf((1 - level) / 2, degrees_of_freedom)) * math.sqrt(variance) / (area * (1 - area))
        logit = math.log(area / (1 - area))
        low, high = min(low, _logistic(logit - half_width)), max(high, _logistic(logit + half_width))
    return Interval(area, low, high, level)


def _check(scores: ArrayLike, flags: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as float64 and flags as bool, both (n,).

    Raises:
        InputError: shapes differ, a flag is not 0 or 1, or all or none are flagged.
    """
    x = as_tensor(scores, "scores", dtype=torch.float64).cpu().numpy()
    flagged = as_tensor(flags, "flags", dtype=torch.float64).cpu().numpy()
    if x.ndim != 1 or flagged.shape != x.shape:
        raise InputError(
            f"scores of shape {x.shape} and flags of shape {flagged.shape}",
            expected="one score and one flag per row, both of shape (n,)",
            hint="pass one-dimensional scores and flags of the same rows",
        )
    if not np.isin(flagged, (0, 1)).all() or int(flagged.sum()) in (0, len(x)):
        raise InputError(
            f"flags of {len(x)} rows with {len(np.unique(flagged))} distinct values",
            expected="True or 1 for flagged rows and False or 0 for the others, at least one of each",
            hint="pass a mask of the rows, in which some are True and some are False",
        )
    return x, flagged.astype(bool)


def _delong(scores: np.ndarray, flagged: np.ndarray) -> tuple[float, float, float]:
    """Return the AUROC, DeLong's variance of it and Welch's degrees of freedom; NaN if a group has one row."""
    from scipy.stats import rankdata

    m, n_others = int(flagged.sum()), int((~flagged).sum())
    midranks = rankdata(scores)
    area = auroc_from_midranks(midranks[flagged], len(scores))
    if min(m, n_others) < 2:
        return area, math.nan, math.nan
    # Placements: the share of the other group below a row, from its rank among all rows minus its rank in its group.
    placements = (midranks[flagged] - rankdata(scores[flagged])) / n_others
    other_placements = 1 - (midranks[~flagged] - rankdata(scores[~flagged])) / m
    first, second = float(placements.var(ddof=1)) / m, float(other_placements.var(ddof=1)) / n_others
    variance = first + second
    if variance == 0:
        return area, 0.0, math.nan
    return area, variance, variance**2 / (first**2 / (m - 1) + second**2 / (n_others - 1))


def _newcombe_lower_end(area: float, m: int, n_others: int, z: float) -> float:
    """Return the smallest θ with (area − θ)² ≤ z² V(θ), for groups of ``m`` and ``n_others`` rows."""
    from scipy.optimize import brentq

    if area <= 0:
        return 0.0

    def excess(theta: float) -> float:
        if min(m, n_others) < 2:
            variance = theta * (1 - theta) / min(m, n_others)
        else:
            dependence = (1 - theta) / (2 - theta) + theta / (1 + theta)
            variance = theta * (1 - theta) * (1 + ((m + n_others) / 2 - 1) * dependence) / (m * n_others)
        return (area - theta) ** 2 - z**2 * variance

    # θ = area = 1 solves the equation too, with variance 0
    upper = min(area, 1 - 1e-12)
    return float(brentq(excess, 0.0, upper, xtol=1e-13)) if excess(upper) < 0 else upper  # pyright: ignore[reportArgumentType]


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
