"""Ridges by leave-one-out or generalized cross-validation, with sample weights, each by one eigendecomposition."""

from typing import Literal

import torch
from torch import Tensor

from kernelmem.ground.errors import InputError, NumericalError
from kernelmem.machines.inverses import EPS, eigensystem
from kernelmem.machines.ridge_choice import TIE, RidgeChoice, choose_ridge

__all__ = ["choose_weighted_ridge", "generalized_cross_validation", "leave_one_copy_out"]


def generalized_cross_validation(K: Tensor, targets: Tensor, grid: Tensor, *, n_rows: float) -> RidgeChoice:
    """Choose the ridge of least GCV = (|r|² / n) / (1 - tr H / n)², r = y - H y, H = K (K + ridge I)⁻¹.

    ``n_rows`` is n, or the sum of the weights of a weighted system: then a doubled weight is a row given twice. Of
    ridges that tie the largest is taken. The errors of the result are the GCV of each ridge of ``grid``, ascending.

    Raises:
        NumericalError: negative eigenvalues beyond float32 rounding, or no ridge outweighs those that rounding left.

    Cost: one eigendecomposition, then O(n C) a ridge.

    Source: Golub, Heath, Wahba 1979.
    """
    values, V = eigensystem(K)
    shrink = grid / (values[:, None] + grid)  # eigenvalues of I - H, (n, G)
    squares = (V.T @ targets).square().sum(1)
    # The part of I - H that n_rows counts beyond the rows of K has eigenvalue 1: rows of weight 2 are two rows.
    freedom = shrink.sum(0) + (n_rows - len(K))
    errors = (squares @ shrink.square()) * n_rows / (freedom.square() * targets.shape[1])
    return _least(torch.where(freedom > 0, errors, torch.inf), values, grid)


def leave_one_copy_out(K: Tensor, targets: Tensor, weights: Tensor, grid: Tensor) -> RidgeChoice:
    """Choose the ridge of least left-out error of the weighted system S K S, S y with S² = diag(weights).

    A row of weight w > 1 stands for w copies, of which one is left out; one of weight w <= 1 is left out whole. With A =
    (S K S + ridge I)⁻¹, a = A S y and c = min(1, 1/w) the left-out residual of row i is

        ridge a_i / (√w_i (1 - c_i + c_i ridge A_ii)),

    and the error its weighted mean square.

    Raises:
        NumericalError: as :func:`generalized_cross_validation`.

    Cost: one eigendecomposition, then O(n² C) a ridge.

    Source: Allen 1974 (PRESS), by a rank-one change of one weight.
    """
    values, V = eigensystem(K)
    spectral = V.T @ targets
    inverse = 1 / (values[:, None] + grid)  # (n, G)
    share = (1 / weights).clamp_max(1.0)[:, None]
    left = 1 - share + share * grid * (V.square() @ inverse)
    errors = torch.stack(
        [
            (ridge * (V @ (spectral * inverse[:, [g]])) / left[:, [g]]).square().sum()
            for g, ridge in enumerate(grid.tolist())
        ]
    )
    return _least(errors / (weights.sum() * targets.shape[1]), values, grid)


def _least(errors: Tensor, values: Tensor, grid: Tensor) -> RidgeChoice:
    errors = torch.where(values[0] + grid <= len(values) * EPS * values[-1], torch.inf, errors)
    if bool(torch.isinf(errors).all()):
        raise NumericalError(
            f"ridges up to {float(grid[-1]):.3g}, kernel with smallest eigenvalue {float(values[0]):.3g}",
            expected="a ridge that makes K + ridge I positive definite, beyond rounding",
            do="compute the kernel in float64, or give the ridge as a number",
        )
    index = int((errors <= errors.min() * (1 + TIE)).nonzero()[-1])
    return RidgeChoice(float(grid[index]), index, grid, errors)


def choose_weighted_ridge(K: Tensor, targets: Tensor, weights: Tensor, criterion: Literal["loo", "gcv"]) -> RidgeChoice:
    """Choose the ridge of kernel ridge with sample weights: K (n, n), targets (n, C), weights (n,).

    Both count a row of weight w as w rows ("loo" leaves out one of them, or the whole row where w < 1). The 53 ridges go
    from 1e-9 to 1e4 times the weighted mean of the diagonal.

    Raises:
        InputError: a kernel whose weighted mean diagonal is not positive; fewer than two rows with weight.
        NumericalError: see :func:`kernelmem.choose_ridge`.
    """
    used = weights > 0
    K, targets, weights = K[used][:, used], targets[used], weights[used]
    n_rows = float(weights.sum())
    mean = float(weights @ K.diagonal()) / n_rows
    if len(K) < 2 or mean <= 0:
        raise InputError(
            f"{len(K)} rows, n_samples = {len(K)}, and mean diagonal {mean:.3g}, to choose a ridge from",
            expected="at least two rows of a kernel with a positive diagonal",
            do="give more rows, or the ridge as a number",
        )
    grid = mean * torch.logspace(-9, 4, 53, dtype=torch.float64, device=K.device)
    scale = weights.sqrt()
    K, targets = scale[:, None] * K * scale, scale[:, None] * targets
    K = (K + K.T) / 2
    if criterion == "loo" and bool((weights == 1).all()):
        return choose_ridge(K, targets, grid=grid)
    if criterion == "loo":
        return leave_one_copy_out(K, targets, weights, grid)
    return generalized_cross_validation(K, targets, grid, n_rows=n_rows)
