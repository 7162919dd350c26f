"""Factors of K + ridge I for leave-one-out: Cholesky factor, or range and null space at ridge 0."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps
PANEL = 1024  # columns of the triangular inverse computed at once


@dataclass(frozen=True, eq=False)
class CholeskyFactor:
    """Cholesky factor L of K + ridge I = L Lᵀ for ridge > 0, with the products for C targets y (n, C).

    In the methods, A is the inverse of K + ridge I and alpha = A y.
    """

    ridge: float
    L: Tensor  # (n, n), lower
    whitened: Tensor  # (n, C), L⁻¹ y

    def alpha(self) -> Tensor:
        """Return the dual coefficients alpha = A y, (n, C)."""
        return torch.linalg.solve_triangular(self.L.T, self.whitened, upper=True)

    def reachable(self, targets: Tensor) -> Tensor:
        """Return the part of the targets y (n, C) in the range of K + ridge I, which is all of it."""
        return targets

    def leave_one_out_residuals(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leave-one-out residuals alpha_i / A_ii, (n, C), and the leverages 1 − ridge A_ii, (n,)."""
        # A_ii is the squared norm of column i of L⁻¹, which is zero above i: each panel solves the trailing
        # triangle only, a third of the work of a full solve, and no second n x n matrix is formed.
        n, A_diagonal = len(self.L), torch.empty_like(self.L[0])
        for start in range(0, n, PANEL):
            unit = torch.eye(n - start, min(PANEL, n - start), dtype=self.L.dtype, device=self.L.device)
            columns = torch.linalg.solve_triangular(self.L[start:, start:], unit, upper=False)
            A_diagonal[start : start + PANEL] = columns.square().sum(0)
        return alpha / A_diagonal[:, None], 1 - self.ridge * A_diagonal

    def block_residual(self, rows: Tensor) -> Tensor:
        """Return the residuals (A_BB)⁻¹ alpha_B, (b, C), of the b rows B = ``rows`` for the fit without these rows."""
        # A_BB = XᵀX and alpha_B = Xᵀ (L⁻¹ y) for X = L⁻¹ E_B. This is solved as a least-squares problem, because
        # forming A_BB would square its condition.
        unit = torch.zeros(len(self.L), len(rows), dtype=self.L.dtype, device=self.L.device)
        unit[rows, torch.arange(len(rows), device=rows.device)] = 1
        return least_squares(torch.linalg.solve_triangular(self.L, unit, upper=False), self.whitened)

    def solve(self, rows: Tensor) -> Tensor:
        """Return the product of ``rows`` (m, n) and A, (m, n)."""
        return torch.cholesky_solve(rows.T, self.L).T

    def condition(self) -> float:
        """Return a lower estimate of the condition number of K + ridge I, by Lanczos steps on it and on its inverse."""
        start_vector = torch.cos(torch.arange(len(self.L), dtype=self.L.dtype, device=self.L.device))[:, None]
        largest = largest_ritz_value(lambda u: self.L @ (self.L.T @ u), start_vector)
        solve = torch.linalg.solve_triangular  # for one column ten times faster than cholesky_solve
        return largest * largest_ritz_value(
            lambda u: solve(self.L.T, solve(self.L, u, upper=False), upper=True), start_vector
        )


