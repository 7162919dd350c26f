"""How far a square matrix is from symmetric, and its symmetric part: one pass over pairs of tiles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Symmetry", "symmetry"]

TILE = 256  # a pair of tiles, their mean and their difference stay in cache: whole transposed reads cost ten times that


@dataclass(frozen=True)
class Symmetry:
    """What a pass over a matrix A (n, n) saw."""

    gap: float  # largest |A_ij - A_ji|
    largest: float  # about the largest |A_ij|: never less, at most half a gap more
    where: tuple[int, int]  # row and column of the gap, row >= column
    not_finite: tuple[int, int] | None  # the first NaN or infinity that was met, where the pass ended


def symmetry(tile: Callable[[slice, slice], Tensor], n: int, into: Tensor | None = None) -> Symmetry:
    """Compare a matrix with its transpose; ``into`` (n, n), float64, is filled with the mean of both.

    Args:
        tile: gives A[rows, columns].
        n: its size.
        into: what is to hold (A + Aᵀ) / 2, or None.

    Cost: every entry is read once; five passes over tiles in cache.
    """
    gap, largest, where = 0.0, 0.0, (0, 0)
    for i in range(0, n, TILE):
        rows = slice(i, i + TILE)
        for j in range(0, i + 1, TILE):
            columns = slice(j, j + TILE)
            lower, upper = tile(rows, columns).to(torch.float64), tile(columns, rows).to(torch.float64)
            mean = (lower / 2).add_(upper.T, alpha=0.5)  # halves first: a sum may overflow
            apart = lower - mean  # half the difference; NaN where either is NaN or infinite
            most = _size(apart)
            if not most < torch.inf:
                bad = _first_bad(lower, i, j) or _first_bad(upper, j, i)
                if bad is not None:
                    return Symmetry(gap, largest, where, bad)
            largest = max(largest, most + _size(mean))
            if 2 * most > gap:
                at = int(apart.abs().argmax())
                gap, where = 2 * most, (i + at // apart.shape[1], j + at % apart.shape[1])
            if into is not None:
                into[rows, columns] = mean
                into[columns, rows] = mean.T
    return Symmetry(gap, largest, (max(where), min(where)), None)


def _size(part: Tensor) -> float:
    low, high = part.aminmax()
    return max(-float(low), float(high))


def _first_bad(part: Tensor, i: int, j: int) -> tuple[int, int] | None:
    bad = (~torch.isfinite(part)).nonzero()
    return (i + int(bad[0, 0]), j + int(bad[0, 1])) if len(bad) else None
