"""The inverse of K + ridge I, as leave-one-out needs it: a Cholesky factor, or a spectrum at ridge 0."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError

__all__ = ["CholeskyFactor", "EigenFactor", "cholesky_in_place", "decompose", "eigensystem", "factorize"]

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps
PANEL = 1024  # columns of the triangular inverse held at once


@dataclass(frozen=True, eq=False)
class CholeskyFactor:
    """K + ridge I = L Lᵀ, for ridge > 0; A is its inverse."""

    ridge: float
    L: Tensor  # (n, n), lower
    white: Tensor  # (n, C), L⁻¹ y

    def alpha(self) -> Tensor:
        """A y, (n, C)."""
        return torch.linalg.solve_triangular(self.L.T, self.white, upper=True)

    def reachable(self, targets: Tensor) -> Tensor:
        """The part of y that K + ridge I can reach: all of it."""
        return targets

    def left_out_each(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Left-out residual of every row, alpha_i / A_ii, (n, C), and leverage, 1 - ridge A_ii, (n,)."""
        # A_ii is the squared norm of column i of L⁻¹, which is zero above i: each panel solves the trailing
        # triangle only, a third of the work of a full solve, and no second n x n matrix is formed.
        n, inverse = len(self.L), torch.empty_like(self.L[0])
        for start in range(0, n, PANEL):
            unit = torch.eye(n - start, min(PANEL, n - start), dtype=self.L.dtype, device=self.L.device)
            columns = torch.linalg.solve_triangular(self.L[start:, start:], unit, upper=False)
            inverse[start : start + PANEL] = columns.square().sum(0)
        return alpha / inverse[:, None], 1 - self.ridge * inverse

    def left_out(self, rows: Tensor) -> Tensor:
        """Left-out residual of a block, (A_BB)⁻¹ alpha_B, (b, C)."""
        # A_BB = XᵀX and alpha_B = Xᵀ white for X = L⁻¹ E_B: a least-squares problem, and solved as one, since
        # forming A_BB would square its condition.
        unit = torch.zeros(len(self.L), len(rows), dtype=self.L.dtype, device=self.L.device)
        unit[rows, torch.arange(len(rows), device=rows.device)] = 1
        return _least_squares(torch.linalg.solve_triangular(self.L, unit, upper=False), self.white)

    def solve(self, rows: Tensor) -> Tensor:
        """``rows`` A, (m, n)."""
        return torch.cholesky_solve(rows.T, self.L).T

    def condition(self) -> float:
        """Condition number, estimated from below by Lanczos steps on the factor and on its inverse."""
        v = torch.cos(torch.arange(len(self.L), dtype=self.L.dtype, device=self.L.device))[:, None]
        largest = _largest(lambda u: self.L @ (self.L.T @ u), v)
        solve = torch.linalg.solve_triangular  # of one column, ten times quicker than cholesky_solve
        return largest * _largest(lambda u: solve(self.L.T, solve(self.L, u, upper=False), upper=True), v)


