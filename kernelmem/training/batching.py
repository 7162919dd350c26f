"""Batches: sizes, order of the rows from a seed, conversion of rows to the dtype and device of the model."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, named_leaves
from kernelmem.core.checks import as_count, as_seed, seed_sequence
from kernelmem.core.errors import InputError

MAX_ROWS = 2**30


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """Return the batch sizes of one pass over ``n`` rows.

    The last batch may be smaller, but a single row (whose variance BatchNorm cannot compute) joins the batch before it.

    >>> batch_sizes(10, 4), batch_sizes(9, 4)
    ([4, 4, 2], [4, 5])
    """
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def shuffled(n: int, batch_size: int, *, epochs: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield one tuple of batches for each of ``epochs`` epochs; a batch is an int64 tensor of row positions.

    Each epoch contains every position 0..n-1 once, in random order; the random numbers depend on ``seed`` only.

    Raises:
        InputError: ``n``, ``batch_size`` or ``epochs`` is below 1, or the seed is negative.
    """
    n, batch_size = as_count(n, "n", maximum=MAX_ROWS), as_count(batch_size, "batch_size")
    epochs, generator = as_count(epochs, "epochs"), torch.Generator().manual_seed(as_seed(seed))
    sizes = batch_sizes(n, batch_size)
    return (torch.randperm(n, generator=generator).split(sizes) for _ in range(epochs))


def in_dtype(rows: Rows, model: nn.Module, name: str = "x") -> Rows:
    """Return ``rows`` on the device of the model, with floating-point values in the dtype of its parameters.

    Raises:
        InputError: values exceed the range of that dtype.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype, device = (None, None) if parameter is None else (parameter.dtype, parameter.device)

    def convert(leaf: Tensor) -> Tensor:
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    converted = Rows(rows.map(convert), rows.n)
    pairs = zip(named_leaves(rows.tree, name), named_leaves(converted.tree, name), strict=True)
    for (leaf_name, values), (_, converted_values) in pairs:
        if converted_values is not values and not bool(converted_values.isfinite().all()):
            raise InputError(
                f"{leaf_name} with values up to {float(values.abs().max()):.3g}",
                expected=f"values in the range of the model's dtype, {str(dtype).removeprefix('torch.')}",
                hint="scale the features, or call model.double()",
            )
    return converted


def rows_per_step(n: int, batch_size: int | None) -> int:
    """Return the number of rows in a training step with n training rows: n if ``batch_size`` is None or larger than n."""
    return n if batch_size is None else min(n, batch_size)


class BatchOrder:
    """Random order of n training rows: the positions, in 0..n-1, of the rows in each training step.

    An endless sequence of independent random permutations of 0..n-1 is cut into pieces of ``batch_size``: every row
    appears once in each n draws, all batches have the same size, and a batch across the end of a permutation may contain
    a row twice. If the batch contains all n rows, they are in order in every step. The same ``seed``, n and
    ``batch_size`` give the same positions.
    """

    def __init__(self, seed: int, n: int, batch_size: int | None) -> None:
        self.n = as_count(n, "n", maximum=MAX_ROWS)
        self.size = rows_per_step(n, None if batch_size is None else as_count(batch_size, "batch_size"))
        # a derived seed, so that equal order and initialization seeds give different random numbers
        self._generator = torch.Generator().manual_seed(seed_sequence(seed, ["order"])["order"])
        self._remaining = torch.empty(0, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """True if every step uses all rows."""
        return self.size == self.n

    def take(self, steps: int) -> Tensor:
        """Return the positions of the rows in the next ``steps`` training steps, (steps, rows per step) int64."""
        if self.full:
            return torch.arange(self.n).expand(steps, -1)
        n_missing = steps * self.size - len(self._remaining)
        permutations = [torch.randperm(self.n, generator=self._generator) for _ in range(-(-n_missing // self.n))]
        positions = torch.cat([self._remaining, *permutations])
        self._remaining = positions[steps * self.size :]
        return positions[: steps * self.size].view(steps, self.size)
