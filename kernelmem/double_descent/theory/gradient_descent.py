"""Gradient descent on one design: its weights and its risk at every step, exactly."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.theory.curve import Curve
from kernelmem.double_descent.theory.gradient_flow import check_stable

__all__ = ["gradient_descent_curve", "gradient_descent_weights"]


def gradient_descent_weights(X: Any, y: Any, steps: Any, *, lr: float) -> Tensor:
    """Return the weights (G, p) or (G, p, C) of gradient descent on |y - X b|²/(2 n) from 0 after each number of steps.

        w(t) = Q (1 - (1 - η Λ)^t) Λ⁻¹ Qᵀ Xᵀ y / n,     XᵀX / n = Q Λ Qᵀ

    computed from the singular values of X, (n, p) float64; it is exact. Directions with Λ = 0 stay at 0.

    Raises:
        InputError: shapes that do not fit, steps not increasing whole numbers >= 0, η outside (0, 2 / λ_max).

    Cost: one decomposition of X, O(G p min(n, p) C).
    """
    t, U, lam, Vt, eta, n = _descent(X, steps, lr)
    targets = as_tensor(y, "y").double().cpu().numpy()
    if targets.ndim not in (1, 2) or len(targets) != n:
        raise InputError(f"y of shape {targets.shape}", expected=f"({n},) or ({n}, C)", hint="pair rows and targets")
    projected = (U.T @ targets.reshape(n, -1)) * math.sqrt(n)
    paths = _reached(t, eta * lam) / np.where(lam > 0, lam, 1.0) * np.sqrt(lam)  # of Qᵀ w per unit of Uᵀ y √n / n
    weights = np.einsum("ip,gi,ic->gpc", Vt, paths, projected / n)
    return torch.from_numpy(weights[:, :, 0] if targets.ndim == 1 else weights)


def gradient_descent_curve(
    steps: Any, *, X: Any, coefficients: Any, noise: float, lr: float, covariance: Any = None
) -> Curve:
    """Compute the risk along gradient descent on one design X, averaged over the noise of the targets alone: exact.

    With P_t = Q (1 - ηΛ)^t Qᵀ and w(t) as in :func:`gradient_descent_weights`, Σ the covariance of new rows::

        test(t) = noise + βᵀ P_t Σ P_t β + (noise/n) tr[ Σ Q (1 - (1 - ηΛ)^t)² Λ⁻¹ Qᵀ ]

    Args:
        steps: increasing whole numbers >= 0.
        X: (n, p).
        coefficients: (p,) β.
        noise: variance of the targets.
        lr: η, in (0, 2 / λ_max(XᵀX/n)).
        covariance: (p, p) Σ or (p,) its diagonal; None: the identity.

    Raises:
        InputError: shapes that do not fit, values out of range.

    Cost: O(n p min(n, p) + G p²).
    """
    t, _, lam, Vt, eta, n = _descent(X, steps, lr)
    beta, noise = as_tensor(coefficients, "coefficients").double().cpu().numpy(), as_number(noise, "noise")
    p = Vt.shape[1]
    sigma = np.ones(p) if covariance is None else as_tensor(covariance, "covariance").double().cpu().numpy()
    if beta.shape != (p,) or sigma.shape not in ((p,), (p, p)):
        raise InputError(
            f"coefficients of shape {beta.shape}, covariance of shape {sigma.shape}",
            expected=f"({p},), and ({p},) or ({p}, {p})",
            hint="pass one coefficient for each column of X",
        )
    reached = _reached(t, eta * lam)  # (G, r)
    missed = beta - (reached * (Vt @ beta)) @ Vt  # (G, p)
    spread = missed * sigma if sigma.ndim == 1 else missed @ sigma
    turned = Vt * sigma if sigma.ndim == 1 else Vt @ sigma
    new = (turned * Vt).sum(1)  # diagonal of Qᵀ Σ Q
    inverse = np.where(lam > 0, 1 / np.where(lam > 0, lam, 1.0), 0.0)
    test = noise + (spread * missed).sum(1) + (noise / n) * (reached**2 @ (new * inverse))
    on_rows = (missed @ Vt.T) ** 2 @ lam
    train = on_rows + noise * (1 - len(lam) / n) + (noise / n) * ((1 - reached) ** 2).sum(1)
    return Curve(
        "gradient descent on one design",
        "step",
        torch.from_numpy(t),
        torch.from_numpy(test),
        noise,
        True,
        "closed form of the iteration",
        torch.from_numpy(train),
    )


def _descent(X: Any, steps: Any, lr: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, int]:
    t = as_axis(steps, "steps", whole=True, exclusive=False)
    rows = as_tensor(X, "X").double().cpu().numpy()
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"X of shape {rows.shape}", expected="(n, p), not empty", hint="flatten the inputs to rows")
    eta = as_number(lr, "lr", exclusive=True)
    U, s, Vt = np.linalg.svd(rows, full_matrices=False)
    lam = np.where(s > np.finfo(float).eps * max(rows.shape) * s[0], s, 0.0) ** 2 / len(rows)
    check_stable(eta * lam)
    return t, U, lam, Vt, eta, len(rows)


def _reached(t: np.ndarray, pace: np.ndarray) -> np.ndarray:
    """1 - (1 - pace)^t, (G, r), without cancellation for small paces."""
    small = pace < 0.5
    slow = -np.expm1(t[:, None] * np.log1p(-np.where(small, pace, 0.0)))
    factor = 1 - pace
    fast = 1 - np.sign(factor) ** t[:, None] * np.abs(factor) ** t[:, None]
    return np.where(small, slow, fast)
