"""Choice of the ridge with sample weights, by leave-one-out or generalized cross-validation."""

from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.model_selection.ridge_selection import TIE, RidgeChoice
from kernelmem.kernel_machines.solvers.diagnosis import EPS32, diagnose
from kernelmem.kernel_machines.solvers.linear_system import EPS, LinearOperator, System, as_system
from kernelmem.kernel_machines.solvers.solution import Code, Solution

Eigen = tuple[Tensor, Tensor]  # eigenvalues, ascending, (n,), and eigenvectors (n, n)


def generalized_cross_validation(eigen: Eigen, targets: Tensor, grid: Tensor, *, n_rows: float) -> RidgeChoice:
    """Choose the ridge with the smallest GCV = (|r|² / n) / (1 − tr H / n)², r = y − H y, H = K (K + ridge I)⁻¹.

    ``n_rows`` is n, or the sum of the weights of a weighted system, so that a weight of 2 is equal to repeating a row.
    Among tied ridges the largest is chosen. The errors of the result are the GCV of each ridge of ``grid``, ascending;
    infinite if the ridge is too small for the negative eigenvalues of K (:func:`choose_weighted_ridge`).

    Raises:
        NumericalError: no ridge exceeds the negative eigenvalues.

    Cost: O(n C) per ridge.

    Source: Golub, Heath, Wahba 1979.
    """
    values, V = eigen
    shrink = grid / (values[:, None] + grid)  # eigenvalues of I - H, (n, G)
    squares = (V.T @ targets).square().sum(1)
    # I − H has eigenvalue 1 for the rows that n_rows counts in addition to those of K (a row of weight 2 is two rows).
    freedom = shrink.sum(0) + (n_rows - len(V))
    errors = (squares @ shrink.square()) * n_rows / (freedom.square() * targets.shape[1])
    return _select(torch.where(freedom > 0, errors, torch.inf), values, grid)


def leave_one_copy_out(eigen: Eigen, targets: Tensor, weights: Tensor, grid: Tensor) -> RidgeChoice:
    """Choose the ridge with the smallest leave-one-out error of the weighted system S K S, S y with S² = diag(weights).

    A row of weight w > 1 counts as w copies, of which one is left out; a row of weight w <= 1 is left out entirely. With
    A = (S K S + ridge I)⁻¹, a = A S y and c = min(1, 1/w) the leave-one-out residual of row i is

        ridge a_i / (√w_i (1 − c_i + c_i ridge A_ii)),

    and the error is its weighted mean square.

    Raises:
        NumericalError: as :func:`generalized_cross_validation`.

    Cost: O(n² C) per ridge.

    Source: Allen 1974 (PRESS), by a rank-one change of one weight.
    """
    values, V = eigen
    target_modes = V.T @ targets
    inverse = 1 / (values[:, None] + grid)  # (n, G), eigenvalues of A
    c = (1 / weights).clamp_max(1.0)[:, None]
    denominator = 1 - c + c * grid * (V.square() @ inverse)  # (n, G)
    errors = torch.stack(
        [
            (ridge * (V @ (target_modes * inverse[:, [g]])) / denominator[:, [g]]).square().sum()
            for g, ridge in enumerate(grid.tolist())
        ]
    )
    return _select(errors / (weights.sum() * targets.shape[1]), values, grid)


def choose_weighted_ridge(
    kernel: ArrayLike | LinearOperator | System, targets: Tensor, weights: Tensor, criterion: Literal["loo", "gcv"]
) -> RidgeChoice:
    """Choose the ridge of kernel ridge with sample weights: K (n, n), targets (n, C), weights (n,).

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
    system, used = as_system(kernel), weights > 0
    K, targets, weights = system.symmetric()[used][:, used], targets[used], weights[used]
    n_rows, scale = float(weights.sum()), weights.sqrt()
    if len(K) < 2:
        raise InputError(
            f"{len(K)} rows with weight (n_samples = {len(K)}) for the choice of a ridge",
            expected="at least two rows with weight",
            hint="pass more rows, or the ridge as a number",
        )
    weighted, outputs = scale[:, None] * K * scale, scale[:, None] * targets
    mean = float(weights @ K.diagonal()) / n_rows
    values, V = torch.linalg.eigh((weighted + weighted.T) / 2)
    if float(values[0]) < -len(K) * EPS32 * float(values.abs().max()):
        finding = diagnose(system)
        Solution(torch.empty(0), finding.code, float("nan"), float("nan"), detail=finding.detail).require()
        if finding.code is Code.conditionally_positive:
            mean -= float(weights @ K @ weights) / n_rows**2
    if mean <= 0:
        raise InputError(
            f"kernel with mean diagonal {mean:.3g} for the choice of a ridge",
            expected="a positive mean diagonal, which sets the scale of the ridge",
            hint="check that the kernel is not zero, or pass the ridge as a number",
        )
    grid = mean * torch.logspace(-9, 4, 53, dtype=torch.float64, device=K.device)
    if criterion == "loo":
        return leave_one_copy_out((values, V), outputs, weights, grid)
    return generalized_cross_validation((values, V), outputs, grid, n_rows=n_rows)


def _select(errors: Tensor, values: Tensor, grid: Tensor) -> RidgeChoice:
    n, smallest, size = len(values), float(values[0]), float(values.abs().max())
    usable = smallest + grid > n * EPS * size
    if smallest < -n * EPS32 * size:  # negative beyond rounding but accepted: keep a margin
        usable &= grid > -2 * smallest
    if not bool((usable & torch.isfinite(errors)).any()):
        raise NumericalError(
            f"ridges up to {float(grid[-1]):.3g}, kernel with smallest eigenvalue {smallest:.3g}",
            expected="a ridge that makes K + ridge I positive definite, beyond rounding",
            hint="compute the kernel in float64, or pass the ridge as a number",
        )
    errors = torch.where(usable, errors, torch.inf)
    index = int((errors <= errors.min() * (1 + TIE)).nonzero()[-1])
    return RidgeChoice(float(grid[index]), index, grid, errors)
