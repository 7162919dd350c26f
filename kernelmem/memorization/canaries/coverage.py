"""Canary coverage: how often each planted example received loss in a training."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_list, as_tensor, describe
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.recording import Run

if TYPE_CHECKING:
    import pandas as pd

IGNORED = -100  # target that torch's losses leave out by default; the name of a recorded loss states another one


@dataclass(frozen=True, eq=False, repr=False)
class CanaryCoverage(Result):
    """Number of times that each of k canaries received loss in a training.

    Attributes:
        counts: (k,) int64, summed over the rows of a canary and over steps.
        n_rows: (k,) int64, number of training rows that hold the canary; 0 for a canary that was not planted.
    """

    counts: Tensor
    n_rows: Tensor

    shapes: ClassVar[Mapping[str, str]] = {"counts": "k", "n_rows": "k"}

    @property
    def missing(self) -> list[int]:
        """Indices of the planted canaries that never received loss."""
        return ((self.n_rows > 0) & (self.counts == 0)).nonzero()[:, 0].tolist()

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per canary, with columns ``n_rows`` and ``counts``."""
        import pandas as pd  # slow to import

        return pd.DataFrame({"n_rows": self.n_rows.numpy(), "counts": self.counts.numpy()}).rename_axis("canary")

    def __str__(self) -> str:
        planted = self.counts[self.n_rows > 0]
        if not len(planted):
            return f"canary coverage: none of {len(self.counts):,} canaries was planted"
        return (
            f"canary coverage: {len(planted):,} of {len(self.counts):,} canaries planted; {int((planted > 0).sum()):,} received"
            f" loss, {int(planted.min()):,} to {int(planted.max()):,} times (median {int(planted.median()):,})"
        )


def canary_coverage(
    training: Run | Sequence[ArrayLike] | Mapping[int, int], canaries: Sequence[int | Sequence[int]] | ArrayLike
) -> CanaryCoverage:
    """Count how often each canary received loss, from what the training did and not from what was intended.

    Pass the result to :func:`exposure`, which refuses canaries that never received loss: a data loader that drops the last
    batch, a filter or a wrong index makes a planted canary look forgotten.

    Args:
        training: a recorded run, where an example counts if its loss weight and the scale of the step are not 0 and its
            target, at its first appearance, is not only the one that the loss ignores (−100 in torch); or the index vectors of
            all batches, one per step; or a mapping from row to the number of times that it was trained on.
        canaries: for each of k canaries the index of its training row, or the indices of all rows that hold it (an empty list
            for a canary that was not planted).

    Raises:
        InputError: indices that are negative or not whole numbers, a row that belongs to two canaries, or another type.
        FileCorruptError: the run cannot be read.

    Cost: one pass over the steps; for a run also the inputs of the first step of each canary.

    >>> print(canary_coverage([[0, 5], [1, 5], [2, 7]], [5, 7, 9, []]))
    canary coverage: 3 of 4 canaries planted; 2 received loss, 0 to 2 times (median 1)
    """
    rows = [_as_rows(entry) for entry in as_list(canaries, "canaries")]
    if not rows:
        raise InputError("canaries of no entries", expected="at least one canary", hint="pass the rows of the canaries")
    canary_of_row: dict[int, int] = {}
    for canary, indices in enumerate(rows):
        for row in indices:
            if canary_of_row.setdefault(row, canary) != canary or indices.count(row) > 1:
                raise InputError(
                    f"row {row} twice among the rows of the canaries",
                    expected="every training row in one canary, once",
                    hint="list the distinct training rows of each canary",
                )
    by_row = _counts_of_run(training, canary_of_row) if isinstance(training, Run) else _counts(training, canary_of_row)
    counts = torch.zeros(len(rows), dtype=torch.int64)
    for row, count in by_row.items():
        counts[canary_of_row[row]] += count
    return CanaryCoverage(counts, torch.tensor([len(indices) for indices in rows], dtype=torch.int64))


def _as_rows(entry: object) -> list[int]:
    """Return the row indices of one canary, given one index or several.

    Raises:
        InputError: an index is negative or not a whole number.
    """
    is_one = isinstance(entry, int) or (isinstance(entry, Tensor | np.ndarray | np.generic) and entry.ndim == 0)
    return [as_count(row, "canaries", minimum=0) for row in ([entry] if is_one else as_list(entry, "canaries"))]


def _counts(training: Sequence[ArrayLike] | Mapping[int, int], canary_of_row: Mapping[int, int]) -> dict[int, int]:
    """Return how often each row of a canary was in a batch, or the count that the mapping has for it.

    Raises:
        InputError: indices are negative or not whole numbers, or the type is another.
    """
    if isinstance(training, Mapping):
        counts = {
            as_count(row, "training", minimum=0): as_count(n, "training", minimum=0) for row, n in training.items()
        }
        return {row: counts.get(row, 0) for row in canary_of_row}
    found = dict.fromkeys(canary_of_row, 0)
    wanted = torch.tensor(list(canary_of_row), dtype=torch.int64)
    for step, batch in enumerate(as_list(training, "training")):
        indices = as_tensor(batch, f"training[{step}]").cpu()
        is_whole = not (indices.is_floating_point() or indices.dtype is torch.bool)
        if indices.ndim != 1 or (len(indices) and (not is_whole or int(indices.min()) < 0)):
            raise InputError(
                f"training[{step}]={describe(batch)}",
                expected="the row indices of the batch of this step, a vector of whole numbers >= 0",
                hint="collect the indices of every batch in a list, or pass a recorded run",
            )
        rows, counts = indices[torch.isin(indices, wanted)].unique(return_counts=True)
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            found[row] += count
    return found


def _counts_of_run(run: Run, canary_of_row: Mapping[int, int]) -> dict[int, int]:
    """Return the number of steps of the run in which each row of a canary received loss."""
    found, ignored = dict.fromkeys(canary_of_row, 0), dict[int, bool]()
    stated = re.search(r'"ignore_index": (-?\d+)', run.loss)
    ignored_target = int(stated[1]) if stated else IGNORED
    for step in run.steps:
        if step.scale == 0:
            continue
        for place, row in enumerate(step.examples.tolist()):
            if row not in canary_of_row or float(step.sample_weight[place]) == 0:
                continue
            if row not in ignored:
                target = run.batch(step.index)[1][place]
                ignored[row] = not target.is_floating_point() and bool((target == ignored_target).all())
            found[row] += not ignored[row]
    return found
