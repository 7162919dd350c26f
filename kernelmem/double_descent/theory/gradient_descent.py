"""Gradient descent on a fixed design matrix: weights and risk at every step, exactly."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis
from kernelmem.double_descent.theory.curve import Curve, as_curve
from kernelmem.double_descent.theory.gradient_flow import check_stable


def gradient_descent_weights(X: ArrayLike, y: ArrayLike, steps: ArrayLike, *, lr: float) -> Tensor:
    """Return the weights (G, p) or (G, p, C) of gradient descent on |y - X b|²/(2 n) from 0 after each number of steps.

        w(t) = Q (1 - (1 - η Λ)^t) Λ⁻¹ Qᵀ Xᵀ y / n,     XᵀX / n = Q Λ Qᵀ

    computed from the singular values of X, (n, p) float64; exact. Directions with Λ = 0 stay at 0.

    Args:
        X: (n, p) design matrix.
        y: (n,) or (n, C) targets.
        steps: increasing whole numbers >= 0.
        lr: learning rate η, in (0, 2 / λ_max(XᵀX/n)).

    Raises:
        InputError: the shapes do not match, steps are not increasing whole numbers >= 0, or η is out of range.

    Cost: one decomposition of X, O(G p min(n, p) C).
    """
    design = _as_design(X, steps, lr)
    n, lam = design.n, design.eigenvalues
    targets = as_tensor(y, "y", squared=True).double().cpu().numpy()
    if targets.ndim not in (1, 2) or len(targets) != n:
        raise InputError(
            f"y of shape {targets.shape}", expected=f"({n},) or ({n}, C)", hint="pass one target for each row"
        )
    projected = (design.U.T @ targets.reshape(n, -1)) * math.sqrt(n)
    filters = (
        design.learned_fractions() / np.where(lam > 0, lam, 1.0) * np.sqrt(lam)
    )  # (G, r): of Qᵀw per unit of Uᵀy √n / n
    weights = np.einsum("rp,gr,rc->gpc", design.Vt, filters, projected / n)
    return torch.from_numpy(weights[:, :, 0] if targets.ndim == 1 else weights)


def gradient_descent_curve(
    steps: ArrayLike,
    *,
    X: ArrayLike,
    coefficients: ArrayLike,
    noise: float,
    lr: float,
    covariance: ArrayLike | None = None,
) -> Curve:
    """Compute the risk along gradient descent on a design X, averaged over the noise of the targets alone: exact.

    With P_t = Q (1 - ηΛ)^t Qᵀ and w(t) as in :func:`gradient_descent_weights`, Σ the covariance of new inputs::

        test(t) = noise + βᵀ P_t Σ P_t β + (noise/n) tr[ Σ Q (1 - (1 - ηΛ)^t)² Λ⁻¹ Qᵀ ]

    Args:
        steps: increasing whole numbers >= 0.
        X: (n, p) design matrix.
        coefficients: (p,) coefficients β of the target.
        noise: variance of the targets.
        lr: learning rate η, in (0, 2 / λ_max(XᵀX/n)).
        covariance: covariance Σ (p, p) of new inputs, or its diagonal (p,); None: the identity.

    Raises:
        InputError: the shapes do not match, or a value is out of range.

    Cost: O(n p min(n, p) + G p²).
    """
    design = _as_design(X, steps, lr)
    n, lam, Vt = design.n, design.eigenvalues, design.Vt
    beta, noise = (
        as_tensor(coefficients, "coefficients", squared=True).double().cpu().numpy(),
        as_number(noise, "noise", maximum=MAX_VARIANCE),
    )
    p = Vt.shape[1]
    sigma = (
        np.ones(p) if covariance is None else as_tensor(covariance, "covariance", squared=True).double().cpu().numpy()
    )
    if beta.shape != (p,) or sigma.shape not in ((p,), (p, p)):
        raise InputError(
            f"coefficients of shape {beta.shape}, covariance of shape {sigma.shape}",
            expected=f"({p},), and ({p},) or ({p}, {p})",
            hint="pass one coefficient for each column of X",
        )

    def times_sigma(rows: np.ndarray) -> np.ndarray:
        return rows * sigma if sigma.ndim == 1 else rows @ sigma

    learned = design.learned_fractions()  # (G, r)
    error = beta - (learned * (Vt @ beta)) @ Vt  # (G, p), P_t β
    variances = (times_sigma(Vt) * Vt).sum(1)  # (r,), diagonal of Qᵀ Σ Q
    inverse_eigenvalues = np.where(lam > 0, 1 / np.where(lam > 0, lam, 1.0), 0.0)
    test = noise + (times_sigma(error) * error).sum(1) + (noise / n) * (learned**2 @ (variances * inverse_eigenvalues))
    train_bias = (error @ Vt.T) ** 2 @ lam
    train = train_bias + noise * (1 - len(lam) / n) + (noise / n) * ((1 - learned) ** 2).sum(1)
    return as_curve(
        "gradient descent on a fixed design",
        "step",
        design.steps,
        test,
        noise=noise,
        exact=True,
        source="closed form of the iteration",
        train=train,
    )


class _Design(NamedTuple):
    """Singular value decomposition X = U √(n Λ) Vt of a design matrix (n examples, p features), G steps and learning rate.

    r = min(n, p); Λ are the eigenvalues of XᵀX / n.
    """

    steps: np.ndarray  # (G,)
    U: np.ndarray  # (n, r)
    eigenvalues: np.ndarray  # (r,) Λ
    Vt: np.ndarray  # (r, p) Qᵀ
    lr: float
    n: int

    def learned_fractions(self) -> np.ndarray:
        """Return 1 − (1 − ηΛ)^t, (G, r), for G numbers of steps t, r eigenvalues Λ and learning rate η.

        Small ηΛ cause no cancellation.
        """
        eta_lambda, t = self.lr * self.eigenvalues, self.steps[:, None]
        is_small = eta_lambda < 0.5
        from_log1p = -np.expm1(t * np.log1p(-np.where(is_small, eta_lambda, 0.0)))
        factor = 1 - eta_lambda
        return np.where(is_small, from_log1p, 1 - np.sign(factor) ** t * np.abs(factor) ** t)


def _as_design(X: ArrayLike, steps: ArrayLike, lr: float) -> _Design:
    """Validate the design matrix X (n, p), the steps and the learning rate, and return the decomposition of X with them.

    Raises:
        InputError: X is not a matrix, the steps are not increasing whole numbers, or the learning rate is out of range.
    """
    t = as_axis(steps, "steps", integer=True, exclusive=False)
    X = as_tensor(X, "X", squared=True).double().cpu().numpy()
    if X.ndim != 2 or 0 in X.shape:
        raise InputError(f"X of shape {X.shape}", expected="(n, p), not empty", hint="flatten the inputs to rows")
    lr = as_number(lr, "lr", exclusive=True)
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    rounding = np.finfo(float).eps * max(X.shape) * s[0]
    eigenvalues = np.where(s > rounding, s, 0.0) ** 2 / len(X)
    check_stable(lr * eigenvalues)
    return _Design(t, U, eigenvalues, Vt, lr, len(X))
