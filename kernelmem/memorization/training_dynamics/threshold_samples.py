"""Threshold samples of AUM: rows with a fake class, whose margins say how small the margin of a wrong label is."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_labels, as_number, check_instance, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.training_dynamics.history import TrainingHistory
from kernelmem.memorization.training_dynamics.output_scores import area_under_margin


@dataclass(frozen=True, eq=False, repr=False)
class ThresholdSamples(Result):
    """Labels of two trainings, in each of which other rows have the fake class C.

    Attributes:
        labels: (2, n) int64 labels of the first and the second training, in 0..C; the model needs C + 1 outputs.
        masks: (2, n) bool, True for the threshold samples of each training; no row is one in both.
        n_classes: number C of real classes.
    """

    labels: Tensor
    masks: Tensor
    n_classes: int

    shapes: ClassVar = {"labels": "2n", "masks": "2n"}

    def flag(self, first: TrainingHistory, second: TrainingHistory, *, percentile: float = 99.0) -> Tensor:
        """Flag rows whose area under the margin is below the percentile of the threshold samples, (n,) bool.

        Every row is judged by the first training, the threshold samples of that one by the second.

        Args:
            first: history of the training on ``labels[0]``, with outputs on all n rows.
            second: history of the training on ``labels[1]``.
            percentile: of the areas under the margin of the threshold samples.

        Raises:
            InputError: histories with other labels, or a percentile outside 0..100.
        """
        percentile = as_number(percentile, "percentile", maximum=100.0)
        flags = []
        for k, history in enumerate((first, second)):
            check_instance(history, "history", TrainingHistory)
            if not torch.equal(history.labels, self.labels[k]):
                raise InputError(
                    f"history of the {('first', 'second')[k]} training, whose labels are not labels[{k}]",
                    expected="outputs on all rows, with the labels of that training",
                    hint=f"train on labels[{k}] with {self.n_classes + 1} outputs, and pass these labels to the history",
                )
            areas = -area_under_margin(history).values
            threshold = torch.quantile(areas[self.masks[k]], percentile / 100)
            flags.append(areas < threshold)
        return torch.where(self.masks[0], flags[1], flags[0])

    def __str__(self) -> str:
        """Return the numbers of rows and of threshold samples."""
        n = self.labels.shape[1]
        counts = self.masks.sum(1).tolist()
        return (
            f"threshold samples: {counts[0]} and {counts[1]} of {n:,} rows with the fake class {self.n_classes},"
            f" in two trainings with {self.n_classes + 1} outputs"
        )


def threshold_samples(labels: ArrayLike, *, seed: int = 0, n_classes: int | None = None) -> ThresholdSamples:
    """Draw the threshold samples of two trainings: n/(C + 1) random rows each, relabeled to a fake class C.

    A network can fit the fake class only by memorization, so that the margins of its rows are those of wrong labels.

    Args:
        labels: (n,) class indices, at least two rows.
        seed: seed of the draws.
        n_classes: number C of real classes; None: largest label + 1.

    Raises:
        InputError: labels that are not class indices below ``n_classes``, or fewer than two rows.

    Source: Pleiss et al. 2020.

    >>> samples = threshold_samples([0, 1, 2, 0, 1, 2, 0, 1], seed=0)
    >>> samples.masks.sum(1).tolist(), samples.labels.max().item()
    ([2, 2], 3)
    """
    C = None if n_classes is None else as_count(n_classes, "n_classes")
    y = as_labels(labels, "labels", n_classes=C).cpu()
    if len(y) < 2:
        raise InputError(f"labels of {len(y)} rows", expected="at least two rows", hint="pass the training labels")
    C = int(y.max()) + 1 if C is None else C
    rng = np.random.default_rng(seed_sequence(seed, ["threshold samples"])["threshold samples"])
    count = min(max(1, round(len(y) / (C + 1))), len(y) // 2)
    order = torch.from_numpy(rng.permutation(len(y)))
    masks = torch.zeros(2, len(y), dtype=torch.bool)
    masks[0, order[:count]] = True
    masks[1, order[count : 2 * count]] = True
    return ThresholdSamples(torch.where(masks, C, y), masks, C)
