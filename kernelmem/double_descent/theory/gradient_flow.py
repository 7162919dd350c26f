"""Risk along gradient descent on a linear model in the limit: isotropic features, and features of several scales."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import as_axis, as_powers, as_scaled_count
from kernelmem.double_descent.theory.curve import Curve, Simulation, simulate

__all__ = [
    "check_stable",
    "equalizing_learning_rates",
    "gradient_flow_curve",
    "simulate_gradient_flow",
    "superposition_curve",
]


def gradient_flow_curve(times: Any, *, ratio: float, signal: float, noise: float, n_nodes: int = 8192) -> Curve:
    """Compute the limit risk of gradient flow on |y - X b|²/(2 n) from 0 at each time, isotropic features, p = ratio n.

    With F the Marchenko-Pastur law of the eigenvalues of XᵀX/n (mass 1 - 1/γ at 0 if γ > 1)::

        test  = noise + signal ∫ e^(-2ts) dF + noise γ ∫ (1 - e^(-ts))²/s dF
        train = signal ∫ s e^(-2ts) dF + noise (1 - γ + γ ∫ e^(-2ts) dF)

    The integrals are midpoint sums in θ, s = 1 + γ + 2 √γ cos θ, with ``n_nodes`` nodes: exact to rounding unless γ is
    within 1e-3 of 1.

    Args:
        times: increasing, >= 0.
        ratio: γ = p / n > 0.
        signal: |β|².
        noise: variance of the targets.
        n_nodes: number of quadrature nodes.

    Raises:
        InputError: values out of range or times not increasing.

    Source: Ali, Kolter, Tibshirani 2019.
    """
    t = as_axis(times, "times", exclusive=False)
    gamma, signal = as_number(ratio, "ratio", exclusive=True), as_number(signal, "signal")
    noise, n_nodes = as_number(noise, "noise"), as_count(n_nodes, "n_nodes", minimum=16)
    theta = (np.arange(n_nodes) + 0.5) * math.pi / n_nodes
    s = (1 - math.sqrt(gamma)) ** 2 + 4 * math.sqrt(gamma) * np.cos(theta / 2) ** 2
    weight = 2 * np.sin(theta) ** 2 / (n_nodes * s)
    fading = np.exp(-t[:, None] * s)
    kept = fading**2 @ weight + max(1 - 1 / gamma, 0.0)
    test = noise + signal * kept + noise * gamma * (np.expm1(-t[:, None] * s) ** 2 @ (weight / s))
    train = signal * (fading**2 @ (weight * s)) + noise * (1 - gamma + gamma * kept)
    return _curve("gradient flow, isotropic features", "time", t, test, noise, train, "Ali, Kolter, Tibshirani 2019")


def superposition_curve(steps: Any, *, scales: Any, coefficients: Any, n: int, noise: float, lr: Any) -> Curve:
    """Compute the risk of gradient descent on features of different scales, for n much larger than their number.

        test(t) = noise + Σ_i [ s_i² θ_i² (1 - η_i s_i²)^(2t) + (noise/n) (1 - (1 - η_i s_i²)^t)² ]

    Every feature has its own U-shaped curve; two scales give two minima (epoch-wise double descent), and step sizes
    η_i ∝ 1/s_i² give one (:func:`equalizing_learning_rates`). It leaves out the correlations of the features, and is low by
    about p / n of the risk.

    Args:
        steps: increasing whole numbers >= 0.
        scales: (p,) standard deviations s_i > 0 of independent features.
        coefficients: (p,) θ_i of the target.
        n: training rows.
        noise: variance of the targets.
        lr: η, one number or (p,); 0 < η_i s_i² < 2.

    Raises:
        InputError: values out of range, different lengths, a step size that diverges.

    Source: Heckel and Yilmaz 2021.
    """
    t = as_axis(steps, "steps", whole=True, exclusive=False)
    s2, theta2 = _scales(scales), as_tensor(coefficients, "coefficients").double().cpu().numpy() ** 2
    n, noise = as_count(n, "n"), as_number(noise, "noise")
    eta = as_tensor(lr, "lr").double().cpu().numpy()
    if theta2.shape != s2.shape or eta.shape not in ((), s2.shape):
        raise InputError(
            f"{s2.shape} scales, {theta2.shape} coefficients, step sizes of shape {eta.shape}",
            expected="scales and coefficients (p,), one step size or (p,)",
            hint="repeat the scale of a group for each of its features",
        )
    check_stable(eta * s2)
    factor = 1 - eta * s2
    left = np.sign(factor) ** t[:, None] * np.abs(factor) ** t[:, None]
    test = noise + left**2 @ (s2 * theta2) + (noise / n) * ((1 - left) ** 2).sum(1)
    return _curve("gradient descent, features of several scales", "step", t, test, noise, None, "Heckel, Yilmaz 2021")


def equalizing_learning_rates(scales: Any, *, rate: float) -> Tensor:
    """Return η_i = rate / s_i², (p,): every feature is learned at one pace, and epoch-wise double descent is gone.

    Raises:
        InputError: scales not positive, a rate outside (0, 2).
    """
    return torch.from_numpy(as_number(rate, "rate", exclusive=True, maximum=1.999) / _scales(scales))


def simulate_gradient_flow(
    times: Any, *, ratio: float, n: int, signal: float, noise: float, repetitions: int = 20, seed: int = 0
) -> Simulation:
    """Draw Gaussian rows, follow the flow exactly, and compare with :func:`gradient_flow_curve`."""
    theory = gradient_flow_curve(times, ratio=ratio, signal=signal, noise=noise)
    n = as_count(n, "n")
    p = as_scaled_count(ratio, n, "ratio times n")
    t = theory.axis.numpy()

    def draw(rng: np.random.Generator) -> np.ndarray:
        X = rng.standard_normal((n, p))
        beta = np.full(p, math.sqrt(signal / p))
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        target = s * (Vt @ beta) + math.sqrt(noise) * (U.T @ rng.standard_normal(n))
        w = (-np.expm1(-t[:, None] * s**2 / n) * (target / s)) @ Vt
        return ((w - beta) ** 2).sum(1) + noise

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def _scales(scales: Any) -> np.ndarray:
    squares = as_powers(as_tensor(scales, "scales").double() ** 2, "scales")
    if (squares <= 0).any():
        raise InputError("scales with zeros", expected="standard deviations > 0", hint="leave constant features out")
    return squares


def check_stable(pace: np.ndarray) -> None:
    """Refuse step sizes whose product with a curvature is not in [0, 2), or 0 everywhere."""
    if pace.max() >= 2 or pace.min() < 0 or pace.max() <= 0:
        raise InputError(
            f"a step size with step x curvature from {pace.min():.3g} to {pace.max():.3g}",
            expected="0 < step size < 2 / largest curvature, so that the iteration converges",
            hint="lower the step size",
        )


def _curve(
    name: str, axis_name: str, t: np.ndarray, test: np.ndarray, noise: float, train: np.ndarray | None, source: str
) -> Curve:
    rows = None if train is None else torch.from_numpy(train)
    return Curve(name, axis_name, torch.from_numpy(t), torch.from_numpy(test), noise, False, source, rows)
