"""Isotropic regression in the limit of many rows and features at a fixed ratio."""

import math
from typing import Any

import numpy as np
import torch

from kernelmem.core.checks import as_count, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import as_axis, as_scaled_count
from kernelmem.double_descent.theory.curve import Curve, Simulation, least_squares, simulate

__all__ = [
    "isotropic_curve",
    "misspecified_curve",
    "optimal_ridge_curve",
    "polynomial_signal_fraction",
    "simulate_isotropic",
]

SOURCE = "Hastie, Montanari, Rosset, Tibshirani 2022"
AXIS = "features per row, p / n"


def isotropic_curve(ratio: Any, *, signal: float, noise: float, ridge: float = 0.0) -> Curve:
    """Compute the limit risk of ridge regression with p = ratio n isotropic features.

    y = x·β + ε, x with i.i.d. entries of variance 1, |β|² = ``signal``, Var ε = ``noise``, and the fit minimizes
    |y - X b|² / n + ridge |b|². With b = 1 - γ + λ, D = √(b² + 4 γ λ) and s = (D - b) / (2 γ), which is λ m(-λ) of the
    Stieltjes transform m::

        test = noise + signal s (λ + γ s) / D + noise γ (1 - s) / D,     train = ((1 - s) (D + b) / 2)² test

    At λ = 0: test = noise / (1 - γ) below γ = 1, signal (1 - 1/γ) + noise γ / (γ - 1) above, infinite at γ = 1. About 10 %
    off at |γ - 1| = 0.05, n = 200; :func:`gaussian_features_curve` is exact there.

    Args:
        ratio: increasing values γ = p / n > 0.
        signal: |β|², >= 0.
        noise: variance of ε, >= 0.
        ridge: λ >= 0.

    Raises:
        InputError: ratios not positive or not increasing; negative signal, noise or ridge.

    Source: Hastie, Montanari, Rosset, Tibshirani 2022; Dobriban and Wager 2018.

    >>> isotropic_curve([0.5, 1, 2], signal=1, noise=0.25).excess.tolist()
    [0.25, inf, 0.75]
    """
    gamma = as_axis(ratio, "ratio")
    signal, noise = as_number(signal, "signal"), as_number(noise, "noise")
    ridge = as_number(ridge, "ridge")
    test, train = _risk(gamma, signal, noise, np.full_like(gamma, ridge))
    name = "ridge regression" if ridge else "least squares"
    return _curve(f"{name}, isotropic features", gamma, test, noise, train, 1.0 if ridge == 0 else None)


def optimal_ridge_curve(ratio: Any, *, signal: float, noise: float) -> Curve:
    """Compute the limit risk at the best ridge λ = noise γ / signal: excess = noise γ m(-λ). It has no peak.

    The setting and the errors are those of :func:`isotropic_curve`; the signal must be positive.

    Source: Hastie, Montanari, Rosset, Tibshirani 2022; Nakkiran, Venkat, Kakade, Ma 2021.
    """
    gamma = as_axis(ratio, "ratio")
    signal, noise = as_number(signal, "signal", exclusive=True), as_number(noise, "noise")
    test, train = _risk(gamma, signal, noise, noise * gamma / signal)
    return _curve("ridge regression at the best ridge", gamma, test, noise, train, None if noise else 1.0)


