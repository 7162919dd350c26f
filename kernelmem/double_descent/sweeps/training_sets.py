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
    """Validated data: a pool of N examples and their clean labels (N,), and m test examples and their clean labels (m,)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def as_pool_data(data: LabeledData, dtype: torch.dtype | None = None) -> PoolData:
    """Validate the examples and labels of ``data``.

    Raises:
        InputError: examples are not finite, or the number of labels differs from that of the examples.
    """
    x, x_test = as_tensor(data.x_train, "x_train", dtype=dtype), as_tensor(data.x_test, "x_test", dtype=dtype)
    y, y_test = as_labels(data.y_train, "y_train", n=len(x)), as_labels(data.y_test, "y_test", n=len(x_test))
    return PoolData(x, y, x_test, y_test)


class TrainingSet(NamedTuple):
    """Training set of n examples: indices in the pool, noisy labels, true labels and mask of wrong labels, (n,) each."""

    indices: Tensor
    labels: Tensor
    true_labels: Tensor
    flipped: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SeedDraw:
    """Random draws of one seed: order of the pool, a wrong label for every example, seeds of the network.

    Attributes:
        order: (N,) permutation of the pool.
        true_labels: (N,) true labels in that order.
        wrong_labels: (N,) a wrong label for every example, uniform over the other classes; used for flipped examples.
        flip_priority: (N,) rank in which labels are flipped as the noise rate increases, if nested in rates.
        init_seed, order_seed: seeds of initialization and batch order, the same along the axis.
        nested: quantity in which wrong labels are nested, "samples" or "rates"; see :meth:`training_set`.
    """

    order: Tensor
    true_labels: Tensor
    wrong_labels: Tensor
    flip_priority: Tensor
    init_seed: int
    order_seed: int
    nested: Literal["samples", "rates"]

    def training_set(self, n: int, noise_rate: float) -> TrainingSet:
        """Return the first n examples, exactly round(noise_rate · n) of them with a wrong label (Python's round).

        Nested in samples: n' < n examples and their labels are the first n' of n; wrong labels are at fixed positions of the
        order, which is random. Nested in rates: labels that are wrong at one rate are wrong at every higher rate.

        Raises:
            InputError: n is outside of 1..N, or the noise rate outside of [0, 1].
        """
        if not 1 <= n <= len(self.order) or not 0 <= noise_rate <= 1:
            raise InputError(
                f"{n} of {len(self.order)} examples, noise rate {noise_rate!r}",
                expected=f"1..{len(self.order)} examples, a noise rate from 0 to 1",
                hint="use fewer examples, or pass a larger training set",
            )
        if self.nested == "samples":
            flip_counts = np.array([round(noise_rate * i) for i in range(n + 1)])
            flipped = torch.from_numpy(np.diff(flip_counts) > 0)
        else:
            flipped = torch.zeros(n, dtype=torch.bool)
            flipped[self.flip_priority[:n].argsort()[: round(noise_rate * n)]] = True
        labels = torch.where(flipped, self.wrong_labels[:n], self.true_labels[:n])
        return TrainingSet(self.order[:n], labels, self.true_labels[:n], flipped)

    def noisy_labels(self, noise_rate: float) -> Tensor:
        """Return the noisy labels of all N examples in pool order, (N,); ``noise_rate`` is the fraction of wrong labels."""
        full_set = self.training_set(len(self.order), noise_rate)
        return torch.empty_like(self.true_labels).index_copy_(0, full_set.indices, full_set.labels)


def draw_for_seed(y: Tensor, seed: int, *, nested: Literal["samples", "rates"] = "samples") -> SeedDraw:
    """Draw the order of the pool, wrong labels and network seeds of one seed; equal seeds give equal draws.

    Args:
        y: (N,) int64 true labels of the pool.
        seed: whole number >= 0.
        nested: quantity in which wrong labels are nested, see :meth:`SeedDraw.training_set`.
    """
    seeds = seed_sequence(seed, ["order", "wrong", "priority", "init", "batches"])
    order = torch.from_numpy(np.random.default_rng(seeds["order"]).permutation(len(y)))
    true_labels = y[order]
    wrong_labels = corrupt_labels(true_labels, 1.0, "symmetric", seed=seeds["wrong"]).y
    flip_priority = torch.from_numpy(np.random.default_rng(seeds["priority"]).permutation(len(y)))
    return SeedDraw(order, true_labels, wrong_labels, flip_priority, seeds["init"], seeds["batches"], nested)