@dataclass(frozen=True, eq=False)
class EigenFactor:
    """K = V diag(values) Vᵀ of rank r with a basis Z of its null space, for the limit of ridge 0.

    Near that limit A = (K + ridge I)⁻¹ is N / ridge + K⁺ + O(ridge), where N = Z Zᵀ projects on the null space and K⁺ is the
    pseudo-inverse. The targets y are (n, C), and alpha are the dual coefficients (n, C).
    """

    values: Tensor  # (r,), ascending
    V: Tensor  # (n, r)
    Z: Tensor  # (n, n - r)
    whitened: Tensor  # (r, C), values^(-1/2) Vᵀ y
    null: Tensor  # (n - r, C), Zᵀ y
    noise: float  # eigenvalues up to this value count as zero

    def alpha(self) -> Tensor:
        """Return the dual coefficients of least norm, K⁺ y, (n, C)."""
        return self.V @ (self.whitened / self.values.sqrt()[:, None])

    def reachable(self, targets: Tensor) -> Tensor:
        """Return the part of the targets y (n, C) in the range of K, (n, C)."""
        return targets - self.Z @ self.null

    def leave_one_out_residuals(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leave-one-out residuals, (n, C), and the leverages 1 − N_ii, (n,), for coefficients (n, C)."""
        squared_vectors = self.V.square()
        N_diagonal = self.Z.square().sum(1)
        is_null = N_diagonal > self._null_weight_tolerance(squared_vectors @ self.values**-2)
        ones = torch.ones_like(N_diagonal)
        in_range = alpha / torch.where(is_null, ones, squared_vectors @ (1 / self.values))[:, None]
        in_null = (self.Z @ self.null) / torch.where(is_null, N_diagonal, ones)[:, None]
        return torch.where(is_null[:, None], in_null, in_range), squared_vectors.sum(1)

    def block_residual(self, rows: Tensor) -> Tensor:
        """Return the residuals (b, C) of the b rows B = ``rows`` for the fit without these rows.

        They are the limit of (A_BB)⁻¹ alpha_B as the ridge goes to 0.
        """
        # N / ridge dominates on the range E of N_BB. On its null space E0, where N vanishes, K⁺ determines the residual,
        # after the part explained by E is subtracted.
        Z, X = self.Z[rows], (self.V[rows] / self.values.sqrt()).T
        null_weights, basis = torch.linalg.eigh(Z @ Z.T)
        is_null = null_weights > self._null_weight_tolerance(
            ((X / self.values.sqrt()[:, None]) @ basis).square().sum(0)
        )
        E, E0 = basis[:, is_null], basis[:, ~is_null]
        in_null = E @ ((E.T @ (Z @ self.null)) / null_weights[is_null, None])
        return in_null + E0 @ least_squares(X @ E0, self.whitened - X @ in_null) if E0.numel() else in_null

    def solve(self, rows: Tensor) -> Tensor:
        """Return the product of ``rows`` (m, n) and the pseudo-inverse K⁺, (m, n)."""
        return ((rows @ self.V) / self.values) @ self.V.T

    def condition(self) -> float:
        """Return the ratio of the largest to the smallest eigenvalue above rounding; 1 for the zero kernel."""
        return float(self.values[-1] / self.values[0]) if len(self.values) else 1.0

    def _null_weight_tolerance(self, squared_norms: Tensor) -> Tensor:
        """Return for each vector v of the data the squared norm of its null-space part below which it may be rounding of K.

        ``squared_norms`` holds |K⁺ v|² of each vector; the result has the same shape.
        """
        # To first order, noise E in K rotates a unit vector v of its range by |E K⁺ v| toward the null space, and
        # the argument is |K⁺ v|². A null weight below that is indistinguishable from zero.
        return (self.noise**2 * squared_norms).clamp(min=len(self.V) * EPS)


def factorize(K: Tensor, targets: Tensor, ridge: float) -> CholeskyFactor:
    """Compute the Cholesky factor L of K + ridge I for the kernel K (n, n), and L⁻¹ times the targets (n, C).

    Raises:
        NumericalError: K + ridge I is not positive definite beyond rounding.
    """
    L, largest_diagonal, positive = cholesky_in_place(K.clone(), ridge)
    # A pivot at the level of rounding is noise, even if it happens to be positive.
    rounding = len(K) * EPS * largest_diagonal
    if not positive or float(L.diagonal().min()) ** 2 <= rounding:
        smallest = float(torch.linalg.eigvalsh(K)[0])
        raise NumericalError(
            f"kernel {tuple(K.shape)} with smallest eigenvalue {smallest:.3g}, and ridge {ridge:.3g}",
            expected="K + ridge I positive definite, beyond rounding",
            hint=f"raise the ridge well above {max(-smallest, rounding):.2g}, or compute the kernel in float64;"
            " if it is singular but not negative, ridge=0 gives the minimum-norm fit",
        )
    return CholeskyFactor(ridge, L, torch.linalg.solve_triangular(L, targets, upper=False))


def cholesky_in_place(K: Tensor, ridge: float) -> tuple[Tensor, float, bool]:
    """Overwrite K (n, n) with the Cholesky factor L of K + ridge I = L Lᵀ.

    The result is L, the largest diagonal entry of K + ridge I, and False if it is not positive definite, so that L is
    invalid.
    """
    K.diagonal().add_(ridge)
    largest_diagonal = float(K.diagonal().max())
    factor = K.mT  # column-major as LAPACK needs it: no copy
    info = torch.empty((), dtype=torch.int32, device=K.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    return factor, largest_diagonal, not int(info)


def decompose(K: Tensor, targets: Tensor, rounding: float) -> EigenFactor:
    """Compute the eigenvectors of K (n, n), split into range and null space, and their products with the targets (n, C).

    ``rounding`` is the machine epsilon of the dtype in which K was given.

    Raises:
        NumericalError: an eigenvalue below -n eps(float32) λ_max.
    """
    eigenvalues, eigenvectors = eigensystem(K)
    # Rounding of entries moves eigenvalues by at most n eps max|K|; the most negative eigenvalue shows its size.
    zero_threshold = len(K) * max(EPS * float(eigenvalues[-1]), rounding * float(K.abs().max()))
    zero_threshold = max(zero_threshold, -2 * float(eigenvalues[0]))
    in_range = eigenvalues > zero_threshold
    V, Z, eigenvalues = eigenvectors[:, in_range], eigenvectors[:, ~in_range], eigenvalues[in_range]
    return EigenFactor(eigenvalues, V, Z, (V.T @ targets) / eigenvalues.sqrt()[:, None], Z.T @ targets, zero_threshold)


def eigensystem(K: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of K, ascending, (n,), and the eigenvectors, (n, n), if K is positive up to float32 rounding.

    Raises:
        NumericalError: an eigenvalue below -n eps(float32) λ_max.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(K)
    check_positive(eigenvalues)
    return eigenvalues, eigenvectors


def check_positive(eigenvalues: Tensor) -> None:
    """Check that the eigenvalues (n,) of a kernel, ascending, are not negative beyond float32 rounding.

    Raises:
        NumericalError: an eigenvalue below -n eps(float32) λ_max.
    """
    n, smallest, largest = len(eigenvalues), float(eigenvalues[0]), float(eigenvalues[-1])
    allowed_negative = n * EPS32 * abs(largest)
    if smallest < -allowed_negative:
        raise NumericalError(
            f"kernel {(n, n)} with smallest eigenvalue {smallest:.3g}, largest {largest:.3g}",
            expected=f"positive semidefinite up to float32 rounding, n eps(float32) λ_max = {allowed_negative:.2g}",
            hint=f"compute the kernel in float64 and eval mode, or use a ridge well above {-smallest:.2g}",
        )


def least_squares(X: Tensor, y: Tensor) -> Tensor:
    """Return the minimizer b (r, C) of |X b − y| for X (n, r) of full column rank and y (n, C), by QR decomposition."""
    Q, R = torch.linalg.qr(X)
    return torch.linalg.solve_triangular(R, Q.T @ y, upper=True)


def largest_ritz_value(apply: Callable[[Tensor], Tensor], v: Tensor, steps: int = 6) -> float:
    """Return a lower estimate of the largest eigenvalue of a positive operator, after at most ``steps`` Lanczos steps.

    ``apply`` multiplies a vector (n, 1) by the operator, and v (n, 1) is the start vector. Six steps are more accurate than
    ten power steps. The result is infinite if a product is not finite.
    """
    basis, images = [v / v.norm()], []  # q_1, q_2, ... and A q_1, A q_2, ...
    for _ in range(steps):
        image = apply(basis[-1])
        image_norm = float(image.norm())
        images.append(image)
        Q = torch.cat(basis, 1)
        orthogonal_part = image - Q @ (Q.T @ image)
        orthogonal_part -= Q @ (Q.T @ orthogonal_part)  # twice, for full orthogonality
        if not float(orthogonal_part.norm()) > 1e-10 * image_norm:  # the Krylov space is exhausted, or not finite
            break
        basis.append(orthogonal_part / orthogonal_part.norm())
    Q, AQ = torch.cat(basis[: len(images)], 1), torch.cat(images, 1)
    T = Q.T @ AQ
    if not bool(torch.isfinite(T).all()):
        return float("inf")
    return float(torch.linalg.eigvalsh((T + T.T) / 2)[-1])
