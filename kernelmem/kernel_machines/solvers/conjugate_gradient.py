"""Preconditioned conjugate gradients for several right-hand sides that share every pass over the kernel."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MatrixProduct = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class CGResult:
    """Approximate solution x of A x = b with C columns, and diagnostics at the last iteration of conjugate gradients."""

    x: Tensor  # (n, C)
    residual: float  # largest |b − A x| / |b| over the columns, recomputed from x at the end
    products: int  # number of products with A
    converged: bool
    min_curvature: float  # smallest pᵀ A p / pᵀ p of all search directions: negative if A is indefinite
    max_curvature: float  # largest pᵀ A p / pᵀ p
    condition: float  # lower bound: ratio of the extreme Ritz values of the preconditioned A


def conjugate_gradient(
    apply: MatrixProduct, b: Tensor, *, precondition: MatrixProduct, tolerance: float, max_products: int
) -> CGResult:
    """Solve A x = b for x (n, C) with symmetric positive definite A, until |b − A x| <= tolerance |b| in every column.

    ``apply`` and ``precondition`` multiply a matrix by A and by an approximate inverse of A. At most about ``max_products``
    products with A are computed.

    Each column has its own recurrence; the products A p of all unfinished columns are computed together, so that a kernel
    in a file is read once per iteration. The residual of the recurrence drifts: when it reports convergence, b − A x is
    recomputed, and the recurrence restarts from there if necessary. The iterations end when a restart does not halve the
    residual, because rounding allows no less.

    Cost: one product with A and one with the preconditioner per iteration; 5 n C numbers.

    Source: Hestenes and Stiefel 1952; Ritz values from its coefficients: Saad 2003, section 6.7.
    """
    b_norm = b.norm(dim=0)
    b_norm = torch.where(b_norm > 0, b_norm, torch.ones_like(b_norm))
    x, r = torch.zeros_like(b), b.clone()
    products, min_curvature, max_curvature, condition, previous_residual = 0, torch.inf, 0.0, float("nan"), torch.inf
    while True:
        residuals = r.norm(dim=0) / b_norm
        largest_residual = float(residuals.max())
        converged = largest_residual <= tolerance
        if converged or products >= max_products or min_curvature <= 0 or not largest_residual < previous_residual / 2:
            return CGResult(x, largest_residual, products, converged, min_curvature, max_curvature, condition)
        previous_residual = largest_residual
        unfinished = (residuals > tolerance).nonzero()[:, 0]
        correction = _run_recurrence(
            apply, r[:, unfinished], precondition, tolerance * b_norm[unfinished], max_products - products
        )
        x[:, unfinished] += correction.x
        products += correction.products + 1
        min_curvature = min(min_curvature, correction.min_curvature)
        max_curvature = max(max_curvature, correction.max_curvature)
        condition = condition if condition == condition else correction.condition
        r = b - apply(x)


def _run_recurrence(
    apply: MatrixProduct, b: Tensor, precondition: MatrixProduct, thresholds: Tensor, max_products: int
) -> CGResult:
    """Run preconditioned conjugate gradients on A x = b from x = 0, until each residual norm reaches its threshold.

    ``b`` is (n, C) and ``thresholds`` (C,). The ``residual`` of the result is NaN, because it is not recomputed here.
    Source: Saad 2003, algorithm 9.1.
    """
    x, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    p, rz = z.clone(), (r * z).sum(0)
    active = torch.arange(b.shape[1], device=b.device)  # columns that have not converged
    alphas: list[float] = []  # CG coefficients of the first column
    betas: list[float] = []
    min_curvature, max_curvature, products = torch.inf, 0.0, 0
    while len(active) and products < max_products:
        p_active = p[:, active]
        Ap = apply(p_active)
        products += 1
        pAp = (p_active * Ap).sum(0)
        curvatures = pAp / p_active.square().sum(0)
        min_curvature = min(min_curvature, float(curvatures.min()))
        max_curvature = max(max_curvature, float(curvatures.max()))
        if min_curvature <= 0 or not bool(torch.isfinite(pAp).all()):
            break
        alpha = rz[active] / pAp
        x[:, active] += p_active * alpha
        r[:, active] -= Ap * alpha
        z = precondition(r[:, active])
        rz_next = (r[:, active] * z).sum(0)
        beta = rz_next / rz[active]
        p[:, active] = z + p_active * beta
        rz[active] = rz_next
        if int(active[0]) == 0:
            alphas.append(float(alpha[0]))
            betas.append(float(beta[0]))
        active = active[r[:, active].norm(dim=0) > thresholds[active]]
    condition = _ritz_condition(alphas, betas)
    return CGResult(x, float("nan"), products, not len(active), min_curvature, max_curvature, condition)


def _ritz_condition(alphas: list[float], betas: list[float]) -> float:
    """Return a lower bound of the condition number: the ratio of the largest to the smallest Ritz value.

    The Ritz values are the eigenvalues of the Lanczos matrix, which the coefficients of the recurrence determine. The result
    is NaN without coefficients, and infinite if a Ritz value is not positive. Source: Saad 2003, section 6.7.3.
    """
    if not alphas:
        return float("nan")
    alpha, beta = torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64)
    diagonal = 1 / alpha
    diagonal[1:] += beta[:-1] / alpha[:-1]
    off_diagonal = beta[:-1].clamp_min(0).sqrt() / alpha[:-1]
    lanczos_matrix = torch.diag(diagonal) + torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)
    ritz_values = torch.linalg.eigvalsh(lanczos_matrix)
    return float(ritz_values[-1] / ritz_values[0]) if float(ritz_values[0]) > 0 else float("inf")
