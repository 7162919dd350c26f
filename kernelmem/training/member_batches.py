"""Which rows a member of an ensemble sees in each step: a function of its order seed and its number of rows alone."""

import torch
from torch import Tensor

from kernelmem.core.checks import seed_sequence

__all__ = ["BatchOrder", "rows_per_step"]


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
