"""Exposure of canaries: their ranks among candidates that were not planted, in bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_tensor, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.canaries.coverage import CanaryCoverage
from kernelmem.statistics import as_level

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ExposureGroup:
    """Canaries that were inserted the same number of times.

    Attributes:
        repetitions: number of times that each was inserted; 0: the control.
        n_canaries: number of canaries.
        mean: mean exposure, in bits.
        low, high: interval of ``mean`` for other canaries and these references.
        n_first: number of canaries with rank 1, whose exposure the number of references limits.
    """

    repetitions: int
    n_canaries: int
    mean: float
    low: float
    high: float
    n_first: int


@dataclass(frozen=True, eq=False, repr=False)
class Exposure(Result):
    """Exposure of k canaries among R − 1 references, in bits; larger = more memorized. It speaks of this one model.

    Attributes:
        exposure: (k,) float64, log2 R − log2 rank, in 0..log2 R.
        rank: (k,) int64, in 1..R; rank / R is the p-value of the hypothesis that the canary was not memorized.
        repetitions: (k,) int64, number of times that each canary was inserted; 0: not inserted (control).
        n_candidates: number R of candidates: the references and the canary itself.
        groups: mean exposure for each number of repetitions, in increasing order.
        expected_control: expected exposure of a canary that was not inserted, log2 R − log2(R!) / R.
        control_p: p-value of the hypothesis that scores of control canaries have the distribution of the references
            (Kolmogorov-Smirnov, two samples); None without control.
        level: confidence level of the intervals.
        covered: True if a :class:`CanaryCoverage` showed that every inserted canary received loss.
    """

    exposure: Tensor
    rank: Tensor
    repetitions: Tensor
    n_candidates: int
    groups: tuple[ExposureGroup, ...]
    expected_control: float
    control_p: float | None
    level: float
    covered: bool

    shapes: ClassVar[Mapping[str, str]] = {"exposure": "k", "rank": "k", "repetitions": "k"}

    @property
    def expected_control_se(self) -> float:
        """Standard error of ``expected_control`` for these references, log2 e / √(R − 1)."""
        return 1 / (math.log(2) * math.sqrt(self.n_candidates - 1))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per canary, with columns ``repetitions``, ``rank`` and ``exposure``."""
        import pandas as pd  # slow to import

        columns = {"repetitions": self.repetitions, "rank": self.rank, "exposure": self.exposure}
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()}).rename_axis("canary")

    def plot(self) -> "Figure":
        """Return a figure of exposure against repetitions, with the expectation without insertion and the maximum."""
        from kernelmem.plotting.memorization import exposure_figure  # matplotlib is slow to import

        return exposure_figure(self)

    def __str__(self) -> str:
        """Return mean exposure by number of repetitions, the control, and what was checked."""
        maximum = math.log2(self.n_candidates)
        lines = [
            f"exposure of {_canaries(len(self.rank))} among {self.n_candidates:,} candidates (at most {maximum:.2f} bits,"
            f" {self.level:.0%} intervals)"
        ]
        for group in self.groups:
            name = "not inserted" if group.repetitions == 0 else f"inserted {group.repetitions} x"
            first = f", {group.n_first} at the maximum" if group.n_first else ""
            lines.append(
                f"  {name:<14} {group.mean:6.2f} bits ({group.low:.2f} to {group.high:.2f}), {_canaries(group.n_canaries)}{first}"
            )
        control = f"  expected if not inserted: {self.expected_control:.2f} ± {self.expected_control_se:.2g} bits"
        if self.control_p is None:
            control += "; no control: leave some canaries out of the training set (repetitions 0)"
        else:
            control += f"; control scores like the references: p = {self.control_p:.2g}"
        checked = "every inserted canary received loss" if self.covered else "not checked that canaries received loss"
        return "\n".join([*lines, control, f"  {checked}"])


