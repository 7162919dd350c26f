"""Asymmetry and symmetric part of a square matrix, in one pass over pairs of tiles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Pairs of tiles stay in cache, and below the size that torch splits over threads, which stall on a busy machine.
TILE = 176


@dataclass(frozen=True)
class Symmetry:
    """Asymmetry of a matrix A (n, n)."""

    gap: float  # largest |A_ij - A_ji|
    largest: float  # upper bound of max |A_ij|, at most gap / 2 too large
    where: tuple[int, int]  # row and column of the gap, row >= column
    not_finite: tuple[int, int] | None  # the first NaN or infinity, at which the pass stops


def symmetry(
    tile: Callable[[slice, slice], Tensor], n: int, into: Tensor | None = None, *, read: int | None = None
) -> Symmetry:
    """Compare a matrix A with its transpose, and optionally write (A + Aᵀ) / 2.

    Args:
        tile: returns A[rows, columns].
        n: number of rows and columns.
        into: (n, n) float64, receives (A + Aᵀ) / 2; None: not computed.
        read: side of the tiles that are read, larger for matrices in files; None: :data:`TILE`.

    Cost: every entry is read once, with five passes over tiles in cache.
    """
    read = read or TILE
    gap, largest, where = 0.0, 0.0, (0, 0)
    for i in range(0, n, read):
        for j in range(0, i + 1, read):
            block = tile(slice(i, i + read), slice(j, j + read))
            mirror = block if i == j else tile(slice(j, j + read), slice(i, i + read))
            for a in range(0, len(block), TILE):
                for b in range(0, (a if i == j else block.shape[1] - 1) + 1, TILE):
                    lower = block[a : a + TILE, b : b + TILE].to(torch.float64)
                    upper = mirror[b : b + TILE, a : a + TILE].to(torch.float64)
                    row, column = i + a, j + b
                    mean = (lower / 2).add_(upper.T, alpha=0.5)  # halved before the sum, which could overflow
                    half_gap = lower - mean  # NaN where either is NaN or infinite
                    largest_half_gap = _max_abs(half_gap)
                    if not largest_half_gap < torch.inf:
                        bad = _first_bad(lower, row, column) or _first_bad(upper, column, row)
                        if bad is not None:
                            return Symmetry(gap, largest, where, bad)
                    largest = max(largest, largest_half_gap + _max_abs(mean))
                    if 2 * largest_half_gap > gap:
                        at = int(half_gap.abs().argmax())
                        gap = 2 * largest_half_gap
                        where = (row + at // half_gap.shape[1], column + at % half_gap.shape[1])
                    if into is not None:
                        height, width = mean.shape
                        into[row : row + height, column : column + width] = mean
                        into[column : column + width, row : row + height] = mean.T
    return Symmetry(gap, largest, (max(where), min(where)), None)


def _max_abs(values: Tensor) -> float:
    low, high = values.aminmax()
    return max(-float(low), float(high))


def _first_bad(values: Tensor, i: int, j: int) -> tuple[int, int] | None:
    bad = (~torch.isfinite(values)).nonzero()
    return (i + int(bad[0, 0]), j + int(bad[0, 1])) if len(bad) else None
