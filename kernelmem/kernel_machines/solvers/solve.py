"""Solve (K + ridge I) a = y: one function, several solvers, and a result with residual and condition."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_seed, as_tensor, check_choice
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.solvers.conjugate_gradient import conjugate_gradient
from kernelmem.kernel_machines.solvers.diagnosis import (
    EPS32,
    Finding,
    condition_limit,
    describe_duplicates,
    diagnose,
    duplicate_rows,
    inspect_and_copy,
    inspect_kernel,
)
from kernelmem.kernel_machines.solvers.factorization import CholeskyFactor, cholesky_in_place
from kernelmem.kernel_machines.solvers.linear_system import EPS, LinearOperator, System, as_system
from kernelmem.kernel_machines.solvers.nystroem import (
    Preconditioner,
    build_preconditioner,
    draw_landmarks,
    solve_over_landmarks,
)
from kernelmem.kernel_machines.solvers.solution import Code, Solution
from kernelmem.kernels import KernelStore

Solver = Literal["auto", "cholesky", "eigen", "cg", "nystroem"]
SOLVERS = get_args(Solver)
MAX_DIRECT_BYTES = 2**31  # "auto" uses CG if the factorization of a memory-mapped kernel takes more bytes
DEFAULT_RANK = 500  # default number of landmarks
NAN = float("nan")


def solve(
    kernel: ArrayLike | LinearOperator | KernelStore | System,
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
    "auto"       "cg" for an operator, and for a memory-mapped or stored kernel whose factor would take more than 2 GiB; otherwise
                 "cholesky"
    ============ =====================================================================================

    Args:
        kernel: (n, n) tensor, array, memory-mapped array, KernelStore, path kernel, NTKOperator or SciPy LinearOperator.
        targets: (n,) or (n, C) real numbers.
        ridge: added to the diagonal, >= 0, in units of the kernel.
        solver: method, see the table above.
        sample_weight: (n,) numbers >= 0; None: all 1.
        jitter: maximal addition to the diagonal if the factorization fails, as a share of the mean diagonal; 0: none. It
            grows from 1e-14 by factors of ten; the result states what was added, code ``jittered``.
        tolerance: relative residual of each column at which "cg" stops.
        max_iter: maximal number of iterations of "cg".
        rank: landmarks of "cg" and "nystroem"; None: min(n / 10 + 10, max(500, √(80 n))) and min(500, n).
        seed: seed of the random choice of landmarks.

    Returns:
        A :class:`Solution`. Bad systems are reported by its code, with NaN coefficients if there is no solution;
        ``.require()`` raises instead.

    Raises:
        InputError: shapes that do not match, NaN in the targets, a ridge or weights that are not finite numbers >= 0, or
            an unknown solver.

    Cost: "cholesky" n³/6 multiply-adds and one n x n matrix in addition to the kernel; "eigen" about ten times that; "cg"
    n² C per iteration, n rank² before, and four n x rank matrices; "nystroem" n rank².

    Source: Nyström preconditioning: Frangella, Tropp, Udell 2023.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> solution = solve(K, [3.0, 3.0], 0.0)
    >>> solution.code.value, [round(a, 12) for a in solution.coefficients.tolist()], solution.residual < 1e-15
    ('solved', [1.0, 1.0], True)
    """
    check_choice(solver, "solver", SOLVERS, hint='pass solver="auto"')
    max_iter, seed = as_count(max_iter, "max_iter"), as_seed(seed)
    rank = None if rank is None else as_count(rank, "rank", minimum=0)
    jitter = as_number(jitter, "jitter")
    tolerance = as_number(tolerance, "tolerance")
    system, ridge = as_system(kernel), as_number(ridge, "ridge")
    y = as_tensor(targets, "targets", dtype=torch.float64).to(system.device)
    if y.ndim not in (1, 2) or len(y) != system.n or y.numel() == 0:
        raise InputError(
            f"targets of shape {tuple(y.shape)} and a kernel of {system.n} rows",
            expected=f"targets ({system.n},) or ({system.n}, C)",
            hint="pair every row of the kernel with its target",
        )
    sqrt_weights = _sqrt_weights(sample_weight, system)
    method = _automatic_solver(system) if solver == "auto" else solver
    is_direct = method in ("cholesky", "eigen")
    fault, K = inspect_and_copy(system) if is_direct else (inspect_kernel(system), y[:0])
    if fault is not None:
        return _rejected_solution(y, fault, method)
    target_columns = y if y.ndim == 2 else y[:, None]
    if method == "cg":
        solution = _solve_by_cg(
            system, sqrt_weights, target_columns, ridge, tolerance=tolerance, max_iter=max_iter, rank=rank, seed=seed
        )
    elif method == "nystroem":
        landmark_rows = draw_landmarks(system, sqrt_weights, ridge, rank or min(DEFAULT_RANK, system.n), seed=seed)
        a = solve_over_landmarks(system, sqrt_weights, target_columns, ridge, landmark_rows)
        solution = Solution(a, Code.approximate, 0.0, NAN, solver=method, detail=f"{len(landmark_rows)} landmarks")
    else:
        solution = _solve_directly(system, K, sqrt_weights, target_columns, ridge, method, jitter)
    relative_residual = solution.residual
    if solution.code.usable:
        relative_residual = _relative_residual(system, sqrt_weights, solution.coefficients, target_columns, ridge)
    return replace(solution, coefficients=solution.coefficients.reshape(y.shape), residual=relative_residual)


