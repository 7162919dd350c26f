"""Choice of the ridge with sample weights, by leave-one-out or generalized cross-validation."""

from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.model_selection.ridge_selection import TIE_TOLERANCE, RidgeChoice
from kernelmem.kernel_machines.solvers.diagnosis import EPS32, diagnose
from kernelmem.kernel_machines.solvers.linear_system import EPS, LinearOperator, System, as_system
from kernelmem.kernel_machines.solvers.solution import Code, Solution

Eigendecomposition = tuple[Tensor, Tensor]  # eigenvalues, ascending, (n,), and eigenvectors (n, n)


def generalized_cross_validation(
    eigendecomposition: Eigendecomposition, targets: Tensor, grid: Tensor, *, n_rows: float
) -> RidgeChoice:
    """Choose the ridge with the smallest generalized cross-validation error, GCV = (|r|² / n) / (1 − tr H / n)².

    With the kernel K and the targets y (n, C), H = K (K + ridge I)⁻¹ and r = y − H y. ``eigendecomposition`` holds the
    eigenvalues and eigenvectors of K.

    ``n_rows`` is n, or the sum of the weights of a weighted system, so that a weight of 2 is equal to repeating a row.
    Among tied ridges the largest is chosen. The errors of the result are the GCV of each ridge of ``grid``, ascending;
    infinite if the ridge is too small for the negative eigenvalues of K (:func:`choose_weighted_ridge`).

    Raises:
        NumericalError: no ridge exceeds the negative eigenvalues.

    Cost: O(n C) per ridge.

    Source: Golub, Heath, Wahba 1979.
    """
    eigenvalues, V = eigendecomposition
    residual_factors = grid / (eigenvalues[:, None] + grid)  # eigenvalues of I - H, (n, G)
    squared_modes = (V.T @ targets).square().sum(1)
    # I − H has eigenvalue 1 for the rows that n_rows counts in addition to those of K (a row of weight 2 is two rows).
    residual_freedom = residual_factors.sum(0) + (n_rows - len(V))
    errors = (squared_modes @ residual_factors.square()) * n_rows / (residual_freedom.square() * targets.shape[1])
    return _select_ridge(torch.where(residual_freedom > 0, errors, torch.inf), eigenvalues, grid)


def leave_one_copy_out(
    eigendecomposition: Eigendecomposition, targets: Tensor, weights: Tensor, grid: Tensor
) -> RidgeChoice:
    """Choose the ridge with the smallest leave-one-out error of kernel ridge regression with sample weights.

    The weighted system has the kernel S K S and the targets S y (n, C), with S² = diag(weights); ``eigendecomposition`` is
    that of S K S, ``targets`` is S y, and ``grid`` (G,) holds the ridges.

    A row of weight w > 1 counts as w copies, of which one is left out; a row of weight w <= 1 is left out entirely. With
    A = (S K S + ridge I)⁻¹, a = A S y and c = min(1, 1/w) the leave-one-out residual of row i is

        ridge a_i / (√w_i (1 − c_i + c_i ridge A_ii)),

    and the error is its weighted mean square.

    Raises:
        NumericalError: no ridge exceeds the negative eigenvalues.

    Cost: O(n² C) per ridge.

    Source: Allen 1974 (PRESS), by a rank-one change of one weight.
    """
    eigenvalues, V = eigendecomposition
    target_modes = V.T @ targets
    inverse_eigenvalues = 1 / (eigenvalues[:, None] + grid)  # (n, G), eigenvalues of A
    c = (1 / weights).clamp_max(1.0)[:, None]
    denominator = 1 - c + c * grid * (V.square() @ inverse_eigenvalues)  # (n, G)
    errors = torch.stack(
        [
            (ridge * (V @ (target_modes * inverse_eigenvalues[:, [g]])) / denominator[:, [g]]).square().sum()
            for g, ridge in enumerate(grid.tolist())
        ]
    )
    return _select_ridge(errors / (weights.sum() * targets.shape[1]), eigenvalues, grid)


