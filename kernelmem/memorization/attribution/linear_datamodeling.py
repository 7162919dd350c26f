"""Linear datamodeling score: rank agreement of attributions with models retrained on random subsets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_seed
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.attribution.predictors import Attribution, SubsetPredictor, as_predictors
from kernelmem.memorization.attribution.subset_outcomes import (
    RowSet,
    SubsetOutcomes,
    fit_gaps,
    subset_outcomes,
)
from kernelmem.memorization.output_statistics import Statistic
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import Interval, as_level, centered_ranks, column_correlations, mean_interval, spearman_brown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_JACKKNIFE_GROUPS = 50


@dataclass(frozen=True, eq=False, repr=False)
class LDS(Result):
    """Linear datamodeling score of a attributions on t rows; 1 = ranks of all subsets predicted, 0 = none.

    Attributes:
        names: names of the a attributions.
        values: (a,) mean over rows of Spearman's correlation over subsets.
        standard_errors: (a,) over subsets (jackknife) and rows.
        degrees_of_freedom: (a,) of Student's t (Welch-Satterthwaite).
        per_row: (a, t); NaN for a row whose statistic is the same for all subsets; 0 for a constant prediction.
        null: (a, p) the same score of p predictions with permuted training rows; must be zero within its spread.
        ceiling: largest score to expect, that of the exact mean effect of each subset, given that the measured mean over few
            seeds is noisy: the square root of ``reliability``; NaN for one model per subset.
        ceiling_error: jackknife standard error of ``ceiling``.
        reliability: correlation to expect with as many new models on the same subsets (Spearman-Brown).
        fit_gap: mean statistic of a model's own training rows minus that of the other rows, with its interval over models:
            about zero for models that did not start from new weights.
        replicates: (a, g, t) scores per row without the subsets of one of g groups (jackknife).
        statistic: statistic of the outputs that was predicted.
        n_subsets: number S of different subsets.
        models_per_subset: mean number of models per subset.
        subset_sizes: (smallest, largest) number of rows of a subset.
        level: level of the intervals.
    """

    names: tuple[str, ...]
    values: Tensor
    standard_errors: Tensor
    degrees_of_freedom: Tensor
    per_row: Tensor
    null: Tensor
    ceiling: float
    ceiling_error: float
    reliability: float
    fit_gap: Interval
    replicates: Tensor
    statistic: str
    n_subsets: int
    models_per_subset: float
    subset_sizes: tuple[int, int]
    level: float

    shapes: ClassVar[Mapping[str, str]] = {
        "names": "a",
        "values": "a",
        "standard_errors": "a",
        "degrees_of_freedom": "a",
        "per_row": "at",
        "null": "ap",
        "replicates": "agt",
    }

    def interval(self, name: str | None = None) -> Interval:
        """Return the score of one attribution with its interval; ``name`` may be left out if there is only one.

        Raises:
            InputError: an unknown name, or none among several.
        """
        a = self._index(name)
        error = (float(self.standard_errors[a]), float(self.degrees_of_freedom[a]))
        return self._interval(float(self.values[a]), error, 1.0)

    def difference(self, first: str, second: str) -> Interval:
        """Return the score of ``first`` minus that of ``second``, paired over subsets and rows, with its interval.

        Raises:
            InputError: an unknown name.
        """
        a, b = self._index(first), self._index(second)
        error = _standard_error(self.per_row[a] - self.per_row[b], self.replicates[a] - self.replicates[b])
        return self._interval(float(self.values[a] - self.values[b]), error, 2.0)

    def plot(self) -> "Figure":
        """Draw the scores with their intervals, compared with the ceiling and with permuted training rows."""
        from kernelmem.plotting.memorization import lds_figure

        intervals = [self.interval(name) for name in self.names]
        ends = np.array([[interval.low, interval.high] for interval in intervals])
        return lds_figure(self.names, self.values, ends, self.null, ceiling=self.ceiling, level=self.level)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per attribution: score, standard error, interval, null mean and spread, ceiling."""
        import pandas as pd  # slow to import

        intervals = [self.interval(name) for name in self.names]
        return pd.DataFrame(
            {
                "lds": self.values.numpy(),
                "standard_error": self.standard_errors.numpy(),
                "low": [interval.low for interval in intervals],
                "high": [interval.high for interval in intervals],
                "null_mean": self.null.mean(1).numpy(),
                "null_spread": self.null.std(1).numpy(),
                "ceiling": self.ceiling,
            },
            index=pd.Index(self.names, name="attribution"),
        )

    def __str__(self) -> str:
        """Return the scores with intervals, null, ceiling, and warnings about the retrained models."""
        n_rows = int(self.per_row.isfinite().all(0).sum())
        smallest, largest = self.subset_sizes
        sizes = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        width = max(map(len, self.names))
        lines = [
            f"linear datamodeling score ({self.statistic}) of {n_rows} rows, {self.n_subsets} subsets of {sizes} training rows,"
            f" {self.models_per_subset:.3g} model{'s' * (self.models_per_subset != 1)} per subset"
        ]
        for a, name in enumerate(self.names):
            lines.append(
                f"  {name:<{width}}  {self._text(self.interval(name))}   permuted training rows {float(self.null[a].mean()):.2f}"
                f" ± {float(self.null[a].std()):.2f}"
            )
        lines.append(
            f"  {100 * self.level:g} % intervals over subsets and rows; 1: ranks of all subsets predicted, 0: none"
        )
        if math.isnan(self.ceiling):
            lines.append("  ceiling unknown: one model per subset; train two or more with different seeds")
        else:
            lines.append(
                f"  ceiling {self.ceiling:.2f} ± {self.ceiling_error:.2f} (the exact mean effect of each subset; the measured one"
                f" is noisy); retraining with new seeds would score {self.reliability:.2f}"
            )
        n_constant = self.per_row.shape[1] - n_rows
        if n_constant:
            lines.append(f"  {n_constant} rows left out: the statistic ({self.statistic}) is the same for all subsets")
        gap = self.fit_gap
        lines.append(f"  models fit their own training rows better than the others by {self._text(gap)}")
        if gap.low <= 0:
            lines.append(
                "  WARNING: no visible effect of training on a row: did the models start from trained weights, or not train?"
            )
        return "\n".join(lines)

    def _text(self, interval: Interval) -> str:
        return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"

    def _index(self, name: str | None) -> int:
        """Return the position of an attribution."""
        if name is None and len(self.names) == 1:
            return 0
        if name not in self.names:
            raise InputError(
                f"attribution {name!r}", expected=f"one of {self.names}", hint="use the names that lds was given"
            )
        return self.names.index(name)

    def _interval(self, value: float, error: tuple[float, float], limit: float) -> Interval:
        """Return the interval of Student's t from (standard error, degrees of freedom), cut at ± ``limit``."""
        from scipy.stats import t  # slow to import

        half_width = float(t.isf((1 - self.level) / 2, error[1])) * error[0]
        return Interval(value, max(-limit, value - half_width), min(limit, value + half_width), self.level)