def _solve_directly(
    system: System, K: Tensor, sqrt_weights: Tensor, y: Tensor, ridge: float, solver: str, jitter: float
) -> Solution:
    """Solve the system by Cholesky factorization; if that fails, by added jitter, LDLᵀ or an eigendecomposition.

    K (n, n) is a copy of the kernel and is overwritten; y is (n, C). ``solver`` is "cholesky", or "eigen" for the
    eigendecomposition only.
    """
    K = _apply_weights(K, sqrt_weights)
    targets = sqrt_weights[:, None] * y
    if solver == "eigen":
        return _solve_by_eigenvalues(system, K, sqrt_weights, targets, ridge, None)
    mean_diagonal = float(K.diagonal().mean())
    factor, condition = try_cholesky(K, targets, ridge)  # K is overwritten; the code below recomputes it
    if factor is not None and condition <= condition_limit(system.n):
        return Solution(sqrt_weights[:, None] * factor.alpha(), Code.solved, 0.0, condition)
    finding = diagnose(system) if factor is None else None
    del factor, K
    if finding is not None and finding.code is Code.indefinite:
        return _rejected_solution(y, finding, "cholesky")
    if finding is not None and finding.code is Code.conditionally_positive:
        return _solve_by_ldl(
            system, _apply_weights(system.symmetric(), sqrt_weights), sqrt_weights, targets, ridge, finding
        )
    max_jitter = jitter * mean_diagonal
    added = min(1e-14 * mean_diagonal, max_jitter)
    while 0 < added <= max_jitter:
        factor, condition = try_cholesky(_apply_weights(system.symmetric(), sqrt_weights), targets, ridge + added)
        if factor is not None and condition <= condition_limit(system.n):
            detail = f"jitter {added:.3g} of at most {max_jitter:.3g}"
            a = sqrt_weights[:, None] * factor.alpha()
            return Solution(a, Code.jittered, 0.0, condition, jitter=added, detail=detail)
        added = 10 * added if 10 * added <= max_jitter or added == max_jitter else max_jitter
    return _solve_by_eigenvalues(
        system, _apply_weights(system.symmetric(), sqrt_weights), sqrt_weights, targets, ridge, finding
    )


def _apply_weights(K: Tensor, sqrt_weights: Tensor) -> Tensor:
    """Return S K S with S = diag(sqrt_weights), computed in place."""
    return K if bool((sqrt_weights == 1).all()) else K.mul_(sqrt_weights).mul_(sqrt_weights[:, None])


def try_cholesky(K: Tensor, targets: Tensor, ridge: float) -> tuple[CholeskyFactor | None, float]:
    """Overwrite K (n, n) with the Cholesky factor of K + ridge I, and return the factor and its condition number.

    The factor is None, and the condition number infinite, if K + ridge I is not positive definite beyond rounding.
    """
    L, largest_diagonal, positive = cholesky_in_place(K, ridge)
    # A pivot at the level of rounding is noise, even if it happens to be positive.
    if not positive or float(L.diagonal().min()) ** 2 <= len(K) ** 0.5 * EPS * largest_diagonal:
        return None, float("inf")
    factor = CholeskyFactor(ridge, L, torch.linalg.solve_triangular(L, targets, upper=False))
    return factor, factor.condition()