def misspecified_curve(ratio: Any, *, signal: float, noise: float, signal_fraction: Any) -> Curve:
    """Compute the limit risk of least squares that sees only part of the signal: ``signal_fraction`` κ(γ) of |β|² at each ratio.

    What is not seen, M = signal (1 - κ), acts as noise: with e = noise + M ::

        γ < 1: test = noise + M + e γ / (1 - γ),     γ > 1: test = noise + M + signal κ (1 - 1/γ) + e / (γ - 1)

    If κ grows with γ the second descent may go below the first minimum (:func:`polynomial_signal_fraction`).

    Args:
        ratio: increasing values γ = p / n > 0, p the features that are seen.
        signal: |β|² of all features.
        noise: variance of ε.
        signal_fraction: (G,) values of [0, 1], one for each ratio.

    Raises:
        InputError: as :func:`isotropic_curve`; shares of another length or outside [0, 1].

    Source: Hastie, Montanari, Rosset, Tibshirani 2022.
    """
    gamma = as_axis(ratio, "ratio")
    signal, noise = as_number(signal, "signal"), as_number(noise, "noise")
    kappa = as_tensor(signal_fraction, "signal_fraction").double().cpu().numpy()
    if kappa.shape != gamma.shape or (kappa < 0).any() or (kappa > 1).any():
        raise InputError(
            f"signal_fraction of shape {kappa.shape} for {len(gamma)} ratios",
            expected="one value of [0, 1] for each ratio",
            hint="pass signal_fraction=polynomial_signal_fraction(ratio, exponent=1.5), or ratio / ratio[-1]",
        )
    missed = signal * (1 - kappa)
    parts = [_risk(gamma[[i]], signal * kappa[i], noise + missed[i], np.zeros(1)) for i in range(len(gamma))]
    test, train = (np.concatenate(side) for side in zip(*parts, strict=True))
    return _curve("least squares on part of the features", gamma, test, noise, train, 1.0)


def polynomial_signal_fraction(ratio: Any, *, exponent: float) -> torch.Tensor:
    """Return κ(γ) = 1 - (1 + γ)^(-exponent), (G,): a signal that spreads polynomially over the features.

    Raises:
        InputError: ratios not positive or not increasing, exponent not positive.
    """
    gamma = as_axis(ratio, "ratio")
    return torch.from_numpy(-np.expm1(-as_number(exponent, "exponent", exclusive=True) * np.log1p(gamma)))


def simulate_isotropic(
    ratio: Any, *, n: int, signal: float, noise: float, ridge: float = 0.0, repetitions: int = 60, seed: int = 0
) -> Simulation:
    """Draw n Gaussian rows, fit, and compare with :func:`isotropic_curve`; every ratio x n must be a whole number.

    The theory is a limit: z grows with the number of repetitions. Cost: one decomposition (n, p) a draw and place.
    """
    theory = isotropic_curve(ratio, signal=signal, noise=noise, ridge=ridge)
    n = as_count(n, "n")
    widths = [as_scaled_count(ratio, n, "ratio times n") for ratio in theory.axis.tolist()]

    def draw(rng: np.random.Generator) -> list[float]:
        X = rng.standard_normal((n, widths[-1]))
        error = math.sqrt(noise) * rng.standard_normal(n)
        risks = []
        for p in widths:
            beta = np.full(p, math.sqrt(signal / p))
            w = least_squares(X[:, :p], X[:, :p] @ beta + error, n * ridge)
            risks.append(((w - beta) ** 2).sum() + noise)
        return risks

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def _risk(gamma: np.ndarray, signal: float, noise: float, ridge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    b = 1 - gamma + ridge
    D = np.sqrt(b * b + 4 * gamma * ridge)
    # D - b and D + b each cancel for one sign of b: their product is 4 γ λ.
    large = D + np.abs(b)
    small = np.divide(4 * gamma * ridge, large, out=np.zeros_like(D), where=large > 0)
    minus, plus = np.where(b > 0, small, large), np.where(b > 0, large, small)
    s = minus / (2 * gamma)
    seen = signal * s * (ridge + gamma * s) + noise * gamma * (1 - s)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(D > 0, seen / D, np.inf if noise > 0 else 0.0)
    factor = ((1 - s) * plus / 2) ** 2
    train = np.multiply(factor, noise + excess, out=np.zeros_like(D), where=factor > 0)
    return noise + excess, train


def _curve(
    name: str, gamma: np.ndarray, test: np.ndarray, noise: float, train: np.ndarray, threshold: float | None
) -> Curve:
    axis = torch.from_numpy(gamma)
    return Curve(
        name, AXIS, axis, torch.from_numpy(test), noise, False, SOURCE, torch.from_numpy(train), None, threshold
    )
