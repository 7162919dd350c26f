"""Outputs of models retrained on subsets, grouped by subset: the measured side of an attribution score."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import check_choice, check_instance
from kernelmem.core.errors import InputError
from kernelmem.memorization.output_statistics import Statistic, label_statistic
from kernelmem.memorization.shadows import ShadowEnsemble

MIN_SUBSETS = 10  # fewer give no rank correlation worth reporting
MAX_NUMBERS = 2**24  # outputs whose statistic is computed at once
RowSet = Literal["test", "train"]


@dataclass(frozen=True)
class SubsetOutcomes:
    """A statistic of t rows, measured for each of S different training subsets.

    Attributes:
        masks: (S, n) bool, all different.
        values: (S, t) float64, the mean over the models trained on the subset.
        repeats: (R, S, t), the values of the first R models of each subset, R the smallest number of models per subset.
        models_per_subset: mean number of models per subset, m / S.
    """

    masks: Tensor
    values: Tensor
    repeats: Tensor
    models_per_subset: float


def subset_outcomes(shadows: ShadowEnsemble, statistic: Statistic, rows: RowSet) -> SubsetOutcomes:
    """Return a statistic of the test or training rows of an ensemble, averaged over the models with equal masks.

    Raises:
        InputError: not an ensemble, unknown statistic or rows, no test rows, outputs that are not finite, fewer than ten
            different masks.
    """
    check_instance(shadows, "shadows", ShadowEnsemble, hint="pass the result of km.shadow_ensemble")
    check_choice(rows, "rows", ("test", "train"))
    measured = shadows.test_statistic(statistic) if rows == "test" else shadows.statistic(statistic)
    if measured.shape[1] == 0:
        raise InputError(
            "an ensemble without test rows",
            expected="outputs on at least one test row",
            hint='make the ensemble with test=(x_test, y_test), or pass rows="train"',
        )
    n_diverged = int((~measured.isfinite()).any(1).sum())
    if n_diverged:
        raise InputError(
            f"{n_diverged} of {len(measured)} models with outputs that are not finite",
            expected="finite outputs of every model",
            hint="leave diverged models out by shadows.select(...), or lower the learning rate",
        )
    masks, subset_of_model, counts = shadows.masks.cpu().unique(dim=0, return_inverse=True, return_counts=True)
    if len(masks) < MIN_SUBSETS:
        raise InputError(
            f"{len(shadows.masks)} models on {len(masks)} different subsets of the rows",
            expected=f"models on at least {MIN_SUBSETS} different subsets",
            hint="50 subsets with two models each are a good start: see kernelmem.memorization.attribution.subset_bank",
        )
    sums = torch.zeros(len(masks), measured.shape[1], dtype=torch.float64)
    sums.index_add_(0, subset_of_model, measured)
    # The r-th model of every subset, r below the smallest count
    order = subset_of_model.argsort(stable=True)
    first = counts.cumsum(0) - counts
    repeats = torch.stack([measured[order[first + r]] for r in range(int(counts.min()))])
    return SubsetOutcomes(masks, sums / counts[:, None], repeats, len(measured) / len(masks))


def fit_gaps(shadows: ShadowEnsemble, statistic: Statistic) -> Tensor:
    """Return, for each of m models, the mean statistic of its training rows minus that of the other rows, (m,) float64.

    It is positive for models that learn from their subset, and near zero for models that started from weights trained on
    all rows.
    """
    gaps = []
    n_models = max(1, MAX_NUMBERS // max(1, shadows.n_rows * shadows.n_classes))
    for masks, logits in zip(shadows.masks.split(n_models), shadows.logits.split(n_models), strict=True):
        values = label_statistic(logits, shadows.labels, statistic)
        inside = masks.to(values)
        gaps.append((values * inside).sum(1) / inside.sum(1) - (values * (1 - inside)).sum(1) / (1 - inside).sum(1))
    return torch.cat(gaps)