def _solve_by_eigenvalues(
    system: System, K: Tensor, sqrt_weights: Tensor, targets: Tensor, ridge: float, finding: Finding | None
) -> Solution:
    """Solve the system by eigendecomposition, without the eigenvalues of K + ridge I at the level of rounding.

    K (n, n) is the weighted kernel and ``targets`` (n, C) the weighted targets. ``finding`` is the diagnosis of the kernel
    if it is already known.
    """
    eigenvalues, V = torch.linalg.eigh(K)
    shifted = eigenvalues + ridge
    largest_magnitude = float(eigenvalues.abs().max())
    finding = finding or (diagnose(system) if float(eigenvalues[0]) < -system.n * EPS * largest_magnitude else None)
    if finding is not None and finding.code is Code.indefinite:
        return _rejected_solution(targets, finding, "eigen")
    if finding is not None and finding.code is Code.conditionally_positive:
        return _solve_by_ldl(system, K, sqrt_weights, targets, ridge, finding)
    nonzero = above_rounding(eigenvalues, ridge, system, float(K.abs().max()))
    a = sqrt_weights[:, None] * (V[:, nonzero] @ ((V[:, nonzero].T @ targets) / shifted[nonzero, None]))
    if bool(nonzero.all()):
        return Solution(a, Code.solved, 0.0, float(shifted[-1] / shifted[nonzero][0]), solver="eigen")
    detail = (
        f"{int(nonzero.sum())} of {system.n} eigenvalues above rounding, range {float(shifted[0]):.3g} to"
        f" {float(shifted[-1]):.3g}{describe_duplicates(duplicate_rows(system))}"
    )
    return Solution(a, Code.singular, 0.0, _magnitude_ratio(shifted), solver="eigen", detail=detail)


def above_rounding(eigenvalues: Tensor, ridge: float, system: System, largest_entry: float) -> Tensor:
    """Return a mask, (n,) bool, of the eigenvalues of K that exceed rounding after the ridge is added.

    ``eigenvalues`` (n,) are ascending, and ``largest_entry`` is the largest magnitude of an entry of the kernel.
    """
    shifted = eigenvalues + ridge
    # Rounding of the entries, in the dtype of the input, moves eigenvalues by this; the most negative one shows its size.
    noise = system.n * (EPS * float(shifted.abs().max()) + (system.eps if ridge == 0 else 0.0) * largest_entry)
    return shifted > max(noise, -2 * float(eigenvalues[0]), 0.0)


def _solve_by_ldl(
    system: System, K: Tensor, sqrt_weights: Tensor, targets: Tensor, ridge: float, finding: Finding
) -> Solution:
    """Solve a system whose kernel is positive only on zero-sum vectors, by Bunch-Kaufman factorization LDLᵀ.

    If K + ridge I is singular, the solution is that of least norm. K (n, n) and ``targets`` (n, C) are weighted by
    ``sqrt_weights``.
    """
    shifted_kernel = K.clone()
    shifted_kernel.diagonal().add_(ridge)
    eigenvalues, V = torch.linalg.eigh(shifted_kernel)
    magnitudes = eigenvalues.abs()
    nonzero = magnitudes > system.n * EPS * float(magnitudes.max())
    code = Code.conditionally_positive
    if not bool(nonzero.all()):  # a null direction: the least-norm solution on the others
        a = V[:, nonzero] @ ((V[:, nonzero].T @ targets) / eigenvalues[nonzero, None])
        detail = f"{int(nonzero.sum())} of {system.n} eigenvalues above rounding; {finding.detail}"
        return Solution(sqrt_weights[:, None] * a, code, 0.0, float("inf"), solver="eigen", detail=detail)
    factors, pivots = torch.linalg.ldl_factor(shifted_kernel)
    a = torch.linalg.ldl_solve(factors, pivots, targets)
    condition = float(magnitudes.max() / magnitudes.min())
    return Solution(sqrt_weights[:, None] * a, code, 0.0, condition, solver="ldl", detail=finding.detail)