def lds(
    attribution: Attribution | Mapping[str, Attribution],
    shadows: ShadowEnsemble,
    *,
    statistic: Statistic = "margin",
    rows: RowSet = "test",
    level: float = 0.95,
    n_permutations: int = 20,
    seed: int = 0,
) -> LDS:
    r"""Compute the linear datamodeling score: rank agreement of attributions with models retrained on subsets.

    For each row z, Spearman's correlation over training subsets S between Σ_{i∈S} τ_i(z) and a statistic of the outputs at z
    of the models trained on S (mean over seeds); then the mean over rows.

    Compare with ``ceiling`` (perfect predictions score less than 1, because few seeds per subset leave noise), and with
    ``null`` (permuted training rows). The standard error has a part from subsets (jackknife in at most 50 groups) and one
    from rows, so that the interval speaks of new subsets and of new rows from the same source. Coverage at level 0.95 of
    the score with many more subsets and rows, in noisy linear models (± 2 to 3): 93 to 97 % with 50 subsets and 12 to 100
    rows, 89 to 96 % with 5 rows. Spearman's correlation over few subsets is a little smaller on average, by 4 % with 20
    subsets and 2 % with 50.

    Args:
        attribution: (t, n) numbers τ, positive if training on row i raises the statistic of row z; a result of
            ``km.influence`` or ``km.ledger`` with one function per row (``target="margin"``); a function from masks (S, n) to
            predictions (S, t), such as :func:`kernel_refit`; or several of these by name, which are compared on the same
            subsets (:meth:`LDS.difference`).
        shadows: models on at least ten different subsets; models with equal masks differ in their seed. Subsets of one size
            are best: with different sizes a constant attribution also scores.
        statistic: of the outputs at the labels (:func:`label_statistic`).
        rows: "test": the t test rows of the ensemble; "train": its n training rows, whose own membership then counts too.
        level: level of the intervals.
        n_permutations: permutations of the training rows, at least 2.
        seed: of the permutations and of the groups of subsets.

    Returns:
        LDS: per attribution and per row, with standard errors, ceiling and null.

    Raises:
        InputError: attributions of another shape or with NaN, fewer than ten subsets, outputs that are not finite, or a
            statistic that is the same for all subsets in every row.

    Cost: (p + 1) · S · n · t operations for p permutations, and min(S, 50) rankings of S · t numbers.

    Source: Park, Georgiev, Ilyas, Leclerc and Madry 2023.

    >>> import torch
    >>> from kernelmem.memorization import ShadowEnsemble
    >>> from kernelmem.memorization.shadows import ShadowIdentity
    >>> generator = torch.Generator().manual_seed(0)
    >>> masks = torch.rand(40, 30, generator=generator).argsort(1) < 15
    >>> effects = torch.randn(6, 30, generator=generator)
    >>> margins = masks.float() @ effects.T  # models whose margins are sums of effects
    >>> outputs = torch.stack([margins, 0 * margins], 2)
    >>> labels, test_labels = torch.zeros(30, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    >>> shadows = ShadowEnsemble(masks, outputs[:, :1].expand(40, 30, 2), labels, outputs, test_labels, ShadowIdentity())
    >>> round(float(lds(effects, shadows).values[0]), 6)
    1.0
    """
    level = as_level(level)
    n_permutations = as_count(n_permutations, "n_permutations", minimum=2)
    generator = torch.Generator().manual_seed(as_seed(seed))
    outcomes = subset_outcomes(shadows, statistic, rows)
    predictors = as_predictors(attribution, outcomes.values.shape[1], shadows.n_rows)
    varying = (outcomes.values != outcomes.values[0]).any(0)
    if not varying.any():
        raise InputError(
            f"an ensemble in which {statistic} of every row is the same for all subsets",
            expected="a statistic that depends on the subset",
            hint='pass statistic="margin" or "log_likelihood"; check that the models were trained',
        )
    predictions = [predict(outcomes.masks) for predict in predictors.values()]
    per_row, replicates, ceilings = _scores_with_jackknife(outcomes, predictions, varying, generator)
    null = _null(outcomes, predictors, varying, n_permutations, generator)
    errors = [_standard_error(*scores) for scores in zip(per_row, replicates, strict=True)]
    standard_errors, degrees_of_freedom = (
        torch.tensor(values, dtype=torch.float64) for values in zip(*errors, strict=True)
    )
    reliability, ceiling = _ceiling(outcomes.repeats[:, :, varying], outcomes.models_per_subset)
    sizes = outcomes.masks.sum(1)
    return LDS(
        names=tuple(predictors),
        values=per_row[:, varying].mean(1),
        standard_errors=standard_errors,
        degrees_of_freedom=degrees_of_freedom,
        per_row=per_row,
        null=null,
        ceiling=ceiling,
        ceiling_error=math.sqrt(float(_jackknife_variance(ceilings))),
        reliability=reliability,
        fit_gap=mean_interval(fit_gaps(shadows, statistic), level=level),
        replicates=replicates,
        statistic=statistic,
        n_subsets=len(outcomes.masks),
        models_per_subset=outcomes.models_per_subset,
        subset_sizes=(int(sizes.min()), int(sizes.max())),
        level=level,
    )


