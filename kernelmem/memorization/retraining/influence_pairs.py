"""Influence of training rows on test rows, and the pairs in which it is high."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.retraining.differences import crossed_difference

if TYPE_CHECKING:
    import pandas as pd

ROWS_PER_BLOCK = 256  # training rows whose influence on all test rows is formed at once


@dataclass(frozen=True, eq=False, repr=False)
class RetrainingInfluence(Result):
    """Influence of n training rows on t test rows: outputs of models with a training row minus those without it.

    Attributes:
        values: (n, t) float64. standard_error: (n, t).
        test_rows: (t,) numbers of the test rows.
        statistic: name of the statistic of the outputs at the test row's label.
    """

    values: Tensor
    standard_error: Tensor
    test_rows: Tensor
    statistic: str

    shapes: ClassVar = {"values": "nt", "standard_error": "nt", "test_rows": "t"}

    def top(self, test_row: int, n: int = 5) -> list[tuple[int, float, float]]:
        """Return the n training rows with the largest influence on a test row: (training row, influence, standard error).

        Args:
            test_row: number of the test row, one of ``test_rows``.
            n: number of training rows.

        Raises:
            InputError: the test row is not among ``test_rows``.
        """
        test_row, n = as_count(test_row, "test_row", minimum=0), as_count(n, "n")
        columns = (self.test_rows == test_row).nonzero()[:, 0]
        if not len(columns):
            raise InputError(
                f"test_row={test_row}",
                expected="one of the test rows that the influence was computed for",
                hint="see influence.test_rows; Retraining.influence() computes it for all test rows",
            )
        j = int(columns[0])
        values, errors = self.values[:, j], self.standard_error[:, j]
        return [(int(i), float(values[i]), float(errors[i])) for i in values.argsort(descending=True, stable=True)[:n]]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per training row and one column per test row."""
        import pandas as pd  # slow to import

        return pd.DataFrame(self.values.numpy(), columns=self.test_rows.tolist()).rename_axis("example")

    def __str__(self) -> str:
        n, t = self.values.shape
        return (
            f"Influence of {n:,} training rows on {t:,} test rows ({self.statistic}): {float(self.values.min()):.3g} to"
            f" {float(self.values.max()):.3g}, mean standard error {float(self.standard_error.mean()):.2g}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class HighInfluencePairs(Result):
    """Pairs of a memorized training row and a test row that it influences, the largest influence first.

    Attributes:
        train, test: (p,) row numbers.
        influence: (p,) its estimates. standard_error: (p,). memorization: (p,) of the training rows.
        expected_by_chance: mean number of pairs with test outputs of permuted models.
    """

    train: Tensor
    test: Tensor
    influence: Tensor
    standard_error: Tensor
    memorization: Tensor
    expected_by_chance: float

    shapes: ClassVar = dict.fromkeys(("train", "test", "influence", "standard_error", "memorization"), "p")

    def __str__(self) -> str:
        lines = [
            f"{len(self.train):,} high-influence pairs ({len(self.train.unique()):,} training rows,"
            f" {len(self.test.unique()):,} test rows); {self.expected_by_chance:.1f} expected by chance"
        ]
        for i, j, value, error in zip(
            self.train[:5], self.test[:5], self.influence[:5], self.standard_error[:5], strict=True
        ):
            lines.append(f"  training row {int(i)} -> test row {int(j)}: {float(value):.3f} ± {float(error):.3f}")
        return "\n".join(lines)


def find_pairs(
    masks: Tensor,
    test_values: Tensor,
    rows: Tensor,
    memorization: Tensor,
    *,
    threshold: float,
    bounded: bool,
    n_null: int,
    seed: int,
) -> HighInfluencePairs:
    """Return the pairs of the given training rows and all test rows with an influence of at least ``threshold``."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for block in rows.split(ROWS_PER_BLOCK):
        values, errors = crossed_difference(masks[:, block], test_values, bounded=bounded)
        i, j = (values >= threshold).nonzero(as_tuple=True)
        parts.append((block[i], j, values[i, j], errors[i, j]))
    n_chance = 0
    for _ in range(n_null):
        permuted = test_values[torch.randperm(len(masks), generator=generator)]
        for block in rows.split(ROWS_PER_BLOCK):
            n_chance += int((crossed_difference(masks[:, block], permuted, bounded=bounded)[0] >= threshold).sum())
    empty = (torch.empty(0, dtype=torch.int64),) * 2 + (torch.empty(0, dtype=torch.float64),) * 2
    train, test, influence, error = (torch.cat(values) for values in zip(empty, *parts, strict=True))
    order = influence.argsort(descending=True, stable=True)
    train = train[order]
    return HighInfluencePairs(
        train, test[order], influence[order], error[order], memorization[train], n_chance / n_null
    )
