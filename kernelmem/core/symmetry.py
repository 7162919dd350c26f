"""Asymmetry and symmetric part of a square matrix, in one pass over pairs of tiles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Pairs of tiles stay in cache, and below the size that torch splits over threads, which stall on a busy machine.
TILE = 176


@dataclass(frozen=True)
class Asymmetry:
    """Largest difference between a square matrix A (n, n) and its transpose, and where it occurs."""

    gap: float  # largest |A_ij - A_ji|
    largest: float  # upper bound of max |A_ij|, at most gap / 2 too large
    gap_index: tuple[int, int]  # row and column of the gap, row >= column
    not_finite: tuple[int, int] | None  # the first NaN or infinity, at which the pass stops


def measure_asymmetry(
    tile: Callable[[slice, slice], Tensor],
    n: int,
    symmetric_part: Tensor | None = None,
    *,
    read_size: int | None = None,
) -> Asymmetry:
    """Return the largest |A − Aᵀ| of a matrix A (n, n), and optionally write (A + Aᵀ) / 2.

    If A has NaN or infinite entries, the comparison stops at the first one found, and the result holds its index.

    Args:
        tile: returns A[rows, columns].
        n: number of rows and columns.
        symmetric_part: (n, n) float64, receives (A + Aᵀ) / 2; None: not computed.
        read_size: side of the tiles that are read, larger for matrices in files; None: :data:`TILE`.

    Cost: every entry is read once, with five passes over tiles in cache.
    """
    read_size = read_size or TILE
    gap, largest, gap_index = 0.0, 0.0, (0, 0)
    for i in range(0, n, read_size):
        for j in range(0, i + 1, read_size):
            block = tile(slice(i, i + read_size), slice(j, j + read_size))
            mirror = block if i == j else tile(slice(j, j + read_size), slice(i, i + read_size))
            for a in range(0, len(block), TILE):
                for b in range(0, (a if i == j else block.shape[1] - 1) + 1, TILE):
                    lower = block[a : a + TILE, b : b + TILE].to(torch.float64)
                    upper = mirror[b : b + TILE, a : a + TILE].to(torch.float64)
                    row, column = i + a, j + b
                    mean = (lower / 2).add_(upper.T, alpha=0.5)  # halved before the sum, which could overflow
                    half_gaps = lower - mean  # NaN where either is NaN or infinite
                    largest_half_gap = _max_abs(half_gaps)
                    if not largest_half_gap < torch.inf:
                        not_finite = _first_not_finite(lower, row, column) or _first_not_finite(upper, column, row)
                        if not_finite is not None:
                            return Asymmetry(gap, largest, gap_index, not_finite)
                    largest = max(largest, largest_half_gap + _max_abs(mean))
                    if 2 * largest_half_gap > gap:
                        flat_index = int(half_gaps.abs().argmax())
                        gap = 2 * largest_half_gap
                        gap_index = (row + flat_index // half_gaps.shape[1], column + flat_index % half_gaps.shape[1])
                    if symmetric_part is not None:
                        height, width = mean.shape
                        symmetric_part[row : row + height, column : column + width] = mean
                        symmetric_part[column : column + width, row : row + height] = mean.T
    return Asymmetry(gap, largest, (max(gap_index), min(gap_index)), None)


def _max_abs(values: Tensor) -> float:
    low, high = values.aminmax()
    return max(-float(low), float(high))


def _first_not_finite(values: Tensor, row_offset: int, column_offset: int) -> tuple[int, int] | None:
    """Return (row, column) of the first NaN or infinity in a part of a matrix, or None if there is none.

    ``row_offset`` and ``column_offset`` are the position of this part in the matrix.
    """
    indices = (~torch.isfinite(values)).nonzero()
    return (row_offset + int(indices[0, 0]), column_offset + int(indices[0, 1])) if len(indices) else None
