"""Solve (K + ridge I) a = y: one verb, several solvers, and a result that says how good it is."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.solvers.conjugate_gradient import conjugate_gradient
from kernelmem.kernel_machines.solvers.diagnosis import (
    EPS32,
    Finding,
    condition_limit,
    diagnose,
    duplicates,
    inspect,
    inspected,
    named,
)
from kernelmem.kernel_machines.solvers.factorization import CholeskyFactor, cholesky_in_place
from kernelmem.kernel_machines.solvers.linear_system import EPS, LinearOperator, System, as_system
from kernelmem.kernel_machines.solvers.nystroem import Preconditioner, landmarks, over_landmarks, preconditioner
from kernelmem.kernel_machines.solvers.solution import Code, Solution

__all__ = ["Solver", "above_rounding", "factorized", "solve"]

Solver = Literal["auto", "cholesky", "eigen", "cg", "nystroem"]
SOLVERS = ("auto", "cholesky", "eigen", "cg", "nystroem")
IN_MEMORY = 2**31  # bytes of a factorization of a kernel that lies in a file, above which "auto" iterates
RANK = 500  # landmarks, where none are asked for


def solve(
    kernel: ArrayLike | LinearOperator,
    targets: ArrayLike,
    ridge: float,
    *,
    solver: Solver = "auto",
    sample_weight: ArrayLike | None = None,
    jitter: float = 0.0,
    tolerance: float = 1e-10,
    max_iter: int = 1000,
    rank: int | None = None,
    seed: int = 0,
) -> Solution:
    """Solve (K + ridge I) a = y for dual coefficients a, and say how it went.

    With weights w and S = diag(√w): a = S b, (S K S + ridge I) b = S y, the minimum of Σ w_i |y_i - f(x_i)|² + ridge
    |f|²; a weight of 2 is a row given twice. NaN and asymmetry are always looked for (n² work).

    ============ =====================================================================================
    solver       what it does
    ============ =====================================================================================
    "cholesky"   factorizes; only where that fails, or the condition is beyond what rounding allows, the kernel is
                 diagnosed, and answered as its code says
    "eigen"      eigendecomposition; eigenvalues of K + ridge I at the level of rounding count as no direction at all
    "cg"         conjugate gradients with a Nyström preconditioner: products with blocks of rows, or with an operator
    "nystroem"   the best function over ``rank`` landmarks, an approximation: code ``approximate``
    "auto"       "cg" for an operator, and for a kernel in a file whose factor would take more than 2 GiB; otherwise
                 "cholesky"
    ============ =====================================================================================

    Args:
        kernel: (n, n) tensor, array, memory-mapped array, path kernel, NTKOperator or SciPy LinearOperator.
        targets: (n,) or (n, C) real numbers.
        ridge: added to the diagonal, >= 0, in units of the kernel.
        solver: see above.
        sample_weight: (n,) numbers >= 0; None: all 1.
        jitter: the most that may be added to the diagonal where the factorization fails, as a share of the mean diagonal;
            0 allows none. Steps of ten from 1e-14; what was added is in the result, code ``jittered``.
        tolerance: relative residual at which "cg" ends, of each column.
        max_iter: of "cg".
        rank: landmarks of "cg" and "nystroem"; None: min(n / 10 + 10, max(500, √(80 n))) and min(500, n).
        seed: of the landmarks.

    Returns:
        A :class:`Solution`. ``solve`` returns codes where a system is bad, and NaN coefficients where there is no answer;
        ``.require()`` raises instead.

    Raises:
        InputError: shapes, NaN in the targets, ridge or weights that are not finite numbers >= 0, unknown solver.

    Cost: "cholesky" n³/6 multiply-adds and one n x n matrix beside the kernel; "eigen" about ten times that; "cg" n² C
    an iteration, n rank² before, and four n x rank matrices; "nystroem" n rank².

    Source: Nyström preconditioning: Frangella, Tropp, Udell 2023.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> found = solve(K, [3.0, 3.0], 0.0)
    >>> found.code.value, [round(a, 12) for a in found.coefficients.tolist()], found.residual < 1e-15
    ('solved', [1.0, 1.0], True)
    """
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r}", expected=f"one of {', '.join(SOLVERS)}", hint='pass solver="auto"')
    system, ridge = as_system(kernel), as_number(ridge, "ridge")
    y = as_tensor(targets, "targets", dtype=torch.float64).to(system.device)
    if y.ndim not in (1, 2) or len(y) != system.n or y.numel() == 0:
        raise InputError(
            f"targets of shape {tuple(y.shape)} beside a kernel of {system.n} rows",
            expected=f"({system.n},) or ({system.n}, C)",
            hint="pair every row of the kernel with its target",
        )
    scale = _scale(sample_weight, system)
    chosen = _choose(system) if solver == "auto" else solver
    direct = chosen in ("cholesky", "eigen")
    fault, K = inspected(system) if direct else (inspect(system), y[:0])
    if fault is not None:
        return _refused(y, fault, chosen)
    columns = y if y.ndim == 2 else y[:, None]
    if chosen == "cg":
        found = _iterate(system, scale, columns, ridge, tolerance, max_iter, rank, seed)
    elif chosen == "nystroem":
        rows = landmarks(system, scale, ridge, rank or min(RANK, system.n), seed=seed)
        a = over_landmarks(system, scale, columns, ridge, rows)
        condition = float("nan")
        found = Solution(a, Code.approximate, 0.0, condition, solver="nystroem", detail=f"{len(rows)} landmarks")
    else:
        found = _direct(system, K, scale, columns, ridge, chosen, jitter)
    residual = found.residual
    if found.code.usable:
        residual = _residual(system, scale, found.coefficients, columns, ridge)
    return Solution(
        found.coefficients.reshape(y.shape),
        found.code,
        residual,
        found.condition,
        found.iterations,
        found.solver,
        found.jitter,
        found.detail,
    )


def _direct(system: System, K: Tensor, scale: Tensor, y: Tensor, ridge: float, solver: str, jitter: float) -> Solution:
    K = _weighted(K, scale)
    targets = scale[:, None] * y
    if solver == "eigen":
        return _eigen(system, K, scale, targets, ridge, None)
    mean = float(K.diagonal().mean())
    factor, condition = factorized(K, targets, ridge)  # K is gone; what fails makes it anew
    if factor is not None and condition <= condition_limit(system.n):
        return Solution(scale[:, None] * factor.alpha(), Code.solved, 0.0, condition)
    finding = diagnose(system) if factor is None else None
    del factor, K
    if finding is not None and finding.code is Code.indefinite:
        return _refused(y, finding, "cholesky")
    if finding is not None and finding.code is Code.conditionally_positive:
        return _bunch_kaufman(system, _weighted(system.symmetric(), scale), scale, targets, ridge, finding)
    top = jitter * mean
    step = min(1e-14 * mean, top)
    while 0 < step <= top:
        factor, condition = factorized(_weighted(system.symmetric(), scale), targets, ridge + step)
        if factor is not None and condition <= condition_limit(system.n):
            detail = f"jitter {step:.3g} of at most {top:.3g}"
            a = scale[:, None] * factor.alpha()
            return Solution(a, Code.jittered, 0.0, condition, jitter=step, detail=detail)
        step = 10 * step if 10 * step <= top or step == top else top
    return _eigen(system, _weighted(system.symmetric(), scale), scale, targets, ridge, finding)


def _weighted(K: Tensor, scale: Tensor) -> Tensor:
    return K if bool((scale == 1).all()) else K.mul_(scale).mul_(scale[:, None])


def factorized(K: Tensor, targets: Tensor, ridge: float) -> tuple[CholeskyFactor | None, float]:
    """Overwrite K by the Cholesky factor of K + ridge I; its condition; None if a pivot is not above rounding."""
    L, top, positive = cholesky_in_place(K, ridge)
    # A pivot at the level of rounding is noise, even where it happens to be positive.
    if not positive or float(L.diagonal().min()) ** 2 <= len(K) ** 0.5 * EPS * top:
        return None, float("inf")
    factor = CholeskyFactor(ridge, L, torch.linalg.solve_triangular(L, targets, upper=False))
    return factor, factor.condition()


def _eigen(
    system: System, K: Tensor, scale: Tensor, targets: Tensor, ridge: float, finding: Finding | None
) -> Solution:
    values, V = torch.linalg.eigh(K)
    shifted = values + ridge
    size = float(values.abs().max())
    finding = finding or (diagnose(system) if float(values[0]) < -system.n * EPS * size else None)
    if finding is not None and finding.code is Code.indefinite:
        return _refused(targets, finding, "eigen")
    if finding is not None and finding.code is Code.conditionally_positive:
        return _bunch_kaufman(system, K, scale, targets, ridge, finding)
    kept = above_rounding(values, ridge, system, float(K.abs().max()))
    a = V[:, kept] @ ((V[:, kept].T @ targets) / shifted[kept, None])
    whole = bool(kept.all())
    condition = float(shifted[-1] / shifted[kept][0]) if whole else _ratio(shifted)
    detail = "" if whole else f"{int(kept.sum())} of {system.n} eigenvalues above rounding, {_range(shifted)}"
    detail += "" if whole else named(duplicates(system))
    return Solution(
        scale[:, None] * a, Code.solved if whole else Code.singular, 0.0, condition, 0, "eigen", 0.0, detail
    )


def above_rounding(values: Tensor, ridge: float, system: System, largest: float) -> Tensor:
    """Which eigenvalues of K, ascending, with the ridge are more than rounding of a kernel of this largest entry, (n,)."""
    shifted = values + ridge
    # Rounding of the entries, in the dtype they came in, moves eigenvalues by this; the most negative one shows its size.
    noise = system.n * (EPS * float(shifted.abs().max()) + (system.eps if ridge == 0 else 0.0) * largest)
    return shifted > max(noise, -2 * float(values[0]), 0.0)


def _bunch_kaufman(
    system: System, K: Tensor, scale: Tensor, targets: Tensor, ridge: float, finding: Finding
) -> Solution:
    shifted = K.clone()
    shifted.diagonal().add_(ridge)
    values, V = torch.linalg.eigh(shifted)
    size = values.abs()
    kept = size > system.n * EPS * float(size.max())
    if not bool(kept.all()):  # a null direction: the least-norm solution on the others
        a = V[:, kept] @ ((V[:, kept].T @ targets) / values[kept, None])
        detail = f"{int(kept.sum())} of {system.n} eigenvalues above rounding; {finding.detail}"
        return Solution(scale[:, None] * a, Code.conditionally_positive, 0.0, float("inf"), 0, "eigen", 0.0, detail)
    condition = float(size.max() / size.min())
    factors, pivots = torch.linalg.ldl_factor(shifted)
    a = torch.linalg.ldl_solve(factors, pivots, targets)
    code = Code.conditionally_positive
    return Solution(scale[:, None] * a, code, 0.0, condition, 0, "ldl", 0.0, finding.detail)


def _iterate(
    system: System,
    scale: Tensor,
    y: Tensor,
    ridge: float,
    tolerance: float,
    max_iter: int,
    rank: int | None,
    seed: int,
) -> Solution:
    apply = _shifted(system, scale, ridge)
    if rank is None:  # n rank² to prepare is then the work of about forty products with two columns
        rank = min(system.n // 10 + 10, max(RANK, math.isqrt(80 * system.n)))
    prepared = Preconditioner(y[:, :0], y[0, :0], ridge)
    if rank > 0 and ridge > 0:
        prepared = preconditioner(system, scale, ridge, landmarks(system, scale, ridge, rank, seed=seed))
    descent = conjugate_gradient(
        apply, scale[:, None] * y, precondition=prepared, tolerance=tolerance, max_products=max_iter
    )
    used = len(prepared.values)
    condition = float(prepared.values[0] + ridge) / ridge if used else descent.spread
    code = Code.solved if descent.converged else Code.not_converged
    if descent.curvature < -system.n * EPS32 * descent.steepest:  # the rule of diagnose; less is rounding
        code = Code.indefinite
    detail = f"relative residual {descent.residual:.3g}, {used} landmarks"
    detail += f", curvature {descent.curvature:.3g}" if descent.curvature <= 0 else ""
    a = scale[:, None] * descent.x
    return Solution(a, code, descent.residual, condition, descent.products, "cg", 0.0, detail)


def _shifted(system: System, scale: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    return lambda v: scale[:, None] * (system @ (scale[:, None] * v)) + ridge * v


def _residual(system: System, scale: Tensor, a: Tensor, y: Tensor, ridge: float) -> float:
    # b = S⁻¹ a; a row without weight has b = 0 and asks for nothing.
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    gap = scale[:, None] * (system @ a - y) + ridge * a / safe[:, None]
    size = float((scale[:, None] * y).norm())
    return float(gap.norm()) / size if size else float(gap.norm())


def _refused(y: Tensor, finding: Finding, solver: str) -> Solution:
    nan = float("nan")
    condition = nan
    return Solution(torch.full_like(y, nan), finding.code, nan, condition, 0, solver, 0.0, finding.detail)


def _choose(system: System) -> str:
    if system.matrix_free or (system.mapped and 16 * system.n**2 > IN_MEMORY):
        return "cg"
    return "cholesky"


def _scale(sample_weight: ArrayLike | None, system: System) -> Tensor:
    if sample_weight is None:
        return torch.ones(system.n, dtype=torch.float64, device=system.device)
    w = as_tensor(sample_weight, "sample_weight", dtype=torch.float64).to(system.device)
    if w.shape != (system.n,) or bool((w < 0).any()) or not bool((w > 0).any()):
        raise InputError(
            f"sample_weight of shape {tuple(w.shape)}, from {float(w.min()) if w.numel() else 0:.3g}",
            expected=f"({system.n},) numbers >= 0, not all zero",
            hint="give each row one weight; a row of weight 0 is left out",
        )
    return w.sqrt()


def _ratio(shifted: Tensor) -> float:
    smallest = float(shifted.abs().min())
    return float(shifted.abs().max()) / smallest if smallest > 0 else float("inf")


def _range(shifted: Tensor) -> str:
    return f"which go from {float(shifted[0]):.3g} to {float(shifted[-1]):.3g}"
