"""Risk along the training of a linear model, in the limit: isotropic features, and features of several scales."""

import math

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis, as_nonnegative, as_scaled_count
from kernelmem.double_descent.theory.curve import Curve, Simulation, as_curve, simulate


def gradient_flow_curve(times: ArrayLike, *, ratio: float, signal: float, noise: float, n_nodes: int = 8192) -> Curve:
    """Compute the limiting risk of gradient flow on |y - X b|²/(2 n) from 0, isotropic features, p = ratio · n.

    With F the Marchenko-Pastur law of the eigenvalues of XᵀX/n (mass 1 - 1/γ at 0 if γ > 1)::

        test  = noise + signal ∫ e^(-2ts) dF + noise γ ∫ (1 - e^(-ts))²/s dF
        train = signal ∫ s e^(-2ts) dF + noise (1 - γ + γ ∫ e^(-2ts) dF)

    The integrals are midpoint sums in θ, s = 1 + γ + 2 √γ cos θ: exact to rounding unless |γ - 1| < 1e-3.

    Args:
        times: increasing training times >= 0.
        ratio: γ = p / n > 0, features per example.
        signal: squared norm |β|² of the coefficients.
        noise: variance of the targets.
        n_nodes: number of quadrature nodes, >= 16.

    Raises:
        InputError: a value is out of range, or times do not increase.

    Source: Ali, Kolter, Tibshirani 2019.
    """
    t = as_axis(times, "times", exclusive=False)
    gamma, signal = as_number(ratio, "ratio", exclusive=True), as_number(signal, "signal", maximum=MAX_VARIANCE)
    noise, n_nodes = as_number(noise, "noise", maximum=MAX_VARIANCE), as_count(n_nodes, "n_nodes", minimum=16)
    theta = (np.arange(n_nodes) + 0.5) * math.pi / n_nodes
    s = (1 - math.sqrt(gamma)) ** 2 + 4 * math.sqrt(gamma) * np.cos(theta / 2) ** 2
    dF = 2 * np.sin(theta) ** 2 / (n_nodes * s)
    decay = np.exp(-t[:, None] * s)  # (G, nodes)
    not_learned = decay**2 @ dF + max(1 - 1 / gamma, 0.0)
    test = noise + signal * not_learned + noise * gamma * (np.expm1(-t[:, None] * s) ** 2 @ (dF / s))
    train = signal * (decay**2 @ (dF * s)) + noise * (1 - gamma + gamma * not_learned)
    name, source = "gradient flow, isotropic features", "Ali, Kolter, Tibshirani 2019"
    return as_curve(name, "time", t, test, noise=noise, exact=False, source=source, train=train)


def superposition_curve(
    steps: ArrayLike, *, scales: ArrayLike, coefficients: ArrayLike, n: int, noise: float, lr: ArrayLike
) -> Curve:
    """Compute the risk of gradient descent on features of different scales, for n much larger than their number.

        test(t) = noise + Σ_i [ s_i² θ_i² (1 - η_i s_i²)^(2t) + (noise/n) (1 - (1 - η_i s_i²)^t)² ]

    Each feature has its own U-shaped curve; two scales give two minima (epoch-wise double descent), and learning rates
    η_i ∝ 1/s_i² give one (:func:`equalizing_learning_rates`). Correlations between features are neglected, which makes
    the risk too low by a fraction of about p / n.

    Args:
        steps: increasing whole numbers >= 0.
        scales: (p,) standard deviations s_i > 0 of independent features.
        coefficients: (p,) coefficients θ_i of the target.
        n: number of training examples.
        noise: variance of the targets.
        lr: learning rate η, one number or (p,); 0 < η_i s_i² < 2.

    Raises:
        InputError: a value is out of range, the lengths differ, or the learning rate diverges.

    Source: Heckel and Yilmaz 2021.
    """
    t = as_axis(steps, "steps", integer=True, exclusive=False)
    s2, theta2 = _squared_scales(scales), as_tensor(coefficients, "coefficients").double().cpu().numpy() ** 2
    n, noise = as_count(n, "n"), as_number(noise, "noise", maximum=MAX_VARIANCE)
    eta = as_tensor(lr, "lr").double().cpu().numpy()
    if theta2.shape != s2.shape or eta.shape not in ((), s2.shape):
        raise InputError(
            f"scales of shape {s2.shape}, coefficients of shape {theta2.shape}, lr of shape {eta.shape}",
            expected="scales and coefficients (p,), one learning rate or (p,)",
            hint="repeat the scale of a group for each of its features",
        )
    check_stable(eta * s2)
    factor = 1 - eta * s2
    decay = np.sign(factor) ** t[:, None] * np.abs(factor) ** t[:, None]  # (G, p)
    test = noise + decay**2 @ (s2 * theta2) + (noise / n) * ((1 - decay) ** 2).sum(1)
    name = "gradient descent, features of several scales"
    return as_curve(name, "step", t, test, noise=noise, exact=False, source="Heckel, Yilmaz 2021")


def equalizing_learning_rates(scales: ArrayLike, *, rate: float) -> Tensor:
    """Return learning rates η_i = rate / s_i², (p,), for p features with standard deviations s_i (``scales``).

    With them all features are learned equally fast, so that there is no epoch-wise double descent.

    Raises:
        InputError: a scale is not positive, or the rate is outside of (0, 2).
    """
    return torch.from_numpy(as_number(rate, "rate", exclusive=True, maximum=1.999) / _squared_scales(scales))


def simulate_gradient_flow(
    times: ArrayLike, *, ratio: float, n: int, signal: float, noise: float, repetitions: int = 20, seed: int = 0
) -> Simulation:
    """Compare :func:`gradient_flow_curve` with gradient flow, integrated exactly, on random sets of n Gaussian examples."""
    theory = gradient_flow_curve(times, ratio=ratio, signal=signal, noise=noise)
    signal, noise = float(signal), float(noise)
    n = as_count(n, "n")
    p = as_scaled_count(ratio, n, "ratio times n")
    t = theory.axis.numpy()

    def draw(rng: np.random.Generator) -> np.ndarray:
        X = rng.standard_normal((n, p))
        beta = np.full(p, math.sqrt(signal / p))
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        projected_y = s * (Vt @ beta) + math.sqrt(noise) * (U.T @ rng.standard_normal(n))
        w = (-np.expm1(-t[:, None] * s**2 / n) * (projected_y / s)) @ Vt
        return ((w - beta) ** 2).sum(1) + noise

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def check_stable(products: np.ndarray) -> None:
    """Check that ``products``, learning rate times curvature of each direction, are in [0, 2) and not all 0.

    Raises:
        InputError: a product is outside of [0, 2), or none is positive.
    """
    if products.max() >= 2 or products.min() < 0 or products.max() <= 0:
        raise InputError(
            f"a learning rate whose products with the curvatures range from {products.min():.3g} to {products.max():.3g}",
            expected="0 < lr < 2 / largest curvature (convergence)",
            hint="lower the learning rate",
        )


def _squared_scales(scales: ArrayLike) -> np.ndarray:
    s2 = as_nonnegative(as_tensor(scales, "scales").double() ** 2, "scales")
    if (s2 <= 0).any():
        raise InputError("scales with zeros", expected="standard deviations > 0", hint="remove constant features")
    return s2
