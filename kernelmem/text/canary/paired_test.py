"""Paired tests of inserted canaries and their twins: sign test, sign flips, bound on the privacy loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import ArrayLike, InputError, Result, seed_sequence
from kernelmem.core.checks import as_count, as_tensor, check_instance, describe
from kernelmem.memorization.canaries import one_run_bound
from kernelmem.statistics import as_level, clopper_pearson
from kernelmem.text.canary.design import Canaries
from kernelmem.text.canary.exposure import SecretExposure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MIN_PAIRS = 4  # that one_run_bound accepts
MAX_PERMUTATIONS = 10**7
CHUNK = 2**22  # signs drawn at once
ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class PairCount:
    """Correct pairs among those with one number of copies, or among all.

    Attributes:
        repetitions: number of copies; 0: all pairs.
        n_pairs: number of pairs.
        n_ties: pairs whose scores are equal; the attacker abstains.
        n_right: pairs in which the inserted canary has the larger score.
        low, high: interval of the probability of a correct pair, among those without tie.
        p: one-sided p-value of the sign test.
        epsilon: lower bound on the privacy loss of replacing an inserted canary, with all its copies, by its twin.
        ceiling: the bound if all pairs without tie were correct.
    """

    repetitions: int
    n_pairs: int
    n_ties: int
    n_right: int
    low: float
    high: float
    p: float
    epsilon: float
    ceiling: float


@dataclass(frozen=True, eq=False, repr=False)
class PairedTest(Result):
    """Comparison of n inserted canaries with their twins; larger scores = more memorized.

    Attributes:
        difference: (n,) float64, score of the inserted canary minus that of its twin.
        repetitions: (n,) int64, copies of the inserted canary.
        all_pairs: counts of all pairs.
        tiers: counts by number of copies. Each bound holds on its own, with the same level.
        permutation_p: p-value of Σ difference under random signs, (1 + #) / (1 + permutations).
        permutations: number of random sign vectors.
        level: confidence level.
    """

    difference: Tensor
    repetitions: Tensor
    all_pairs: PairCount
    tiers: tuple[PairCount, ...]
    permutation_p: float
    permutations: int
    level: float

    shapes: ClassVar[Mapping[str, str]] = {"difference": "n", "repetitions": "n"}

    @property
    def epsilon(self) -> float:
        """Lower bound on ε of replacing an inserted canary by its twin, in nats, from all pairs."""
        return self.all_pairs.epsilon

    @property
    def epsilon_add_remove(self) -> float:
        """Lower bound on ε of adding or removing one inserted canary with all its copies: half of ``epsilon``."""
        return self.epsilon / 2

    @property
    def epsilon_per_row(self) -> float:
        """Lower bound on ε of adding or removing one training row, ``epsilon`` / (2 k), k the largest number of copies."""
        return self.epsilon / (2 * int(self.repetitions.max()))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per number of copies, then one with all pairs (repetitions 0)."""
        import pandas as pd  # slow to import

        return pd.DataFrame([vars(count) for count in (*self.tiers, self.all_pairs)])

    def plot(self) -> "Figure":
        """Return a figure of the differences by number of copies, and of the bounds next to their ceilings."""
        from kernelmem.plotting.text import paired_test_figure  # matplotlib is slow to import

        groups = [self.difference[self.repetitions == tier.repetitions].numpy() for tier in self.tiers]
        return paired_test_figure(
            [
                (f"{tier.repetitions:,}", group, tier.epsilon, tier.ceiling)
                for tier, group in zip(self.tiers, groups, strict=True)
            ]
            + [("all", self.difference.numpy(), self.all_pairs.epsilon, self.all_pairs.ceiling)],
            title=f"{len(self.difference):,} pairs of canaries, inserted against twin",
        )

    def __str__(self) -> str:
        """Return correct pairs, p-values and bounds, by number of copies and over all."""
        lines = [
            f"{len(self.difference):,} pairs of canaries, inserted against twin ({self.level:.0%} confidence)",
            f"  {'copies':>6}  {'right':>9}  {'ties':>4}  {'share right':<22}  {'p (signs)':<9}  epsilon  ceiling",
        ]
        for count in (*self.tiers, self.all_pairs):
            decided = count.n_pairs - count.n_ties
            share = f"{count.n_right / decided:.3f} ({count.low:.3f} to {count.high:.3f})" if decided else "-"
            right = f"{count.n_right:,}/{decided:,}"
            lines.append(
                f"  {f'{count.repetitions:,}' if count.repetitions else 'all':>6}  {right:>9}  {count.n_ties:>4,}"
                f"  {share:<22}  {count.p:<9.2g}  {count.epsilon:<7.3g}  {count.ceiling:.3g}"
            )
        most = int(self.repetitions.max())
        return "\n".join(
            [
                *lines,
                f"  permutation p = {self.permutation_p:.2g} ({self.permutations:,} random signs of all differences)",
                "  epsilon bounds the replacement of a canary with all its copies by its twin: of adding or removing it"
                f" {self.epsilon_add_remove:.3g},\n  of adding or removing one row {self.epsilon_per_row:.3g} (at most {most}"
                " copies). A bound of 0 is not evidence of privacy.",
            ]
        )


def paired_test(
    scores: ArrayLike | SecretExposure,
    canaries: Canaries,
    *,
    permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Test if inserted canaries have larger scores than their twins, and bound the privacy loss of the training.

    A fair coin chose which canary of a pair was inserted, so that without memorization the difference of their scores has a
    random sign. The sign test counts the correct pairs, those where the inserted canary has the larger score; the permutation
    test compares the sum of the differences with random signs. If replacing a canary by its twin has privacy loss E, the
    number of correct pairs among r is stochastically at most Binomial(r, e^E / (1 + e^E)); the bound is the smallest E that
    its number does not refute. All pairs without tie are guessed: no number of guesses is searched.

    Adding or removing a canary has a privacy loss of at least E / 2, and of at least E / (2 k) per row, if it has k copies.

    Args:
        scores: (n, 2) scores, larger = more memorized, of both canaries of each pair in the order of the design, whichever was
            inserted; or the result of :func:`exposure`. They must not depend on the coins but through the trained model.
        canaries: from :func:`canaries`.
        permutations: number of random sign vectors.
        level: confidence level of intervals (two-sided) and bounds (one-sided), above 0.5.
        seed: seed of the signs.

    Raises:
        InputError: NaN or infinite scores, another shape, exposures of other canaries, an option out of range.

    Cost: O(n · permutations).

    Source: Steinke, Nasr and Jagielski 2023.

    >>> from kernelmem.text.canary import canaries
    >>> pairs = canaries(40, lambda text: [ord(c) for c in text])
    >>> test = paired_test(torch.nn.functional.one_hot(pairs.inserted, 2), pairs)
    >>> round(test.epsilon, 2), test.epsilon == test.all_pairs.ceiling, test.permutation_p
    (2.55, True, 0.0001)
    """
    check_instance(canaries, "canaries", Canaries, hint="pass the canaries that were inserted")
    permutations = as_count(permutations, "permutations", maximum=MAX_PERMUTATIONS)
    level = as_level(level)
    if level <= 0.5:
        raise InputError(f"level={level:g}", expected="a confidence level above 0.5", hint="pass level=0.95")
    seeds = seed_sequence(seed, ["signs", "orientation"])
    values = _as_scores(scores, canaries)
    inserted = values.gather(1, canaries.inserted[:, None])[:, 0]
    difference = (inserted - values.gather(1, 1 - canaries.inserted[:, None])[:, 0]).numpy()
    repetitions = canaries.repetitions.numpy()
    tiers = tuple(
        _count(int(k), difference[repetitions == k], level, seeds["orientation"]) for k in np.unique(repetitions)
    )
    return PairedTest(
        torch.from_numpy(difference),
        canaries.repetitions,
        _count(0, difference, level, seeds["orientation"]),
        tiers,
        _permutation_p(difference, permutations, np.random.default_rng(seeds["signs"])),
        permutations,
        level,
    )


def _as_scores(scores: ArrayLike | SecretExposure, canaries: Canaries) -> Tensor:
    """Return the scores (n, 2) as float64.

    Raises:
        InputError: another shape, values that are not finite, or an exposure of other canaries.
    """
    n, values = len(canaries), scores
    if isinstance(scores, SecretExposure):
        same = torch.equal(scores.inserted, canaries.inserted) and torch.equal(scores.repetitions, canaries.repetitions)
        values = scores.exposure if same else torch.zeros(0)
    tensor = as_tensor(values, "scores", dtype=torch.float64, squared=True).cpu()  # pyright: ignore[reportArgumentType]
    if tensor.shape != (n, 2):
        raise InputError(
            f"scores={describe(scores)}",
            expected=f"scores of shape ({n}, 2) of both canaries of each pair, or exposures of these canaries",
            hint="keep the order of the design, which does not depend on the coins",
        )
    return tensor


def _count(repetitions: int, difference: np.ndarray, level: float, seed: int) -> PairCount:
    """Return counts, interval, p-value and bound of some pairs from their differences (n,)."""
    from scipy.stats import binom  # slow to import

    right = difference[difference != 0] > 0
    r, v = len(right), int(right.sum())
    low, high = 0.0, 1.0
    if r:
        interval = clopper_pearson(v, r, level=level)
        low, high = interval.low, interval.high
    epsilon = ceiling = 0.0
    if r >= MIN_PAIRS:
        # one_run_bound guesses the canaries with the larger scores as included: half of the pairs are stated as "the guessed
        # canary was inserted", the others as "the canary that was not guessed was", so that both kinds are guessed
        as_guessed = np.random.default_rng(seed).permutation(r) < (r + 1) // 2
        bound = one_run_bound(as_guessed.astype(float), right == as_guessed, guesses=r, level=level)
        epsilon, ceiling = bound.epsilon, bound.ceiling
    p = float(binom.sf(v - 1, r, 0.5)) if r else 1.0
    return PairCount(repetitions, len(difference), len(difference) - r, v, low, high, p, epsilon, ceiling)


def _permutation_p(difference: np.ndarray, permutations: int, source: np.random.Generator) -> float:
    """Return (1 + number of random signs whose sum is at least the observed one) / (1 + permutations)."""
    observed = math.fsum(difference) - ROUNDING * float(np.abs(difference).sum()) * len(difference)
    above, chunk = 0, max(1, CHUNK // max(1, len(difference)))
    for start in range(0, permutations, chunk):
        signs = source.integers(2, size=(min(chunk, permutations - start), len(difference))) * 2.0 - 1
        above += int((signs @ difference >= observed).sum())
    return (1 + above) / (1 + permutations)