def _scores_with_jackknife(
    outcomes: SubsetOutcomes, predictions: list[Tensor], varying: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores per row (a, t), and scores (a, g, t) and ceilings (g,) without each of g groups of subsets."""
    S = len(outcomes.masks)
    measured_ranks = centered_ranks(outcomes.values)
    per_row = torch.stack([column_correlations(measured_ranks, centered_ranks(p)) for p in predictions])
    per_row[:, ~varying] = torch.nan
    groups = torch.randperm(S, generator=generator).chunk(min(S, MAX_JACKKNIFE_GROUPS))
    replicates = torch.full((len(predictions), len(groups), len(varying)), torch.nan, dtype=torch.float64)
    ceilings = torch.empty(len(groups), dtype=torch.float64)
    for g, group in enumerate(groups):
        kept = torch.ones(S, dtype=torch.bool)
        kept[group] = False
        measured_ranks = centered_ranks(outcomes.values[kept][:, varying])
        for a, prediction in enumerate(predictions):
            ranks = centered_ranks(prediction[kept][:, varying])
            replicates[a, g, varying] = column_correlations(measured_ranks, ranks)
        _, ceilings[g] = _ceiling(outcomes.repeats[:, kept][:, :, varying], outcomes.models_per_subset)
    return per_row, replicates, ceilings


def _null(
    outcomes: SubsetOutcomes,
    predictors: Mapping[str, SubsetPredictor],
    varying: Tensor,
    n_permutations: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the mean scores (a, p) of predictions for masks whose training rows are permuted."""
    null = torch.empty(len(predictors), n_permutations, dtype=torch.float64)
    measured_ranks = centered_ranks(outcomes.values[:, varying])
    for p in range(n_permutations):
        masks = outcomes.masks[:, torch.randperm(outcomes.masks.shape[1], generator=generator)]
        for a, predict in enumerate(predictors.values()):
            null[a, p] = column_correlations(measured_ranks, centered_ranks(predict(masks)[:, varying])).mean()
    return null


def _ceiling(repeats: Tensor, models_per_subset: float) -> tuple[float, float]:
    """Return reliability and ceiling from the values (R, S, t) of R models per subset; NaN for R = 1.

    The mean rank correlation of two models with equal subsets is stepped up to the number of models per subset.
    """
    R = len(repeats)
    if R < 2:
        return math.nan, math.nan
    ranks = [centered_ranks(values) for values in repeats]
    pairs = [float(column_correlations(ranks[a], ranks[b]).mean()) for a in range(R) for b in range(a)]
    reliability = spearman_brown(max(-1.0, min(1.0, sum(pairs) / len(pairs))), factor=models_per_subset)
    return reliability, math.sqrt(max(0.0, reliability))


def _standard_error(per_row: Tensor, replicates: Tensor) -> tuple[float, float]:
    """Return the standard error of the mean of scores (t,) for new subsets and new rows, and its degrees of freedom.

    It is √(V + (s² − v̄ + c̄) / t), with V the variance of the mean from subsets by the jackknife's scores (g, t), s² the
    variance over rows, and v̄ and c̄ the mean variance of a row and covariance of two rows from subsets, which s² contains:
    s² − v̄ + c̄ is the variance of exact scores. Degrees of freedom by Welch and Satterthwaite, from g − 1 and t − 1.
    """
    varying = per_row.isfinite()
    t, g = int(varying.sum()), len(replicates)
    variance = float(_jackknife_variance(replicates[:, varying].mean(1)))
    if t == 1:
        return math.sqrt(variance), g - 1.0
    row_variance = float(_jackknife_variance(replicates[:, varying]).mean())
    row_covariance = (t * variance - row_variance) / (t - 1)
    exact_variance = max(0.0, float(per_row[varying].var(correction=1)) - row_variance + row_covariance) / t
    total = variance + exact_variance
    if total == 0:
        return 0.0, g - 1.0
    return math.sqrt(total), total**2 / (variance**2 / (g - 1) + exact_variance**2 / (t - 1))


def _jackknife_variance(replicates: Tensor) -> Tensor:
    """Return the variance (g − 1) / g Σ (θ_g − mean)² of statistics from their g values (g, ...) without a group."""
    g = len(replicates)
    return (replicates - replicates.mean(0)).square().sum(0) * ((g - 1) / g)
