"""Balanced factorial design of trainings: seeds of initialization x data x label noise x batch order."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from kernelmem.core.checks import as_count, as_flag, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.variance.anova import FACTORS, VarianceComponents, variance_components

if TYPE_CHECKING:
    import pandas as pd

    from kernelmem.training.ensemble.members import Member

MAX_CELLS = 10**6


class Cell(NamedTuple):
    """The seeds of one training: of its initialization, data, label noise and batch order."""

    init_seed: int
    data_seed: int
    noise_seed: int
    order_seed: int


@dataclass(frozen=True, eq=False, repr=False)
class FactorialDesign(Result):
    """All combinations of the levels of four factors, one training for each.

    Attributes:
        shape: number of levels of initialization, data, label noise and batch order.
        cells: seeds in the order of nested loops, initialization outermost, then data, noise, order.
        nested: True if every data set has its own noise draws.
    """

    shape: tuple[int, int, int, int]
    cells: tuple[Cell, ...]
    nested: bool

    def __len__(self) -> int:
        return len(self.cells)

    def members(
        self, width: int | tuple[int, ...], draw: Callable[[int, int], tuple[Tensor, Tensor]]
    ) -> "list[Member]":
        """Return one member of an ensemble for each cell.

        Args:
            width: hidden width(s) of every network.
            draw: maps (data_seed, noise_seed) to the training rows (n,) and their labels (n,); called once for each
                pair of seeds.
        """
        from kernelmem.training.ensemble.members import Member

        draws: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        members = []
        for cell in self.cells:
            seeds = cell.data_seed, cell.noise_seed
            if seeds not in draws:
                draws[seeds] = draw(*seeds)
            rows, labels = draws[seeds]
            members.append(Member(width, rows, labels, cell.init_seed, cell.order_seed))
        return members

    def fold(self, outputs: Tensor) -> Tensor:
        """Reshape the outputs (cells, m, C) of all members to (initializations, data, noise, order, m, C).

        Raises:
            InputError: the number of members differs from the number of cells.
        """
        if outputs.ndim != 3 or len(outputs) != len(self):
            raise InputError(
                f"outputs of shape {tuple(outputs.shape)}",
                expected=f"({len(self)}, m, C): one member for each cell, in order",
                hint="train FactorialDesign.members and keep their outputs",
            )
        return outputs.unflatten(0, self.shape)

    def components(self, outputs: Tensor, targets: Tensor) -> VarianceComponents:
        """Return the :func:`variance_components` of the outputs of all cells, (cells, m examples, C outputs)."""
        nested: Mapping[str, str] = {"noise": "data"} if self.nested else {}
        return variance_components(self.fold(outputs), targets, factors=FACTORS, nested=nested)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per cell and its four seeds as columns."""
        import pandas as pd

        return pd.DataFrame(list(self.cells), columns=list(Cell._fields))

    def __str__(self) -> str:
        levels = " x ".join(f"{size} {name}" for size, name in zip(self.shape, FACTORS, strict=True))
        noise = ", noise nested in data" if self.nested and self.shape[2] > 1 else ""
        return f"factorial design of {len(self):,} trainings: {levels}{noise}"


def factorial_design(
    *,
    initializations: int = 1,
    data: int = 1,
    noise: int = 1,
    order: int = 1,
    seed: int,
    nested: bool = True,
) -> FactorialDesign:
    """Derive the seeds of a balanced factorial from one seed, level by level.

    The seeds of a level do not depend on the number of levels: a design contains every smaller design with the same
    seed.

    Args:
        initializations: number of initial weights, >= 1.
        data: number of training sets.
        noise: number of label noise draws; if ``nested``, for each training set.
        order: number of batch orders.
        seed: seed from which all seeds are derived, a whole number >= 0.
        nested: True: each training set has its own noise seeds (label noise is drawn for its examples); False: the same
            noise seeds are crossed with all training sets.

    Returns:
        FactorialDesign: initializations · data · noise · order cells.

    Raises:
        InputError: a count is not a whole number >= 1, there are more than a million cells, or the seed is invalid.

    >>> design = factorial_design(initializations=2, data=3, noise=2, seed=0)
    >>> [len(set(seeds)) for seeds in zip(*design.cells)]
    [2, 3, 6, 1]
    """
    nested = as_flag(nested, "nested")
    counts = {"initializations": initializations, "data": data, "noise": noise, "order": order}
    shape = tuple(as_count(count, name) for name, count in counts.items())
    if math.prod(shape) > MAX_CELLS:
        raise InputError(f"{math.prod(shape):,} cells", expected=f"at most {MAX_CELLS:,}", hint="use fewer levels")
    factor_seeds = seed_sequence(seed, FACTORS)
    init_seeds, data_seeds, noise_seeds, order_seeds = (
        [_level_seed(factor_seed, level) for level in range(n_levels)]
        for factor_seed, n_levels in zip(factor_seeds.values(), shape, strict=True)
    )
    cells = []
    for i, j, k, o in product(*map(range, shape)):
        noise_seed = _level_seed(noise_seeds[k], j) if nested else noise_seeds[k]
        cells.append(Cell(init_seeds[i], data_seeds[j], noise_seed, order_seeds[o]))
    return FactorialDesign((shape[0], shape[1], shape[2], shape[3]), tuple(cells), nested)


def _level_seed(factor_seed: int, level: int) -> int:
    """Return the seed of a level of a factor; it does not depend on the number of levels."""
    return seed_sequence(factor_seed, [str(i) for i in range(level + 1)])[str(level)]
