"""Memorization of training rows and their influence on test rows, by retraining on random subsets."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_seed, as_tensor, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.output_statistics import Statistic
from kernelmem.memorization.retraining.agreement import Agreement, as_row_numbers, split_half_reliability
from kernelmem.memorization.retraining.agreement import agreement as compare
from kernelmem.memorization.retraining.differences import (
    Difference,
    check_estimable,
    crossed_difference,
    finite_statistic,
    paired_difference,
)
from kernelmem.memorization.retraining.influence_pairs import HighInfluencePairs, RetrainingInfluence, find_pairs
from kernelmem.memorization.score import Score
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics.intervals import as_level

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

UNITS = {
    "correct": "probability that a model predicts the label",
    "probability": "mean probability of the label",
    "logit": "mean log-odds of the label",
    "margin": "mean margin of the label",
    "log_likelihood": "mean log-likelihood of the label",
}


@dataclass(frozen=True, eq=False, repr=False)
class Retraining(Result):
    """Memorization by retraining on random subsets: outputs of models with a row compared with those without it.

    Attributes:
        memorization: mean_{k: i in S_k} v_ki − mean_{k: i not in S_k} v_ki of each training row, with standard errors.
        low, high: (n,) confidence interval of it.
        level: confidence level of the interval.
        statistic: name of v, the statistic of the outputs at the label.
        masks: (m, n) bool, training rows of each model.
        values: (m, n) v on the training rows, float64.
        test_values: (m, t) v on the test rows, float64.
    """

    memorization: Score
    low: Tensor
    high: Tensor
    level: float
    statistic: str
    masks: Tensor
    values: Tensor
    test_values: Tensor

    shapes: ClassVar = {"low": "n", "high": "n", "masks": "mn", "values": "mn", "test_values": "mt"}

    def influence(self, test_rows: ArrayLike | None = None) -> RetrainingInfluence:
        """Return the influence of every training row on test rows.

        influence_ij = mean_{k: i in S_k} v_kj − mean_{k: i not in S_k} v_kj for the statistic v_kj of test row j in
        model k.

        Args:
            test_rows: test rows, as numbers or a mask (t,); None: all of them.

        Raises:
            InputError: the ensemble has no test rows, or ``test_rows`` is out of range.

        Cost: 4 m n t operations; two (n, t) float64 matrices.
        """
        self._check_test_rows()
        chosen = as_row_numbers(test_rows, "test_rows", int(self.test_values.shape[1]))
        values, error = crossed_difference(self.masks, self.test_values[:, chosen], bounded=self.statistic == "correct")
        return RetrainingInfluence(values, error, chosen, self.statistic)

    def high_influence_pairs(
        self, *, memorization: float = 0.25, influence: float = 0.15, n_null: int = 20, seed: int = 0
    ) -> HighInfluencePairs:
        """Return the pairs (i, j) with memorization_i and influence_ij of at least the given values.

        The control is the number of pairs that chance alone gives: the models of the test outputs are permuted, so that
        masks say nothing about them, and the pairs counted again (mean over ``n_null`` permutations).

        Raises:
            InputError: the ensemble has no test rows, or a number is out of range.

        Source: Feldman and Zhang 2020, with the default values of section 3.
        """
        self._check_test_rows()
        memorized = self.memorization.values >= as_number(memorization, "memorization", minimum=-torch.inf)
        return find_pairs(
            self.masks,
            self.test_values,
            memorized.nonzero()[:, 0],
            self.memorization.values,
            threshold=as_number(influence, "influence", minimum=-torch.inf),
            bounded=self.statistic == "correct",
            n_null=as_count(n_null, "n_null", minimum=1, maximum=10_000),
            seed=as_seed(seed),
        )

    def reliability(self, *, rows: ArrayLike | None = None, n_splits: int = 20, seed: int = 0) -> float:
        """Return the share of the rank variance of the memorization values that is not noise, by split halves.

        The models are split into random halves, memorization is estimated from each, and Spearman's correlation r of the
        two (mean over ``n_splits`` splits) becomes 2 r / (1 + r), the reliability of all models (Spearman-Brown). Its
        square root is the largest correlation that any score can be expected to have with these values.

        Args:
            rows: rows that are ranked, as numbers or a mask (n,); None: all.
            n_splits: number of random splits.
            seed: seed of the splits.

        Raises:
            InputError: fewer than four models, or rows that are constant or that halves cannot estimate.
        """
        return split_half_reliability(
            self.masks, self.values, as_row_numbers(rows, "rows", len(self.low)), n_splits=n_splits, seed=seed
        )

    def agreement(
        self, score: Score | ArrayLike, *, rows: ArrayLike | None = None, score_reliability: float = 1.0, seed: int = 0
    ) -> Agreement:
        """Return Spearman's correlation of a score of the same rows with the memorization values, and its ceiling.

        Args:
            score: a Score, or (n,) values; larger = more memorized.
            rows: rows that are compared, as numbers or a mask (n,), e.g. the rows with clean labels; None: all.
            score_reliability: reliability of the score itself in (0, 1]; 1 if it has no noise.
            seed: seed of the split halves.

        Raises:
            InputError: another number of rows, a constant score, or fewer than four rows.
        """
        chosen = as_row_numbers(rows, "rows", len(self.low))
        values = score.values if isinstance(score, Score) else as_tensor(score, "score", dtype=torch.float64).cpu()
        if tuple(values.shape) != (len(self.low),):
            raise InputError(
                f"score of shape {tuple(values.shape)} for {len(self.low)} rows",
                expected="one value per training row",
                hint="compute the score on the rows of the ensemble, in their order",
            )
        reliability = self.reliability(rows=chosen, seed=seed)
        return compare(
            values[chosen],
            self.memorization.values[chosen],
            reliability=reliability,
            score_reliability=score_reliability,
            level=self.level,
        )

    def n_memorized(self, threshold: float = 0.25) -> tuple[int, int]:
        """Return the numbers of rows whose memorization is at least ``threshold``, and whose whole interval is.

        The first number has rows that noise lifted above the threshold: compare it with that of permuted subsets, which
        ``print`` shows.
        """
        threshold = as_number(threshold, "threshold", minimum=-torch.inf)
        return int((self.memorization.values >= threshold).sum()), int((self.low >= threshold).sum())

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per training row: memorization, standard error, interval, means with and without the row."""
        indicator = self.masks.to(torch.float64)
        frame = self.memorization.to_frame().rename(columns={"value": "memorization"})
        frame["low"], frame["high"] = self.low.numpy(), self.high.numpy()
        frame["mean_with"] = ((indicator * self.values).sum(0) / indicator.sum(0)).numpy()
        frame["mean_without"] = (((1 - indicator) * self.values).sum(0) / (1 - indicator).sum(0)).numpy()
        return frame

    def plot(self) -> "Figure":
        """Return a figure: memorization of all rows in ascending order, with intervals, and the same for permuted subsets."""
        from kernelmem.plotting import retraining_figure

        return retraining_figure(
            self.memorization.values,
            self.low,
            self.high,
            self._with_permuted_subsets().value,
            unit=UNITS.get(self.statistic, self.statistic),
            level=self.level,
        )

    def __str__(self) -> str:
        """Return the score, the numbers of memorized rows, the same with permuted subsets, and the reliability."""
        is_probability = self.statistic in ("correct", "probability")  # other units have no usual threshold
        null = self._with_permuted_subsets()
        counts = [
            int((values >= 0.25 if is_probability else values > 0).sum())
            for values in (self.memorization.values, self.low, null.value, null.low)
        ]
        try:
            reliability = f"{self.reliability():.3f}"
        except InputError:
            reliability = "not defined (constant values, or too few models)"
        return "\n".join(
            [
                str(self.memorization),
                f"  {'at least 0.25' if is_probability else 'above 0'}: {counts[0]:,} of {len(self.low):,} rows; with the whole"
                f" {self.level:.0%} interval: {counts[1]:,} (with permuted subsets {counts[2]:,} and {counts[3]:,})",
                f"  split-half reliability (Spearman-Brown): {reliability}; {int(self.test_values.shape[1]):,} test rows",
            ]
        )

    def _with_permuted_subsets(self) -> Difference:
        """Return the differences with the subsets of other models, which say nothing about the outputs."""
        order = torch.randperm(len(self.masks), generator=torch.Generator().manual_seed(0))
        return paired_difference(self.masks[order], self.values, bounded=self.statistic == "correct", level=self.level)

    def _check_test_rows(self) -> None:
        if not self.test_values.shape[1]:
            raise InputError(
                "an ensemble without test rows",
                expected="outputs on test rows",
                hint="pass test=(x, y) to km.shadow_ensemble",
            )


