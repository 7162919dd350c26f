"""Preconditioned conjugate gradients for several right-hand sides, which share every pass over the kernel."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CGResult", "conjugate_gradient"]

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class CGResult:
    """Where the iterations ended."""

    x: Tensor  # (n, C)
    residual: float  # largest |b - A x| / |b| over the columns, measured at the end
    products: int  # with A
    converged: bool
    curvature: float  # smallest pᵀ A p / pᵀ p that was met: negative if A is indefinite
    steepest: float  # largest of these
    spread: float  # ratio of the extreme Ritz values of the preconditioned A: from below, its condition


def conjugate_gradient(
    apply: Apply, b: Tensor, *, precondition: Apply, tolerance: float, max_products: int
) -> CGResult:
    """Solve A x = b, (n, C), for symmetric positive definite A, until every column has |b - A x| <= tolerance |b|.

    Each column runs its own recurrence; products A p are taken of all columns that are not done together, so that a
    kernel that is read from a file is read once an iteration. The residual that decides is b - A x, computed anew where
    the recurrence says that it is done, and where it was wrong it restarts from there: its own residual drifts. Where a
    restart does not halve the residual, rounding allows no less, and the iterations end.

    Cost: one product with A and one with the preconditioner an iteration; 5 n C numbers.

    Source: Hestenes and Stiefel 1952; Ritz values from its coefficients: Saad 2003, section 6.7.
    """
    size = b.norm(dim=0)
    size = torch.where(size > 0, size, torch.ones_like(size))
    x, r = torch.zeros_like(b), b.clone()
    products, curvature, steepest, spread, best = 0, torch.inf, 0.0, float("nan"), torch.inf
    while True:
        gaps = r.norm(dim=0) / size
        worst = float(gaps.max())
        converged = worst <= tolerance
        if converged or products >= max_products or curvature <= 0 or not worst < best / 2:
            return CGResult(x, worst, products, converged, curvature, steepest, spread)
        best = worst
        todo = (gaps > tolerance).nonzero()[:, 0]
        part = _recurrence(apply, r[:, todo], precondition, tolerance * size[todo], max_products - products)
        x[:, todo] += part.x
        products += part.products + 1
        curvature, steepest = min(curvature, part.curvature), max(steepest, part.steepest)
        spread = spread if spread == spread else part.spread
        r = b - apply(x)


def _recurrence(apply: Apply, b: Tensor, precondition: Apply, targets: Tensor, allowed: int) -> CGResult:
    x, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    p, rz = z.clone(), (r * z).sum(0)
    active = torch.arange(b.shape[1], device=b.device)
    steps: list[float] = []
    ratios: list[float] = []
    curvature, steepest, products = torch.inf, 0.0, 0
    while len(active) and products < allowed:
        direction = p[:, active]
        image = apply(direction)
        products += 1
        bend = (direction * image).sum(0)
        bends = bend / direction.square().sum(0)
        curvature, steepest = min(curvature, float(bends.min())), max(steepest, float(bends.max()))
        if curvature <= 0 or not bool(torch.isfinite(bend).all()):
            break
        step = rz[active] / bend
        x[:, active] += direction * step
        r[:, active] -= image * step
        z = precondition(r[:, active])
        new = (r[:, active] * z).sum(0)
        ratio = new / rz[active]
        p[:, active] = z + direction * ratio
        rz[active] = new
        if int(active[0]) == 0:
            steps.append(float(step[0]))
            ratios.append(float(ratio[0]))
        active = active[r[:, active].norm(dim=0) > targets[active]]
    return CGResult(x, float("nan"), products, not len(active), curvature, steepest, _spread(steps, ratios))


def _spread(steps: list[float], ratios: list[float]) -> float:
    if not steps:
        return float("nan")
    a, q = torch.tensor(steps, dtype=torch.float64), torch.tensor(ratios, dtype=torch.float64)
    main = 1 / a
    main[1:] += q[:-1] / a[:-1]
    beside = q[:-1].clamp_min(0).sqrt() / a[:-1]
    values = torch.linalg.eigvalsh(torch.diag(main) + torch.diag(beside, 1) + torch.diag(beside, -1))
    return float(values[-1] / values[0]) if float(values[0]) > 0 else float("inf")
