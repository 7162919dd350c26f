"""Tridiagonal form K = Q T Qᵀ of a stored kernel in the memory of one matrix: leave-one-out residuals at many ridges."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.kernels import KernelStore

BLOCK = 512  # columns of Qᵀ at once


@dataclass(frozen=True, eq=False)
class TridiagonalFactor:
    """K = Q T Qᵀ (n, n), n >= 2, with T tridiagonal and Q = diag(1, H_1 H_2 ...) a product of Householder reflections."""

    diagonal: np.ndarray  # (n,), of T
    off_diagonal: np.ndarray  # (n − 1,)
    reflectors: (
        np.ndarray
    )  # (n, n − 1) in column-major order, its first n − 1 rows as LAPACK's dgeqrf stores H_1, H_2, ...
    scales: np.ndarray  # (n − 1,), of the reflections

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of K, ascending, (n,)."""
        from scipy.linalg import eigvalsh_tridiagonal

        return torch.from_numpy(eigvalsh_tridiagonal(self.diagonal, self.off_diagonal))

    def squared_errors(self, ridges: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared leave-one-out residual of C targets y (n, C) at G ridges, (G, C).

        The residuals are alpha_i / A_ii with A = (K + ridge I)⁻¹ and alpha = A y. K + ridge I must be positive definite
        beyond rounding.

        Cost: n³ multiply-adds for Q, and O(n²) for each ridge; a few blocks of 512 columns of n numbers.
        """
        from scipy.linalg import solveh_banded

        A_diagonal = self._inverse_diagonals(ridges.numpy())  # (G, n)
        modes = self._rotate(targets.numpy(), transpose=True)
        errors = torch.empty(len(ridges), targets.shape[1], dtype=torch.float64)
        upper = np.append(0.0, self.off_diagonal)
        for g, ridge in enumerate(ridges.tolist()):
            alpha = self._rotate(solveh_banded(np.vstack([upper, self.diagonal + ridge]), modes), transpose=False)
            errors[g] = torch.from_numpy(np.square(alpha / A_diagonal[g, :, None]).mean(0))
        return errors

    def _inverse_diagonals(self, ridges: np.ndarray) -> np.ndarray:
        """Return the diagonals of (K + ridge I)⁻¹ at G ridges, (G, n)."""
        # With T + ridge I = L D Lᵀ, L unit lower bidiagonal, A_ii is the sum of w_k² / D_k over the entries of w = L⁻¹ Qᵀ e_i.
        n = len(self.diagonal)
        multipliers, pivots = np.zeros((n, len(ridges))), np.empty((n, len(ridges)))
        pivots[0] = self.diagonal[0] + ridges
        for k in range(1, n):
            multipliers[k] = self.off_diagonal[k - 1] / pivots[k - 1]
            pivots[k] = self.diagonal[k] + ridges - multipliers[k] * self.off_diagonal[k - 1]
        result = np.empty((len(ridges), n))
        for start in range(0, n, BLOCK):
            rows = np.arange(start, min(start + BLOCK, n))
            unit = np.zeros((n, len(rows)))
            unit[rows, rows - start] = 1
            Q = self._rotate(unit, transpose=True)
            w, total = np.zeros((len(ridges), len(rows))), np.zeros((len(ridges), len(rows)))
            squares = np.empty_like(w)
            for k in range(n):
                w *= -multipliers[k, :, None]
                w += Q[k]
                np.square(w, out=squares)
                squares /= pivots[k, :, None]
                total += squares
            result[:, rows] = total
        return result

    def _rotate(self, v: np.ndarray, *, transpose: bool) -> np.ndarray:
        """Return Qᵀ v or Q v, (n, k), for v (n, k)."""
        from scipy.linalg import get_lapack_funcs

        (dormqr,) = get_lapack_funcs(("ormqr",), dtype=np.float64)
        side = "T" if transpose else "N"
        rest = np.array(v[1:], order="F")
        work_size = 64 * rest.shape[1] + 65 * 64
        rest, _, info = dormqr("L", side, self.reflectors, self.scales, rest, work_size, overwrite_c=1)
        assert info == 0
        return np.concatenate([v[:1], rest])


def tridiagonal_bytes(store: KernelStore) -> int:
    """Return the memory of :func:`tridiagonalize` and of the methods of its result."""
    n = store.shape[0]
    return 8 * n * (n + 4 * min(BLOCK, n) + 2 * min(store.layout.tile, n))


def tridiagonalize(store: KernelStore) -> TridiagonalFactor:
    """Reduce a symmetric stored kernel K (n, n), n >= 2, to tridiagonal form, in float64.

    Cost: 2 n³/3 multiply-adds, half of them in products with vectors; 8 n² bytes. An eigendecomposition takes three times as
    much of both.

    Source: ridge selection by such a form: Eldén 1984.
    """
    from scipy.linalg import get_lapack_funcs

    n = store.shape[0]
    numbers = np.empty(n * n)
    K = numbers.reshape(n, n)
    for rows, block in store.blocks():
        K[rows] = block.numpy()
    (dsytrd,) = get_lapack_funcs(("sytrd",), dtype=np.float64)
    _, diagonal, off_diagonal, scales, info = dsytrd(K.T, lower=1, lwork=64 * n, overwrite_a=1)
    assert info == 0
    # The vector of H_k is stored from row k + 1 of column k on. Read from the second number on, it starts in row k, as dormqr
    # expects it; nothing is copied.
    reflectors = np.lib.stride_tricks.as_strided(numbers[1:], (n, n - 1), (8, 8 * n))
    return TridiagonalFactor(diagonal, off_diagonal, reflectors, scales)