def _solve_by_cg(
    system: System,
    sqrt_weights: Tensor,
    y: Tensor,
    ridge: float,
    *,
    tolerance: float,
    max_iter: int,
    rank: int | None,
    seed: int,
) -> Solution:
    """Solve the system for targets y (n, C) by conjugate gradients with a Nyström preconditioner.

    ``rank`` is the number of landmarks of the preconditioner, or None for the default. The code of the result is
    ``not_converged`` or ``indefinite`` if the iterations failed.
    """
    if rank is None:  # n rank² of preparation are then the work of about forty products with two columns
        rank = min(system.n // 10 + 10, max(DEFAULT_RANK, math.isqrt(80 * system.n)))
    P = Preconditioner(y[:, :0], y[0, :0], ridge)
    if rank > 0 and ridge > 0:
        P = build_preconditioner(
            system, sqrt_weights, ridge, draw_landmarks(system, sqrt_weights, ridge, rank, seed=seed)
        )
    result = conjugate_gradient(
        _weighted_operator(system, sqrt_weights, ridge),
        sqrt_weights[:, None] * y,
        precondition=P,
        tolerance=tolerance,
        max_products=max_iter,
    )
    n_landmarks = len(P.values)
    condition = float(P.values[0] + ridge) / ridge if n_landmarks else result.condition
    code = Code.solved if result.converged else Code.not_converged
    if result.min_curvature < -system.n * EPS32 * result.max_curvature:  # the rule of diagnose; less is rounding
        code = Code.indefinite
    detail = f"relative residual {result.residual:.3g}, {n_landmarks} landmarks"
    detail += f", curvature {result.min_curvature:.3g}" if result.min_curvature <= 0 else ""
    return Solution(
        sqrt_weights[:, None] * result.x, code, result.residual, condition, result.products, "cg", detail=detail
    )


def _weighted_operator(system: System, sqrt_weights: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """Return the function that multiplies v (n, C) by S K S + ridge I, where S = diag(sqrt_weights)."""
    return lambda v: sqrt_weights[:, None] * (system @ (sqrt_weights[:, None] * v)) + ridge * v


def _relative_residual(system: System, sqrt_weights: Tensor, a: Tensor, y: Tensor, ridge: float) -> float:
    """Return |(S K S + ridge I) b − S y| / |S y| with S = diag(sqrt_weights) and a = S b.

    ``a`` are the coefficients and ``y`` the targets, both (n, C). If S y is zero, the norm of the residual itself is
    returned.
    """
    # b = S⁻¹ a; zero-weight rows have b = 0 and drop out of the residual.
    nonzero_sqrt_weights = torch.where(sqrt_weights > 0, sqrt_weights, torch.ones_like(sqrt_weights))
    residual = sqrt_weights[:, None] * (system @ a - y) + ridge * a / nonzero_sqrt_weights[:, None]
    target_norm = float((sqrt_weights[:, None] * y).norm())
    return float(residual.norm()) / target_norm if target_norm else float(residual.norm())


def _rejected_solution(y: Tensor, finding: Finding, solver: str) -> Solution:
    """Return a solution for a kernel that was refused: its coefficients are NaN, and ``finding`` gives its code."""
    return Solution(torch.full_like(y, NAN), finding.code, NAN, NAN, solver=solver, detail=finding.detail)


def _automatic_solver(system: System) -> str:
    """Return "cg" for an operator, and for a memory-mapped kernel whose factorization is too large; otherwise "cholesky"."""
    if system.matrix_free or (system.mapped and 16 * system.n**2 > MAX_DIRECT_BYTES):
        return "cg"
    return "cholesky"


def _sqrt_weights(sample_weight: ArrayLike | None, system: System) -> Tensor:
    """Check the sample weights and return their square roots, (n,); without weights they are 1.

    Raises:
        InputError: the shape differs, a weight is negative, or all weights are zero.
    """
    if sample_weight is None:
        return torch.ones(system.n, dtype=torch.float64, device=system.device)
    weights = as_tensor(sample_weight, "sample_weight", dtype=torch.float64).to(system.device)
    if weights.shape != (system.n,) or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise InputError(
            f"sample_weight of shape {tuple(weights.shape)} and minimum {float(weights.min()) if weights.numel() else 0:.3g}",
            expected=f"({system.n},) numbers >= 0, not all zero",
            hint="give each row one weight; rows of weight 0 have no effect on the fit",
        )
    return weights.sqrt()


def _magnitude_ratio(eigenvalues: Tensor) -> float:
    """Return the ratio of the largest to the smallest magnitude of the eigenvalues; infinity if one is zero."""
    smallest_magnitude = float(eigenvalues.abs().min())
    return float(eigenvalues.abs().max()) / smallest_magnitude if smallest_magnitude > 0 else float("inf")
