"""Training sets of each seed: examples and noisy labels, nested along the axis so that seeds stay paired."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.label_noise.corrupt import corrupt_labels
from kernelmem.training.datasets import LabeledData


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
    """Indices into the pool (n,), noisy labels (n,), true labels (n,), and the mask of wrong labels (n,)."""

    indices: Tensor
    labels: Tensor
    clean: Tensor
    flipped: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SeedDraw:
    """Random draws of one seed: order of the pool, a wrong label for every example, seeds of the network.

    Attributes:
        order: (N,) permutation of the pool.
        clean: (N,) true labels in that order.
        wrong: (N,) a wrong label for every example, uniform over the other classes.
        priority: (N,) order in which labels become wrong, if they are nested in the rate.
        init_seed, order_seed: seeds of initialization and batch order, the same along the axis.
        nested: "samples" or "rates".
    """

    order: Tensor
    clean: Tensor
    wrong: Tensor
    priority: Tensor
    init_seed: int
    order_seed: int
    nested: Literal["samples", "rates"]

    def training_set(self, n: int, rate: float) -> TrainingSet:
        """Return the first n examples, exactly round(rate · n) of them with a wrong label (Python's round).

        Nested in samples: n' < n examples and their labels are the first n' of n; wrong labels are at fixed positions of the
        order, which is random. Nested in rates: labels that are wrong at one rate are wrong at every higher rate.

        Raises:
            InputError: n outside of 1..N, or a rate outside of [0, 1].
        """
        if not 1 <= n <= len(self.order) or not 0 <= rate <= 1:
            raise InputError(
                f"{n} of {len(self.order)} examples, noise rate {rate!r}",
                expected=f"1..{len(self.order)} examples, a rate from 0 to 1",
                hint="use fewer examples, or pass a larger training set",
            )
        if self.nested == "samples":
            counts = np.array([round(rate * i) for i in range(n + 1)])
            flipped = torch.from_numpy(np.diff(counts) > 0)
        else:
            flipped = torch.zeros(n, dtype=torch.bool)
            flipped[self.priority[:n].argsort()[: round(rate * n)]] = True
        labels = torch.where(flipped, self.wrong[:n], self.clean[:n])
        return TrainingSet(self.order[:n], labels, self.clean[:n], flipped)

    def noisy_labels(self, rate: float) -> Tensor:
        """Return the noisy labels of the whole pool, (N,), in the order of the pool."""
        whole = self.training_set(len(self.order), rate)
        return torch.empty_like(self.clean).index_copy_(0, whole.indices, whole.labels)


def draw(y: Tensor, seed: int, *, nested: Literal["samples", "rates"] = "samples") -> SeedDraw:
    """Draw the order of the pool, wrong labels and network seeds of one seed; equal seeds give equal draws.

    Args:
        y: (N,) int64 true labels of the pool.
        seed: whole number >= 0.
        nested: quantity in which wrong labels are nested, see :meth:`SeedDraw.training_set`.
    """
    seeds = seed_sequence(seed, ["order", "wrong", "priority", "init", "batches"])
    order = torch.from_numpy(np.random.default_rng(seeds["order"]).permutation(len(y)))
    clean = y[order]
    wrong = corrupt_labels(clean, 1.0, "symmetric", seed=seeds["wrong"]).y
    priority = torch.from_numpy(np.random.default_rng(seeds["priority"]).permutation(len(y)))
    return SeedDraw(order, clean, wrong, priority, seeds["init"], seeds["batches"], nested)
