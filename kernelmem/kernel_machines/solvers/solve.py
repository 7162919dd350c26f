"""Solve (K + ridge I) a = y: one function, several solvers, and a result with residual and condition."""

import math
from collections.abc import Callable
from dataclasses import replace
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
    describe_duplicates,
    diagnose,
    duplicates,
    inspect,
    inspect_and_copy,
)
from kernelmem.kernel_machines.solvers.factorization import CholeskyFactor, cholesky_in_place
from kernelmem.kernel_machines.solvers.linear_system import EPS, LinearOperator, System, as_system
from kernelmem.kernel_machines.solvers.nystroem import Preconditioner, landmarks, preconditioner, solve_over_landmarks
from kernelmem.kernel_machines.solvers.solution import Code, Solution

Solver = Literal["auto", "cholesky", "eigen", "cg", "nystroem"]
SOLVERS = ("auto", "cholesky", "eigen", "cg", "nystroem")
IN_MEMORY = 2**31  # bytes of the factorization of a memory-mapped kernel above which "auto" iterates
RANK = 500  # default number of landmarks
NAN = float("nan")


def solve(
    kernel: ArrayLike | LinearOperator | System,
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
    """Solve (K + ridge I) a = y for dual coefficients a.

    With sample weights w and S = diag(√w): a = S b, (S K S + ridge I) b = S y, the minimum of Σ w_i |y_i − f(x_i)|² +
    ridge |f|²; a weight of 2 is equal to repeating a row. The kernel is always checked for NaN and asymmetry (n² work).

    ============ =====================================================================================
    solver       method
    ============ =====================================================================================
    "cholesky"   Cholesky factorization; if it fails, or the condition exceeds what rounding allows, the kernel is
                 diagnosed, and solved as its code says
    "eigen"      eigendecomposition; eigenvalues of K + ridge I at the level of rounding are dropped
    "cg"         conjugate gradients with a Nyström preconditioner: products with blocks of rows, or with an operator
    "nystroem"   the best function over ``rank`` landmarks, an approximation: code ``approximate``
    "auto"       "cg" for an operator, and for a memory-mapped kernel whose factor would take more than 2 GiB; otherwise
                 "cholesky"
    ============ =====================================================================================

    Args:
        kernel: (n, n) tensor, array, memory-mapped array, path kernel, NTKOperator or SciPy LinearOperator.
        targets: (n,) or (n, C) real numbers.
        ridge: added to the diagonal, >= 0, in units of the kernel.
        solver: see above.
        sample_weight: (n,) numbers >= 0; None: all 1.
        jitter: maximal addition to the diagonal if the factorization fails, as a share of the mean diagonal; 0: none. It
            grows from 1e-14 by factors of ten; the result states what was added, code ``jittered``.
        tolerance: relative residual of each column at which "cg" stops.
        max_iter: maximal number of iterations of "cg".
        rank: landmarks of "cg" and "nystroem"; None: min(n / 10 + 10, max(500, √(80 n))) and min(500, n).
        seed: seed of the landmarks.

    Returns:
        A :class:`Solution`. Bad systems are reported by its code, with NaN coefficients if there is no solution;
        ``.require()`` raises instead.

    Raises:
        InputError: shapes, NaN in the targets, ridge or weights that are not finite numbers >= 0, unknown solver.

    Cost: "cholesky" n³/6 multiply-adds and one n x n matrix in addition to the kernel; "eigen" about ten times that; "cg"
    n² C per iteration, n rank² before, and four n x rank matrices; "nystroem" n rank².

    Source: Nyström preconditioning: Frangella, Tropp, Udell 2023.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> solution = solve(K, [3.0, 3.0], 0.0)
    >>> solution.code.value, [round(a, 12) for a in solution.coefficients.tolist()], solution.residual < 1e-15
    ('solved', [1.0, 1.0], True)
    """
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r}", expected=f"one of {', '.join(SOLVERS)}", hint='pass solver="auto"')
    system, ridge = as_system(kernel), as_number(ridge, "ridge")
    y = as_tensor(targets, "targets", dtype=torch.float64).to(system.device)
    if y.ndim not in (1, 2) or len(y) != system.n or y.numel() == 0:
        raise InputError(
            f"targets of shape {tuple(y.shape)} and a kernel of {system.n} rows",
            expected=f"targets ({system.n},) or ({system.n}, C)",
            hint="pair every row of the kernel with its target",
        )
    scale = _scale(sample_weight, system)
    chosen = _choose(system) if solver == "auto" else solver
    direct = chosen in ("cholesky", "eigen")
    fault, K = inspect_and_copy(system) if direct else (inspect(system), y[:0])
    if fault is not None:
        return _refused(y, fault, chosen)
    columns = y if y.ndim == 2 else y[:, None]
    if chosen == "cg":
        solution = _iterate(system, scale, columns, ridge, tolerance=tolerance, max_iter=max_iter, rank=rank, seed=seed)
    elif chosen == "nystroem":
        chosen_rows = landmarks(system, scale, ridge, rank or min(RANK, system.n), seed=seed)
        a = solve_over_landmarks(system, scale, columns, ridge, chosen_rows)
        solution = Solution(a, Code.approximate, 0.0, NAN, solver=chosen, detail=f"{len(chosen_rows)} landmarks")
    else:
        solution = _direct(system, K, scale, columns, ridge, chosen, jitter)
    residual = solution.residual
    if solution.code.usable:
        residual = _residual(system, scale, solution.coefficients, columns, ridge)
    return replace(solution, coefficients=solution.coefficients.reshape(y.shape), residual=residual)


