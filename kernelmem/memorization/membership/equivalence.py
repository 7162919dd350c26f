"""Equivalence test: an attack does no better than guessing by more than a margin, with the power of the test."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_list, as_number
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.membership.rates import TprAtFpr, as_scored, roc
from kernelmem.statistics import Interval, auroc, auroc_interval, mean_interval

POWER = 0.8  # probability with which the stated smallest AUC is noticed


@dataclass(frozen=True, eq=False, repr=False)
class Equivalence(Result):
    """Intersection-union test of "AUC below a margin and every TPR below a multiple of its FPR".

    Attributes:
        equivalent: all upper limits (level 1 − 2 alpha) are below their margins; the probability of this is at most alpha
            if one of the quantities is at or above its margin.
        detected: a lower limit is above chance, after Bonferroni's correction for the number of quantities.
        auc: AUC with its interval at level 1 − 2 alpha.
        auc_margin: margin of the AUC.
        rates: true-positive rates with intervals at level 1 − 2 alpha.
        tpr_factor: margin of a true-positive rate, as a multiple of the false-positive rate.
        not_shown: the quantities that were not shown to be below their margins, with the reason.
        detectable_auc: smallest AUC that would have been detected with probability 0.8.
        power: probability that an attack that guesses passes the test on the AUC.
        alpha: size of the test.
    """

    equivalent: bool
    detected: bool
    auc: Interval
    auc_margin: float
    rates: tuple[TprAtFpr, ...]
    tpr_factor: float
    not_shown: tuple[str, ...]
    detectable_auc: float
    power: float
    alpha: float

    def __str__(self) -> str:
        """Return the verdict and its power."""
        bounds = f"AUC < {self.auc_margin:g}, TPR < {self.tpr_factor:g} × FPR"
        verdict = f"shown at size {self.alpha:g}: {bounds}" if self.equivalent else f"not shown: {bounds}"
        if self.detected:
            verdict += "; better than guessing"
        lines = [f"equivalence to guessing {verdict}"]
        lines += [f"  {reason}" for reason in self.not_shown]
        lines.append(
            f"  an AUC of {self.detectable_auc:.3f} or more would have been detected with probability {POWER:g};"
            f" guessing passes the test on the AUC with probability {self.power:.2g}"
        )
        return "\n".join(lines)


def equivalence_test(
    scores: ArrayLike,
    members: ArrayLike,
    *,
    auc_margin: float = 0.55,
    tpr_factor: float = 2.0,
    fprs: tuple[float, ...] = (0.01, 0.001),
    alpha: float = 0.05,
    variance_factor: float = 1.0,
) -> Equivalence:
    """Test that an attack does not do better than guessing by more than a margin.

    Equivalence is concluded if the upper limit (one-sided level 1 − alpha) of the AUC is below ``auc_margin`` and that of the
    TPR at every FPR below ``tpr_factor`` · FPR (an intersection-union test: no correction is needed). A rate below its
    resolution (10 / FPR non-members) is never shown. Absence of a detection is not evidence: see ``power``.

    Args:
        scores: (n,) of one target, or (K, n) of K targets; larger = more likely a member.
        members: bool of the same shape.
        auc_margin: margin of the AUC, in (0.5, 1).
        tpr_factor: margin of the TPR relative to the FPR, above 1.
        fprs: false-positive rates.
        alpha: size of the test.
        variance_factor: variance of the mean AUC relative to that of independent targets; above 1 if the targets are each
            other's shadow models (``Membership.variance_factor``).

    Raises:
        InputError: shapes that differ, or a number out of range.

    Source: intersection-union tests: Berger 1982.
    """
    values, flags = as_scored(scores, members)
    auc_margin = as_number(auc_margin, "auc_margin", minimum=0.5, maximum=1.0, exclusive=True)
    tpr_factor = as_number(tpr_factor, "tpr_factor", minimum=1.0, exclusive=True)
    alpha = as_number(alpha, "alpha", minimum=1e-4, maximum=0.2)
    rates_asked = tuple(
        as_number(f, "false-positive rate of fprs", maximum=0.5, exclusive=True) for f in as_list(fprs, "fprs")
    )
    variance_factor = as_number(variance_factor, "variance_factor", minimum=1.0)
    level = 1 - 2 * alpha
    auc = auc_over_targets(values, flags, level, variance_factor)
    rates = tuple(roc(values, flags, rates_asked, level=level, variance_factor=variance_factor))
    not_shown = [] if auc.high < auc_margin else [f"AUC: upper limit {auc.high:.3f}"]
    for rate in rates:
        if rate.value is None:
            not_shown.append(f"TPR at FPR {rate.fpr:g}: {rate.reason}")
        elif rate.high >= tpr_factor * rate.fpr:
            not_shown.append(f"TPR at FPR {rate.fpr:g}: upper limit {rate.high:.3g}")
    corrected = 1 - 2 * alpha / (1 + len(rates_asked))
    detected = auc_over_targets(values, flags, corrected, variance_factor).low > 0.5
    corrected_rates = roc(values, flags, rates_asked, level=corrected, variance_factor=variance_factor)
    detected |= any(r.low > r.fpr for r in corrected_rates)
    detectable, power = _power(flags, auc_margin, alpha, corrected, variance_factor)
    return Equivalence(
        not not_shown, detected, auc, auc_margin, rates, tpr_factor, tuple(not_shown), detectable, power, alpha
    )


def auc_over_targets(scores: np.ndarray, members: np.ndarray, level: float, factor: float = 1.0) -> Interval:
    """Return the AUC: the mean over targets with Student's t, or the interval over rows of one target.

    ``factor`` multiplies the variance of the mean over targets. Targets with equal AUCs, such as 1, have no variance: then
    the interval is that over the rows of one target, unless every score is the same, which has an AUC of 0.5 for any rows.
    """
    if len(scores) == 1:
        return auroc_interval(scores[0], members[0], level=level)
    areas = [auroc(s, f) for s, f in zip(scores, members, strict=True)]
    if min(areas) == max(areas) and bool((scores != scores[:, :1]).any()):
        return auroc_interval(scores[0], members[0], level=level)
    return share_interval(torch.tensor(areas, dtype=torch.float64), level, factor)


def share_interval(values: Tensor, level: float, factor: float) -> Interval:
    """Return the mean of K numbers in [0, 1] with Student's t and the variance of the mean multiplied by ``factor``."""
    interval = mean_interval(values, level=level)
    half_width = math.sqrt(factor) * (interval.high - interval.value)
    return Interval(interval.value, max(interval.value - half_width, 0.0), min(interval.value + half_width, 1.0), level)


def _power(
    members: np.ndarray, auc_margin: float, alpha: float, corrected: float, factor: float
) -> tuple[float, float]:
    """Return the smallest AUC that is detected with probability POWER, and the power of the test on the AUC at 0.5.

    The standard error is that of an AUC of 0.5 on untied scores, √((n + 1) / (12 n₁ n₀)) per target.
    """
    from scipy.stats import norm, t

    K = len(members)
    n1, n0 = members.sum(1).astype(float), (~members).sum(1).astype(float)
    error = math.sqrt(factor * float(((n1 + n0 + 1) / (12 * n1 * n0)).mean()) / K)
    quantile = norm.ppf if K == 1 else lambda p: t.ppf(p, K - 1)
    detectable = 0.5 + float(quantile((1 + corrected) / 2) + quantile(POWER)) * error
    power = float(norm.cdf((auc_margin - 0.5) / error - quantile(1 - alpha)))
    return min(detectable, 1.0), power
