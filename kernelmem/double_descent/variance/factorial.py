"""The seeds of a balanced factorial of trainings: initialization x data x label noise x batch order."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from kernelmem.core.checks import as_count, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.double_descent.variance.anova import FACTORS, VarianceComponents, variance_components

if TYPE_CHECKING:
    from kernelmem.training.ensemble.train import Member

__all__ = ["Cell", "Factorial", "factorial"]

MOST_CELLS = 10**6


class Cell(NamedTuple):
    """The four seeds of one training."""

    init_seed: int
    data_seed: int
    noise_seed: int
    order_seed: int


@dataclass(frozen=True)
class Factorial:
    """All cells in the order of nested loops: initialization outermost, then data, noise, order."""

    shape: tuple[int, int, int, int]
    cells: tuple[Cell, ...]
    nested: bool  # whether every data set has noise draws of its own

    def __len__(self) -> int:
        return len(self.cells)

    def members(
        self, width: int | tuple[int, ...], draw: Callable[[int, int], tuple[Tensor, Tensor]]
    ) -> "list[Member]":
        """One member of an ensemble for each cell; ``draw(data_seed, noise_seed)`` gives rows (n,) and their labels (n,).

        It is called once for each pair of seeds.
        """
        from kernelmem.training.ensemble.train import Member

        drawn: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        found = []
        for cell in self.cells:
            pair = cell.data_seed, cell.noise_seed
            if pair not in drawn:
                drawn[pair] = draw(*pair)
            rows, labels = drawn[pair]
            found.append(Member(width, rows, labels, cell.init_seed, cell.order_seed))
        return found

    def fold(self, outputs: Tensor) -> Tensor:
        """Outputs of all members (cells, m, C) as (initializations, data, noise, order, m, C).

        Raises:
            InputError: another number of members.
        """
        if outputs.ndim != 3 or len(outputs) != len(self):
            raise InputError(
                f"outputs of shape {tuple(outputs.shape)}",
                expected=f"({len(self)}, m, C): one member for each cell, in order",
                hint="train Factorial.members with keep_outputs=True",
            )
        return outputs.unflatten(0, self.shape)

    def components(self, outputs: Tensor, targets: Tensor) -> VarianceComponents:
        """:func:`variance_components` of the outputs (cells, m, C) of all members."""
        inside: Mapping[str, str] = {"noise": "data"} if self.nested else {}
        return variance_components(self.fold(outputs), targets, factors=FACTORS, nested=inside)


def factorial(
    *,
    initializations: int = 1,
    data: int = 1,
    noise: int = 1,
    order: int = 1,
    seed: int,
    nested: bool = True,
) -> Factorial:
    """Derive the seeds of a balanced factorial, level by level, from one seed.

    The levels of a factor do not depend on how many levels there are of it or of another one: a factorial contains every
    smaller one with the same seed. With ``nested`` every data set has noise seeds of its own (label noise that is drawn for
    its rows); otherwise the same noise seeds are crossed with all data sets.

    Args:
        initializations: levels of the initial weights, a whole number >= 1.
        data: levels of the training rows.
        noise: levels of the label noise, of each data set where nested.
        order: levels of the batch order.
        seed: a whole number >= 0.
        nested: as above.

    Returns:
        Factorial: initializations · data · noise · order cells.

    Raises:
        InputError: a count that is no whole number >= 1, more than a million cells, a bad seed.

    >>> [len(set(column)) for column in zip(*factorial(initializations=2, data=3, noise=2, seed=0).cells)]
    [2, 3, 6, 1]
    """
    given = {"initializations": initializations, "data": data, "noise": noise, "order": order}
    sizes = {name: as_count(size, name) for name, size in given.items()}
    initializations, data, noise, order = sizes.values()
    total = math.prod(sizes.values())
    if total > MOST_CELLS:
        raise InputError(f"{total:,} cells", expected=f"at most {MOST_CELLS:,}", hint="take fewer levels")
    roots = seed_sequence(seed, FACTORS)
    init, draws, flips, orders = (
        [_level(root, level) for level in range(size)]
        for root, size in zip(roots.values(), sizes.values(), strict=True)
    )
    cells = []
    for i, j, k, o in product(range(initializations), range(data), range(noise), range(order)):
        flip = _level(flips[k], j) if nested else flips[k]
        cells.append(Cell(init[i], draws[j], flip, orders[o]))
    return Factorial((initializations, data, noise, order), tuple(cells), nested)


def _level(root: int, level: int) -> int:
    """A seed of its own for each level, whatever their number."""
    return seed_sequence(root, [str(i) for i in range(level + 1)])[str(level)]
