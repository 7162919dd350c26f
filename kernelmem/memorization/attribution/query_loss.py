"""Query-loss difference: loss of test rows after retraining without the rows that an attribution ranks highest."""

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_seed
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import Progress
from kernelmem.memorization.attribution.predictors import as_attribution
from kernelmem.memorization.attribution.subset_bank import DEFAULT_OPTIONS, as_training_data, train_on_subsets
from kernelmem.memorization.output_statistics import label_statistic
from kernelmem.memorization.shadows.options import EnsembleTraining, ShadowOptions, TrainFunction
from kernelmem.statistics import Interval, as_level, mean_interval
from kernelmem.trajectory import Influence, Ledger

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class QLD(Result):
    """Loss of t test rows after retraining without k training rows: chosen by an attribution, or at random.

    Attributes:
        difference: mean loss without the chosen rows minus that without random ones, with its interval over r pairs of
            trainings; positive if the attribution finds rows that help.
        chosen_losses: (r, t) losses without the chosen rows.
        random_losses: (r, t) losses without as many random rows, drawn anew for each pair, with the same seed of training.
        removed: (k,) the chosen rows, largest attribution first.
        n_rows: number n of training rows.
    """

    difference: Interval
    chosen_losses: Tensor
    random_losses: Tensor
    removed: Tensor
    n_rows: int

    shapes: ClassVar = {"chosen_losses": "rt", "random_losses": "rt", "removed": "k"}

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per pair of trainings: mean losses without chosen and without random rows."""
        import pandas as pd  # slow to import

        columns = {"chosen": self.chosen_losses.mean(1).numpy(), "random": self.random_losses.mean(1).numpy()}
        return pd.DataFrame(columns).rename_axis("pair")

    def __str__(self) -> str:
        """Return both losses and their difference with its interval."""
        r, t = self.chosen_losses.shape
        d = self.difference
        return "\n".join(
            [
                f"query-loss difference {d.value:.3g} ({d.low:.3g} to {d.high:.3g}), {100 * d.level:g} % interval over {r}"
                " pairs of trainings",
                f"  mean loss of {t} rows without the {len(self.removed)} of {self.n_rows} training rows that the attribution"
                f" ranks highest {float(self.chosen_losses.mean()):.4g}, without as many random rows"
                f" {float(self.random_losses.mean()):.4g}",
                "  positive: the attribution finds rows that help",
            ]
        )


def qld(
    attribution: ArrayLike | Influence | Ledger,
    train: object,
    training: EnsembleTraining | TrainFunction,
    test: object,
    *,
    share: float = 0.01,
    pairs: int = 5,
    seed: int = 0,
    executor: Executor | None = None,
    options: ShadowOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> QLD:
    """Compute the query-loss difference: retrain without the rows that an attribution ranks highest, and without random rows.

    Training row i is ranked by Σ_z τ_i(z), its effect on all test rows together; the largest max(1, round(share · n)) are
    left out. Each pair of trainings has the same initial weights and seed of batch orders, and its own random rows.

    Args:
        attribution: (t, n) numbers τ, positive if training on row i raises the fit of test row z, as for :func:`lds`; for one
            query pass one row, (1, n), and one test row.
        train: (x, y) of n training rows, as in ``km.shadow_ensemble``.
        training: ``km.EnsembleTraining``, or a function train(indices, seed) -> model that makes a new model in each call.
        test: (x, y) of the t test rows; the loss is cross-entropy, or half the squared distance for real targets.
        share: of the training rows that are left out.
        pairs: number of pairs of trainings, at least 2.
        seed: of initial weights, batch orders and random rows.
        executor: any PEP 3148 executor, one task per ``options.models_per_chunk`` models.
        options: dtype, device, number of classes, forward; models, share and sampling are not used.
        progress: called with (models done, all models).

    Returns:
        QLD: the difference with its 95 % interval of Student's t, and the losses.

    Raises:
        InputError: attributions of another shape, or arguments that do not fit.
        NumericalError: models with outputs that are not finite.

    Cost: 2 · pairs trainings.

    Source: leave-out retraining of the top attributions: Park et al. 2023 (counterfactuals); random removal as control and
    paired seeds: derived here.
    """
    pairs = as_count(pairs, "pairs", minimum=2, maximum=10**5)
    share = as_number(share, "share", exclusive=True, maximum=1 - 1e-9)
    seed, level = as_seed(seed), as_level(0.95)
    data = as_training_data(train, training, test, executor, options)
    n, t = len(data.x), data.n_test
    tau = as_attribution(attribution, "attribution", t, n)
    k = max(1, round(share * n))
    if k >= n:
        raise InputError(
            f"share={share:g} of {n} training rows: {k} rows left out",
            expected="at least one training row that remains",
            hint="pass a smaller share, or more rows",
        )
    removed = (tau / tau.abs().max().clamp_min(1e-300)).sum(0).argsort(descending=True, stable=True)[:k]
    generator = torch.Generator().manual_seed(seed)
    random_rows = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(pairs)])
    losses = []
    for left_out in (removed.expand(pairs, k), random_rows):
        masks = torch.ones(pairs, n, dtype=torch.bool).scatter(1, left_out, False)
        outputs = train_on_subsets(masks, data, training, options, seed, executor, progress)
        losses.append(-label_statistic(outputs[:, n:], data.test_labels, "log_likelihood"))
    difference = mean_interval(losses[0].mean(1) - losses[1].mean(1), level=level)
    return QLD(difference, losses[0], losses[1], removed, n)