@dataclass(frozen=True, eq=False)
class EigenFactor:
    """K = V diag(values) Vᵀ on its range, Z a basis of its null space: the limit of A as the ridge goes to 0.

    A = N / ridge + K⁺ + O(ridge), where N = Z Zᵀ.
    """

    values: Tensor  # (r,), ascending
    V: Tensor  # (n, r)
    Z: Tensor  # (n, n - r)
    white: Tensor  # (r, C), values^(-1/2) Vᵀ y
    null: Tensor  # (n - r, C), Zᵀ y
    noise: float  # eigenvalues up to here count as zero

    def alpha(self) -> Tensor:
        """K⁺ y, (n, C)."""
        return self.V @ (self.white / self.values.sqrt()[:, None])

    def reachable(self, targets: Tensor) -> Tensor:
        """The part of y in the range of K, (n, C)."""
        return targets - self.Z @ self.null

    def left_out_each(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Left-out residual of every row, (n, C), and leverage, 1 - N_ii, (n,)."""
        squares = self.V.square()
        null = self.Z.square().sum(1)
        is_null = null > self._leak(squares @ self.values**-2)
        one = torch.ones_like(null)
        free = alpha / torch.where(is_null, one, squares @ (1 / self.values))[:, None]
        bound = (self.Z @ self.null) / torch.where(is_null, null, one)[:, None]
        return torch.where(is_null[:, None], bound, free), squares.sum(1)

    def left_out(self, rows: Tensor) -> Tensor:
        """Left-out residual of a block, the limit of (A_BB)⁻¹ alpha_B, (b, C)."""
        # On the range E of N_BB the term N / ridge rules; on its kernel E0, where N itself vanishes, K⁺ does,
        # with what E has explained taken away.
        Z, X = self.Z[rows], (self.V[rows] / self.values.sqrt()).T
        weights, basis = torch.linalg.eigh(Z @ Z.T)
        is_null = weights > self._leak(((X / self.values.sqrt()[:, None]) @ basis).square().sum(0))
        E, E0 = basis[:, is_null], basis[:, ~is_null]
        bound = E @ ((E.T @ (Z @ self.null)) / weights[is_null, None])
        return bound + E0 @ _least_squares(X @ E0, self.white - X @ bound) if E0.numel() else bound

    def solve(self, rows: Tensor) -> Tensor:
        """``rows`` K⁺, (m, n)."""
        return ((rows @ self.V) / self.values) @ self.V.T

    def condition(self) -> float:
        """Ratio of the extreme eigenvalues kept; 1 for the zero kernel."""
        return float(self.values[-1] / self.values[0]) if len(self.values) else 1.0

    def _leak(self, squared: Tensor) -> Tensor:
        # To first order, noise E in K turns a unit vector v of its range by |E K⁺ v| toward the null space,
        # and ``squared`` is |K⁺ v|². A null weight below that cannot be told from none.
        return (self.noise**2 * squared).clamp(min=len(self.V) * EPS)


def factorize(K: Tensor, targets: Tensor, ridge: float) -> CholeskyFactor:
    """Factorize K + ridge I.

    Raises:
        NumericalError: not positive definite beyond rounding.
    """
    L, top, positive = cholesky_in_place(K.clone(), ridge)
    # A pivot at the level of rounding is noise, even where it happens to be positive.
    noise = len(K) * EPS * top
    if not positive or float(L.diagonal().min()) ** 2 <= noise:
        smallest = float(torch.linalg.eigvalsh(K)[0])
        raise NumericalError(
            f"kernel {tuple(K.shape)} with smallest eigenvalue {smallest:.3g}, and ridge {ridge:.3g}",
            expected="K + ridge I positive definite, beyond rounding",
            hint=f"raise the ridge well above {max(-smallest, noise):.2g}, or compute the kernel in float64;"
            " if it is singular but not negative, ridge=0 gives the minimum-norm fit",
        )
    return CholeskyFactor(ridge, L, torch.linalg.solve_triangular(L, targets, upper=False))


def cholesky_in_place(K: Tensor, ridge: float) -> tuple[Tensor, float, bool]:
    """Overwrite a symmetric K by the factor L of K + ridge I = L Lᵀ; also its largest diagonal entry, and whether L exists."""
    K.diagonal().add_(ridge)
    top = float(K.diagonal().max())
    factor = K.mT  # column by column, as LAPACK wants it: no copy
    info = torch.empty((), dtype=torch.int32, device=K.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    return factor, top, not int(info)


def decompose(K: Tensor, targets: Tensor, rounding: float) -> EigenFactor:
    """Split K into range and null space; ``rounding`` is the eps of the dtype in which K was given.

    Raises:
        NumericalError: an eigenvalue below -n eps(float32) λ_max.
    """
    values, vectors = eigensystem(K)
    # Rounding of entries moves no eigenvalue by more than n eps max|K|; the most negative one shows its size.
    zero = len(K) * max(EPS * float(values[-1]), rounding * float(K.abs().max()))
    zero = max(zero, -2 * float(values[0]))
    kept = values > zero
    V, Z, values = vectors[:, kept], vectors[:, ~kept], values[kept]
    return EigenFactor(values, V, Z, (V.T @ targets) / values.sqrt()[:, None], Z.T @ targets, zero)


def eigensystem(K: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors; a negative one beyond float32 rounding is refused.

    Raises:
        NumericalError: an eigenvalue below -n eps(float32) λ_max.
    """
    values, vectors = torch.linalg.eigh(K)
    smallest, largest = float(values[0]), float(values[-1])
    allowed = len(K) * EPS32 * abs(largest)
    if smallest < -allowed:
        raise NumericalError(
            f"kernel {tuple(K.shape)} with smallest eigenvalue {smallest:.3g}, largest {largest:.3g}",
            expected=f"positive semidefinite up to float32 rounding, n eps(float32) λ_max = {allowed:.2g}",
            hint=f"compute the kernel in float64 and eval mode, or use a ridge well above {-smallest:.2g}",
        )
    return values, vectors


def _least_squares(X: Tensor, y: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(X)
    return torch.linalg.solve_triangular(R, Q.T @ y, upper=True)


def _largest(apply: Callable[[Tensor], Tensor], v: Tensor, steps: int = 6) -> float:
    """Largest Ritz value of a positive operator: six Lanczos steps, nearer than ten power steps on any spectrum."""
    basis, images = [v / v.norm()], []
    for _ in range(steps):
        image = apply(basis[-1])
        size = float(image.norm())
        images.append(image)
        Q = torch.cat(basis, 1)
        rest = image - Q @ (Q.T @ image)
        rest -= Q @ (Q.T @ rest)
        if not float(rest.norm()) > 1e-10 * size:  # nothing new, or not finite
            break
        basis.append(rest / rest.norm())
    Q, A = torch.cat(basis[: len(images)], 1), torch.cat(images, 1)
    T = Q.T @ A
    if not bool(torch.isfinite(T).all()):
        return float("inf")
    return float(torch.linalg.eigvalsh((T + T.T) / 2)[-1])