def _direct(system: System, K: Tensor, scale: Tensor, y: Tensor, ridge: float, solver: str, jitter: float) -> Solution:
    K = _weighted(K, scale)
    targets = scale[:, None] * y
    if solver == "eigen":
        return _eigen(system, K, scale, targets, ridge, None)
    mean = float(K.diagonal().mean())
    factor, condition = factorized(K, targets, ridge)  # K is overwritten; the code below recomputes it
    if factor is not None and condition <= condition_limit(system.n):
        return Solution(scale[:, None] * factor.alpha(), Code.solved, 0.0, condition)
    finding = diagnose(system) if factor is None else None
    del factor, K
    if finding is not None and finding.code is Code.indefinite:
        return _refused(y, finding, "cholesky")
    if finding is not None and finding.code is Code.conditionally_positive:
        return _ldl(system, _weighted(system.symmetric(), scale), scale, targets, ridge, finding)
    max_jitter = jitter * mean
    step = min(1e-14 * mean, max_jitter)
    while 0 < step <= max_jitter:
        factor, condition = factorized(_weighted(system.symmetric(), scale), targets, ridge + step)
        if factor is not None and condition <= condition_limit(system.n):
            detail = f"jitter {step:.3g} of at most {max_jitter:.3g}"
            a = scale[:, None] * factor.alpha()
            return Solution(a, Code.jittered, 0.0, condition, jitter=step, detail=detail)
        step = 10 * step if 10 * step <= max_jitter or step == max_jitter else max_jitter
    return _eigen(system, _weighted(system.symmetric(), scale), scale, targets, ridge, finding)


def _weighted(K: Tensor, scale: Tensor) -> Tensor:
    return K if bool((scale == 1).all()) else K.mul_(scale).mul_(scale[:, None])


def factorized(K: Tensor, targets: Tensor, ridge: float) -> tuple[CholeskyFactor | None, float]:
    """Overwrite K with the Cholesky factor of K + ridge I; return it (None if a pivot is rounding) and its condition."""
    L, top, positive = cholesky_in_place(K, ridge)
    # A pivot at the level of rounding is noise, even if it happens to be positive.
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
        return _ldl(system, K, scale, targets, ridge, finding)
    nonzero = above_rounding(values, ridge, system, float(K.abs().max()))
    a = scale[:, None] * (V[:, nonzero] @ ((V[:, nonzero].T @ targets) / shifted[nonzero, None]))
    if bool(nonzero.all()):
        return Solution(a, Code.solved, 0.0, float(shifted[-1] / shifted[nonzero][0]), solver="eigen")
    detail = (
        f"{int(nonzero.sum())} of {system.n} eigenvalues above rounding, range {float(shifted[0]):.3g} to"
        f" {float(shifted[-1]):.3g}{describe_duplicates(duplicates(system))}"
    )
    return Solution(a, Code.singular, 0.0, _ratio(shifted), solver="eigen", detail=detail)


