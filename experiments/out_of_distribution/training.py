"""Digits, and a network before and after training on them."""

import copy
from dataclasses import dataclass, replace

from torch import Tensor, nn

from kernelmem.core import seed_sequence
from kernelmem.training import LabeledData, Training, digits, standardized_mlp, train_classifier

__all__ = ["Problem", "make"]


@dataclass(frozen=True)
class Problem:
    """Training rows, held-out rows in two halves, the network before and after training."""

    data: LabeledData
    inside: tuple[Tensor, Tensor]  # held-out rows and labels that stay unchanged
    outside: tuple[Tensor, Tensor]  # held-out rows and labels that are changed
    initial: nn.Module
    trained: nn.Module
    training: Training
    seeds: dict[str, int]


def make(seed: int, *, n_train: int, n_test: int, width: int, epochs: int, other: bool = False) -> Problem:
    """Return data and networks of one seed; ``other`` uses other weights and batches for the same rows."""
    seeds = seed_sequence(seed, ["split", "weights", "batches", "changes", "null", "other weights", "other batches"])
    data = digits(n_train=n_train, seed=seed)
    data = replace(data, x_test=data.x_test[:n_test], y_test=data.y_test[:n_test])
    prefix = "other " if other else ""
    model = standardized_mlp(data.x_train, 10, widths=(width, width), seed=seeds[f"{prefix}weights"]).eval()
    initial = copy.deepcopy(model)
    training = train_classifier(model, data.x_train, data.y_train, epochs=epochs, seed=seeds[f"{prefix}batches"])
    half = len(data.x_test) // 2
    inside, outside = ((data.x_test[rows], data.y_test[rows]) for rows in (slice(half), slice(half, None)))
    return Problem(data, inside, outside, initial, model, training, seeds)
