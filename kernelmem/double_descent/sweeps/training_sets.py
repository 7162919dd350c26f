"""Training sets of each seed: examples and noisy labels, nested along the axis so that seeds stay paired."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.label_noise.corrupt import corrupt_labels
from kernelmem.training.datasets import LabeledData

__all__ = ["Drawn", "PoolData", "TrainingSet", "draw", "pool_data"]


class PoolData(NamedTuple):
    """Checked examples and clean labels: the pool (N, ...), (N,), and the test set (m, ...), (m,)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def pool_data(data: LabeledData, dtype: torch.dtype | None = None) -> PoolData:
    """Check the examples and labels of ``data``.

    Raises:
        InputError: NaN, infinite values, labels that do not fit the examples.
    """
    x, x_test = as_tensor(data.x_train, "x_train", dtype=dtype), as_tensor(data.x_test, "x_test", dtype=dtype)
    y, y_test = as_labels(data.y_train, "y_train", n=len(x)), as_labels(data.y_test, "y_test", n=len(x_test))
    return PoolData(x, y, x_test, y_test)


class TrainingSet(NamedTuple):
    """Rows of the pool (n,), their labels with noise (n,), their true labels (n,), the mask of flipped ones (n,)."""

    at: Tensor
    labels: Tensor
    clean: Tensor
    flipped: Tensor


@dataclass(frozen=True, eq=False)
class Drawn:
    """One seed's order of the pool, a wrong label for every row, and the seeds of its network.

    Attributes:
        order: permutation of the pool, (N,).
        clean: (N,) true labels in that order.
        wrong: (N,) for every one a wrong label, each equally likely.
        priority: (N,) in which order rows are flipped, where flips are nested in the rate.
        init_seed, order_seed: of the network: the same along the axis.
        nested: "samples" or "rates".
    """

    order: Tensor = field(repr=False)
    clean: Tensor = field(repr=False)
    wrong: Tensor = field(repr=False)
    priority: Tensor = field(repr=False)
    init_seed: int
    order_seed: int
    nested: Literal["samples", "rates"]

    def rows(self, n: int, rate: float) -> TrainingSet:
        """Return the first n rows, exactly round(rate n) of them with a wrong label (Python's round).

        Nested in samples: rows and labels of n' < n rows are the first of those of n; the order of the pool is random, so
        flips at fixed places of it are at random rows. Nested in rates: flips at a lower rate are flips at a higher one.

        Raises:
            InputError: n outside of 1..N, or a rate outside of [0, 1].
        """
        if not 1 <= n <= len(self.order) or not 0 <= rate <= 1:
            raise InputError(
                f"{n} rows of a pool of {len(self.order)}, rate {rate!r}",
                expected=f"1..{len(self.order)} rows, a rate from 0 to 1",
                hint="ask for fewer rows, or pass a larger training set",
            )
        if self.nested == "samples":
            counts = np.array([round(rate * i) for i in range(n + 1)])
            flipped = torch.from_numpy(np.diff(counts) > 0)
        else:
            flipped = torch.zeros(n, dtype=torch.bool)
            flipped[self.priority[:n].argsort()[: round(rate * n)]] = True
        labels = torch.where(flipped, self.wrong[:n], self.clean[:n])
        return TrainingSet(self.order[:n], labels, self.clean[:n], flipped)


def draw(y: Tensor, seed: int, *, nested: Literal["samples", "rates"] = "samples") -> Drawn:
    """Draw one seed's order of the pool, wrong labels and network seeds; the same seed gives the same.

    Args:
        y: (N,) int64 true labels of the pool.
        seed: whole number >= 0.
        nested: along what the labels are nested; see :meth:`Drawn.rows`.
    """
    seeds = seed_sequence(seed, ["order", "wrong", "priority", "init", "batches"])
    order = torch.from_numpy(np.random.default_rng(seeds["order"]).permutation(len(y)))
    clean = y[order]
    wrong = corrupt_labels(clean, 1.0, "symmetric", seed=seeds["wrong"]).y
    priority = torch.from_numpy(np.random.default_rng(seeds["priority"]).permutation(len(y)))
    return Drawn(order, clean, wrong, priority, seeds["init"], seeds["batches"], nested)