def feldman_zhang(shadows: ShadowEnsemble, *, statistic: Statistic = "correct", level: float = 0.95) -> Retraining:
    """Estimate how much models owe their output on each row to having trained on that row.

    memorization_i = mean_{k: i in S_k} v_ki − mean_{k: i not in S_k} v_ki, with v_ki the statistic of the outputs of
    model k at the label of row i, and S_k its training rows. It estimates the difference of the expectations over subsets
    and seeds at the training size share · n, a property of the training algorithm rather than of one model.

    Args:
        shadows: models trained on random subsets.
        statistic: "correct" (Feldman and Zhang), "probability", "logit", "margin" or "log_likelihood".
        level: confidence level of the intervals.

    Returns:
        Memorization with standard errors and intervals; influence, reliability and agreement with other scores on demand.
        For "correct", standard errors are those of Beta posteriors (not 0 at proportions 0 and 1) and intervals Newcombe's;
        otherwise those of Hall's transformation, which allows for skewness; below about 15 models with or without a row they
        are too short.

    Raises:
        InputError: rows that fewer than two models are trained on, or leave out; outputs that are not finite; a statistic that
            real targets do not have.

    Cost: O(m n C).

    Source: Feldman 2020; Feldman and Zhang 2020. Newcombe 1998; Hall 1992; Welch 1947.
    """
    check_instance(shadows, "shadows", ShadowEnsemble)
    level = as_level(level)
    values, test_values = finite_statistic(shadows, statistic)
    check_estimable(shadows.masks)
    difference = paired_difference(shadows.masks, values, bounded=statistic == "correct", level=level)
    unit = "mean of −|f − target|²/2" if shadows.labels.is_floating_point() else UNITS[statistic]
    score = Score(
        difference.value,
        difference.standard_error,
        "memorization",
        "algorithm",
        shadows.n_models,
        f"{unit}, trained with the row minus without it (share {shadows.identity.share:.3g} of the rows)",
        "Feldman and Zhang 2020",
    )
    return Retraining(score, difference.low, difference.high, level, statistic, shadows.masks, values, test_values)


def counterfactual_memorization(shadows: ShadowEnsemble, *, statistic: Statistic = "probability") -> Score:
    """Return counterfactual memorization: the mean statistic of models with a row minus that of models without it.

    With ``statistic="correct"`` it equals the memorization of Feldman and Zhang. Arguments and errors are those of
    :func:`feldman_zhang`.

    Source: Zhang et al. 2023.
    """
    score = feldman_zhang(shadows, statistic=statistic).memorization
    return Score(
        score.values,
        score.standard_error,
        f"counterfactual memorization ({statistic})",
        "algorithm",
        shadows.n_models,
        score.meaning,
        "Zhang et al. 2023",
    )