def exposure(
    canary_scores: ArrayLike,
    reference_scores: ArrayLike,
    *,
    repetitions: ArrayLike | None = None,
    coverage: CanaryCoverage | None = None,
    level: float = 0.95,
) -> Exposure:
    """Return the exposure of canaries, log2 R − log2 rank, with the rank among R − 1 references and the canary itself.

    References are candidates from the distribution of the canaries that were in no training set. The rank is
    1 + #{references with score ≥ that of the canary}: ties count against memorization, so that equal scores give 0 bits.
    A canary that was not inserted has a uniform rank and log2 R − log2(R!) / R bits on average, which tends to
    log2 e = 1.44 (1.40 at R = 100), not to 0: compare inserted canaries with canaries that were left out.

    The interval of a mean m, for other canaries and the same references, is the union of m ± t s / √k with that on the scale
    log(m / (log2 R − m)), cut at 0 and log2 R; t is Student's with k − 1 degrees of freedom. If all k exposures are equal, its
    ends are those that an unseen share 1 − (α/2)^(1/k) of other values allows. At level 0.95 it covers 93 to 97 % with 3 to
    100 canaries, where m ± t s / √k alone covers 87 to 96 %.

    Args:
        canary_scores: (k,) scores of the canaries, larger = more memorized, e.g. minus the loss.
        reference_scores: (N,) scores of the references by the same model, N ≥ 2; R = N + 1.
        repetitions: (k,) number of times that each canary was inserted in the training set, 0 for the control; None: 1 each.
        coverage: result of :func:`canary_coverage` for these canaries in this order.
        level: confidence level.

    Raises:
        InputError: NaN or infinite scores, no canary, fewer than 2 references, shapes that differ, repetitions that are not
            whole numbers ≥ 0; or, by the coverage, an inserted canary that never received loss, or one of the control that did.

    Cost: O((k + N) log N).

    Source: Carlini et al. 2019.

    >>> exposure([3.0, 0.0], torch.arange(7.0) - 4).exposure.tolist()
    [3.0, 1.0]
    """
    level = as_level(level)
    scores = as_tensor(canary_scores, "canary_scores", dtype=torch.float64).cpu().numpy()
    references = as_tensor(reference_scores, "reference_scores", dtype=torch.float64).cpu().numpy()
    if scores.ndim != 1 or references.ndim != 1 or len(scores) < 1 or len(references) < 2:
        raise InputError(
            f"canary_scores of shape {scores.shape} and reference_scores of shape {references.shape}",
            expected="(k,) and (N,), at least one canary and two references",
            hint="score candidates that were not planted, drawn like the canaries, with the same model",
        )
    inserted = _as_repetitions(repetitions, len(scores))
    if coverage is not None:
        _check_coverage(coverage, inserted)
    R = len(references) + 1
    rank = R - np.searchsorted(np.sort(references), scores)
    bits = math.log2(R) - np.log2(rank)
    groups = tuple(
        exposure_group(int(value), bits[inserted == value], math.log2(R), level) for value in np.unique(inserted)
    )
    return Exposure(
        exposure=torch.from_numpy(bits),
        rank=torch.from_numpy(rank.astype(np.int64)),
        repetitions=torch.from_numpy(inserted),
        n_candidates=R,
        groups=groups,
        expected_control=math.log2(R) - math.lgamma(R + 1) / math.log(2) / R,
        control_p=_same_distribution(scores[inserted == 0], references),
        level=level,
        covered=coverage is not None,
    )


def _canaries(count: int) -> str:
    return "1 canary" if count == 1 else f"{count:,} canaries"


def _as_repetitions(repetitions: ArrayLike | None, k: int) -> np.ndarray:
    """Return the numbers of insertions, (k,) int64.

    Raises:
        InputError: another shape, negative or fractional numbers.
    """
    if repetitions is None:
        return np.ones(k, dtype=np.int64)
    values = as_tensor(repetitions, "repetitions", dtype=torch.float64).cpu().numpy()
    if values.shape != (k,) or (values < 0).any() or (values != values.round()).any() or (values > 2**31).any():
        raise InputError(
            f"repetitions of shape {values.shape}",
            expected=f"a whole number >= 0 for each of the {k} canaries",
            hint="pass how often each canary was inserted, and 0 for canaries that were left out",
        )
    return values.astype(np.int64)


def _check_coverage(coverage: CanaryCoverage, inserted: np.ndarray) -> None:
    """Check that every inserted canary received loss, and none of the control.

    Raises:
        InputError: it is not so, or the coverage is that of another number of canaries.
    """
    check_instance(coverage, "coverage", CanaryCoverage, hint="pass kernelmem.memorization.canary_coverage(...)")
    counts = coverage.counts.numpy()
    if counts.shape != inserted.shape:
        raise InputError(
            f"coverage of {len(counts)} canaries and scores of {len(inserted)}",
            expected="the same canaries in the same order",
            hint="compute the coverage of all scored canaries; [] is a canary that was not planted",
        )
    for wrong, problem, hint in (
        ((inserted > 0) & (counts == 0), "inserted but never received loss", "check the data loader, or remove them"),
        ((inserted == 0) & (counts > 0), "of the control but received loss", "set their repetitions"),
    ):
        if wrong.any():
            raise InputError(
                f"{int(wrong.sum())} canaries {problem} (the first is canary {int(wrong.argmax())})",
                expected="loss for every inserted canary and none for the control",
                hint=hint,
            )


def exposure_group(repetitions: int, bits: np.ndarray, maximum: float, level: float) -> ExposureGroup:
    """Return the mean of the exposures (k,) of one group with its interval, as in :func:`exposure`; ``maximum`` is log2 R."""
    from scipy.stats import t  # slow to import

    k, mean, tail = len(bits), float(bits.mean()), (1 - level) / 2
    if bits.min() == bits.max():
        mean = float(bits[0])
        unseen = 1 - tail ** (1 / k)  # upper end of a share of which k canaries show none
        low, high = mean * (1 - unseen), mean + (maximum - mean) * unseen
    else:
        half_width = float(t.isf(tail, k - 1)) * float(bits.std(ddof=1)) / math.sqrt(k)
        logit = math.log(mean / (maximum - mean))
        ends = logit + np.array([-1, 1]) * half_width * maximum / (mean * (maximum - mean))
        low, high = (maximum * expit(ends)).tolist()
        low, high = max(0.0, min(low, mean - half_width)), min(maximum, max(high, mean + half_width))
    return ExposureGroup(repetitions, k, mean, low, high, int((bits == maximum).sum()))


def _same_distribution(control: np.ndarray, references: np.ndarray) -> float | None:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test; None without control."""
    from scipy.stats import ks_2samp  # slow to import

    if not len(control):
        return None
    # Exact lattice paths for small samples; both are accurate where they are used
    method = "exact" if len(control) * len(references) <= 10**6 else "asymp"
    return float(ks_2samp(control, references, method=method).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
