"""How far a square matrix is from symmetric, and its symmetric part: one pass over pairs of tiles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Symmetry", "symmetry"]

# Pairs of tiles stay in cache, and below the size that torch splits over threads, which stall on a busy machine.
TILE = 176


@dataclass(frozen=True)
class Symmetry:
    """What a pass over a matrix A (n, n) saw."""

    gap: float  # largest |A_ij - A_ji|
    largest: float  # about the largest |A_ij|: never less, at most half a gap more
    where: tuple[int, int]  # row and column of the gap, row >= column
    not_finite: tuple[int, int] | None  # the first NaN or infinity that was met, where the pass ended


def symmetry(
    tile: Callable[[slice, slice], Tensor], n: int, into: Tensor | None = None, *, read: int | None = None
) -> Symmetry:
    """Compare a matrix with its transpose; ``into`` (n, n), float64, is filled with the mean of both.

    Args:
        tile: gives A[rows, columns].
        n: its size.
        into: what is to hold (A + Aᵀ) / 2, or None.
        read: rows and columns of the tiles asked for; None: those in which the work is done. A file is read in larger.

    Cost: every entry is read once; five passes over tiles in cache.
    """
    read = read or TILE
    gap, largest, where = 0.0, 0.0, (0, 0)
    for i in range(0, n, read):
        for j in range(0, i + 1, read):
            own = tile(slice(i, i + read), slice(j, j + read))
            mirror = own if i == j else tile(slice(j, j + read), slice(i, i + read))
            for a in range(0, len(own), TILE):
                for b in range(0, (a if i == j else own.shape[1] - 1) + 1, TILE):
                    lower = own[a : a + TILE, b : b + TILE].to(torch.float64)
                    upper = mirror[b : b + TILE, a : a + TILE].to(torch.float64)
                    row, column = i + a, j + b
                    mean = (lower / 2).add_(upper.T, alpha=0.5)  # halves first: a sum may overflow
                    apart = lower - mean  # half the difference; NaN where either is NaN or infinite
                    most = _size(apart)
                    if not most < torch.inf:
                        bad = _first_bad(lower, row, column) or _first_bad(upper, column, row)
                        if bad is not None:
                            return Symmetry(gap, largest, where, bad)
                    largest = max(largest, most + _size(mean))
                    if 2 * most > gap:
                        at = int(apart.abs().argmax())
                        gap, where = 2 * most, (row + at // apart.shape[1], column + at % apart.shape[1])
                    if into is not None:
                        high, wide = mean.shape
                        into[row : row + high, column : column + wide] = mean
                        into[column : column + wide, row : row + high] = mean.T
    return Symmetry(gap, largest, (max(where), min(where)), None)


def _size(part: Tensor) -> float:
    low, high = part.aminmax()
    return max(-float(low), float(high))


def _first_bad(part: Tensor, i: int, j: int) -> tuple[int, int] | None:
    bad = (~torch.isfinite(part)).nonzero()
    return (i + int(bad[0, 0]), j + int(bad[0, 1])) if len(bad) else None