def above_rounding(values: Tensor, ridge: float, system: System, largest: float) -> Tensor:
    """Return a mask (n,) of the ascending eigenvalues of K that, with the ridge, exceed rounding.

    ``largest`` is the largest entry of the kernel.
    """
    shifted = values + ridge
    # Rounding of the entries, in the dtype of the input, moves eigenvalues by this; the most negative one shows its size.
    noise = system.n * (EPS * float(shifted.abs().max()) + (system.eps if ridge == 0 else 0.0) * largest)
    return shifted > max(noise, -2 * float(values[0]), 0.0)


def _ldl(system: System, K: Tensor, scale: Tensor, targets: Tensor, ridge: float, finding: Finding) -> Solution:
    """Solve an indefinite system by Bunch-Kaufman LDLᵀ, or by least norm if it is singular."""
    shifted = K.clone()
    shifted.diagonal().add_(ridge)
    values, V = torch.linalg.eigh(shifted)
    size = values.abs()
    nonzero = size > system.n * EPS * float(size.max())
    code = Code.conditionally_positive
    if not bool(nonzero.all()):  # a null direction: the least-norm solution on the others
        a = V[:, nonzero] @ ((V[:, nonzero].T @ targets) / values[nonzero, None])
        detail = f"{int(nonzero.sum())} of {system.n} eigenvalues above rounding; {finding.detail}"
        return Solution(scale[:, None] * a, code, 0.0, float("inf"), solver="eigen", detail=detail)
    factors, pivots = torch.linalg.ldl_factor(shifted)
    a = torch.linalg.ldl_solve(factors, pivots, targets)
    condition = float(size.max() / size.min())
    return Solution(scale[:, None] * a, code, 0.0, condition, solver="ldl", detail=finding.detail)


def _iterate(
    system: System,
    scale: Tensor,
    y: Tensor,
    ridge: float,
    *,
    tolerance: float,
    max_iter: int,
    rank: int | None,
    seed: int,
) -> Solution:
    if rank is None:  # n rank² of preparation are then the work of about forty products with two columns
        rank = min(system.n // 10 + 10, max(RANK, math.isqrt(80 * system.n)))
    P = Preconditioner(y[:, :0], y[0, :0], ridge)
    if rank > 0 and ridge > 0:
        P = preconditioner(system, scale, ridge, landmarks(system, scale, ridge, rank, seed=seed))
    result = conjugate_gradient(
        _shifted(system, scale, ridge), scale[:, None] * y, precondition=P, tolerance=tolerance, max_products=max_iter
    )
    n_landmarks = len(P.values)
    condition = float(P.values[0] + ridge) / ridge if n_landmarks else result.condition
    code = Code.solved if result.converged else Code.not_converged
    if result.min_curvature < -system.n * EPS32 * result.max_curvature:  # the rule of diagnose; less is rounding
        code = Code.indefinite
    detail = f"relative residual {result.residual:.3g}, {n_landmarks} landmarks"
    detail += f", curvature {result.min_curvature:.3g}" if result.min_curvature <= 0 else ""
    return Solution(scale[:, None] * result.x, code, result.residual, condition, result.products, "cg", detail=detail)


def _shifted(system: System, scale: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    return lambda v: scale[:, None] * (system @ (scale[:, None] * v)) + ridge * v


def _residual(system: System, scale: Tensor, a: Tensor, y: Tensor, ridge: float) -> float:
    # b = S⁻¹ a; zero-weight rows have b = 0 and drop out of the residual.
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    gap = scale[:, None] * (system @ a - y) + ridge * a / safe[:, None]
    size = float((scale[:, None] * y).norm())
    return float(gap.norm()) / size if size else float(gap.norm())


def _refused(y: Tensor, finding: Finding, solver: str) -> Solution:
    return Solution(torch.full_like(y, NAN), finding.code, NAN, NAN, solver=solver, detail=finding.detail)


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
            f"sample_weight of shape {tuple(w.shape)} and minimum {float(w.min()) if w.numel() else 0:.3g}",
            expected=f"({system.n},) numbers >= 0, not all zero",
            hint="give each row one weight; a row of weight 0 is left out",
        )
    return w.sqrt()


def _ratio(shifted: Tensor) -> float:
    smallest = float(shifted.abs().min())
    return float(shifted.abs().max()) / smallest if smallest > 0 else float("inf")
