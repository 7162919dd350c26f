"""Batches: their sizes, the order of the rows from a seed, rows in the dtype of the model."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, named_leaves
from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError

__all__ = ["BatchOrder", "batch_sizes", "in_dtype", "rows_per_step", "shuffled"]


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """The sizes of the batches of one pass over ``n`` rows.

    The last may be smaller, but a single row (of which BatchNorm has no variance) goes with the batch before it.

    >>> batch_sizes(10, 4), batch_sizes(9, 4)
    ([4, 4, 2], [4, 5])
    """
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def shuffled(n: int, batch_size: int, *, epochs: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The batches of every epoch, as positions of their rows, shuffled by a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    sizes = batch_sizes(n, batch_size)
    for _ in range(epochs):
        yield torch.randperm(n, generator=generator).split(sizes)


def in_dtype(rows: Rows, model: nn.Module, name: str = "x") -> Rows:
    """Floating-point rows in the dtype of the model's parameters.

    Raises:
        InputError: values beyond its range.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def brought(leaf: Tensor) -> Tensor:
        return leaf if dtype is None or not leaf.is_floating_point() else leaf.to(dtype)

    brought_rows = Rows(rows.map(brought), rows.n)
    pairs = zip(named_leaves(rows.tree, name), named_leaves(brought_rows.tree, name), strict=True)
    for (where, before), (_, after) in pairs:
        if after is not before and not bool(after.isfinite().all()):
            raise InputError(
                f"{where} with values up to {float(before.abs().max()):.3g}",
                expected=f"values in the range of the model's dtype, {str(dtype).removeprefix('torch.')}",
                hint="scale the features, or call model.double()",
            )
    return brought_rows


def rows_per_step(n: int, batch_size: int | None) -> int:
    """How many of its n rows a member sees in one step: all of them where ``batch_size`` is None or at least n."""
    return n if batch_size is None else min(n, batch_size)


class BatchOrder:
    """The positions 0..n-1 of the rows of each step.

    The endless sequence of independent random permutations of 0..n-1 is cut into pieces of ``batch_size``: every row
    comes once in each n draws, no row is dropped, all batches have the same size, and a batch across the end of a
    permutation may hold a row twice. Where the batch holds all n rows, they come in their own order in every step.
    Members with the same ``seed``, n and ``batch_size`` see the same positions.
    """

    def __init__(self, seed: int, n: int, batch_size: int | None) -> None:
        self.n, self.size = n, rows_per_step(n, batch_size)
        # hashed, so that an order seed equal to an initial seed does not give draws of the same stream
        self._generator = torch.Generator().manual_seed(seed_sequence(seed, ["order"])["order"])
        self._left = torch.empty(0, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """Whether every step has all rows."""
        return self.size == self.n

    def take(self, steps: int) -> Tensor:
        """The positions (steps, batch) of the next steps."""
        if self.full:
            return torch.arange(self.n).expand(steps, -1)
        need = steps * self.size - len(self._left)
        fresh = [torch.randperm(self.n, generator=self._generator) for _ in range(-(-need // self.n))]
        drawn = torch.cat([self._left, *fresh])
        taken, self._left = drawn[: steps * self.size], drawn[steps * self.size :]
        return taken.view(steps, self.size)