def choose_weighted_ridge(
    kernel: ArrayLike | LinearOperator | System, targets: Tensor, weights: Tensor, criterion: Literal["loo", "gcv"]
) -> RidgeChoice:
    """Choose the ridge of kernel ridge regression with sample weights, by leave-one-out or generalized cross-validation.

    The kernel is (n, n), ``targets`` is (n, C) and ``weights`` is (n,).

    Both criteria count a row of weight w as w rows ("loo" leaves out one of them, or the entire row if w < 1). The 53
    ridges range from 1e-9 to 1e4 times the weighted mean of the diagonal.

    Negative eigenvalues beyond rounding are refused or accepted by the rule of ``diagnose``, as in ``solve``. If they are
    accepted (integer entries; a kernel that is positive on zero-sum vectors), only ridges above twice the magnitude of the
    most negative one are usable, so that K + ridge I is positive definite; the others have infinite error. The scale of
    the ridges is then the mean diagonal of HKH, with H the weighted centering, which is invariant to constants added to K.

    Raises:
        InputError: a kernel whose weighted mean diagonal is not positive; fewer than two rows with weight.
        NumericalError: an indefinite kernel, or negative eigenvalues that exceed every ridge.

    Cost: one eigendecomposition; two more eigenvalue problems if there are negative eigenvalues.
    """
    system, has_weight = as_system(kernel), weights > 0
    K, targets, weights = system.symmetric()[has_weight][:, has_weight], targets[has_weight], weights[has_weight]
    n_rows, sqrt_weights = float(weights.sum()), weights.sqrt()
    if len(K) < 2:
        raise InputError(
            f"{len(K)} rows with weight (n_samples = {len(K)}) for the choice of a ridge",
            expected="at least two rows with weight",
            hint="pass more rows, or the ridge as a number",
        )
    weighted_kernel, weighted_targets = sqrt_weights[:, None] * K * sqrt_weights, sqrt_weights[:, None] * targets
    mean_diagonal = float(weights @ K.diagonal()) / n_rows
    eigenvalues, V = torch.linalg.eigh((weighted_kernel + weighted_kernel.T) / 2)
    if float(eigenvalues[0]) < -len(K) * EPS32 * float(eigenvalues.abs().max()):
        finding = diagnose(system)
        Solution(torch.empty(0), finding.code, float("nan"), float("nan"), detail=finding.detail).require()
        if finding.code is Code.conditionally_positive:
            mean_diagonal -= float(weights @ K @ weights) / n_rows**2
    if mean_diagonal <= 0:
        raise InputError(
            f"kernel with mean diagonal {mean_diagonal:.3g} for the choice of a ridge",
            expected="a positive mean diagonal, which sets the scale of the ridge",
            hint="check that the kernel is not zero, or pass the ridge as a number",
        )
    grid = mean_diagonal * torch.logspace(-9, 4, 53, dtype=torch.float64, device=K.device)
    if criterion == "loo":
        return leave_one_copy_out((eigenvalues, V), weighted_targets, weights, grid)
    return generalized_cross_validation((eigenvalues, V), weighted_targets, grid, n_rows=n_rows)


def _select_ridge(errors: Tensor, eigenvalues: Tensor, grid: Tensor) -> RidgeChoice:
    """Return the ridge of ``grid`` (G,) with the smallest error, among those that make K + ridge I positive definite.

    Of ridges with equal errors up to rounding the largest is chosen. ``errors`` is (G,) and ``eigenvalues`` (n,) are those
    of K, ascending.

    Raises:
        NumericalError: no ridge makes K + ridge I positive definite with a finite error.
    """
    n, smallest, largest_magnitude = len(eigenvalues), float(eigenvalues[0]), float(eigenvalues.abs().max())
    usable = smallest + grid > n * EPS * largest_magnitude
    if smallest < -n * EPS32 * largest_magnitude:  # negative beyond rounding but accepted: keep a margin
        usable &= grid > -2 * smallest
    if not bool((usable & torch.isfinite(errors)).any()):
        raise NumericalError(
            f"largest ridge {float(grid[-1]):.3g}, and a kernel with smallest eigenvalue {smallest:.3g}",
            expected="a ridge that makes K + ridge I positive definite, beyond rounding",
            hint="compute the kernel in float64, or pass the ridge as a number",
        )
    errors = torch.where(usable, errors, torch.inf)
    ridge_index = int((errors <= errors.min() * (1 + TIE_TOLERANCE)).nonzero()[-1])
    return RidgeChoice(float(grid[ridge_index]), ridge_index, grid, errors)
