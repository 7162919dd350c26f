"""Ridge regression on isotropic features: the limit of many examples and features at a fixed ratio."""

import math

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis, as_scaled_count
from kernelmem.double_descent.theory.curve import Curve, Simulation, as_curve, least_squares, simulate

SOURCE = "Hastie, Montanari, Rosset, Tibshirani 2022"
AXIS = "features per example, p / n"


def isotropic_curve(ratio: ArrayLike, *, signal: float, noise: float, ridge: float = 0.0) -> Curve:
    """Compute the limiting risk of ridge regression with p = ratio · n isotropic features.

    y = x·β + ε, the entries of x i.i.d. with variance 1, |β|² = ``signal``, Var ε = ``noise``; the fit minimizes
    |y - X b|² / n + ridge |b|². With b = 1 - γ + λ, D = √(b² + 4 γ λ) and s = (D - b) / (2 γ) = λ m(-λ), m the Stieltjes
    transform of the limiting spectrum::

        test = noise + signal s (λ + γ s) / D + noise γ (1 - s) / D,     train = ((1 - s) (D + b) / 2)² test

    At λ = 0: test = noise / (1 - γ) for γ < 1, noise γ / (γ - 1) + signal (1 - 1/γ) for γ > 1, infinite at γ = 1. About
    10 % off at |γ - 1| = 0.05, n = 200, where :func:`gaussian_features_curve` is exact.

    Args:
        ratio: increasing values γ = p / n > 0.
        signal: squared norm |β|² of the coefficients, >= 0.
        noise: variance of ε, >= 0.
        ridge: ridge λ >= 0.

    Raises:
        InputError: ratios are not positive or do not increase, or signal, noise or ridge is negative.

    Source: Hastie, Montanari, Rosset, Tibshirani 2022; Dobriban and Wager 2018.

    >>> isotropic_curve([0.5, 1, 2], signal=1, noise=0.25).excess.tolist()
    [0.25, inf, 0.75]
    """
    gamma = as_axis(ratio, "ratio")
    signal, noise = as_number(signal, "signal", maximum=MAX_VARIANCE), as_number(noise, "noise", maximum=MAX_VARIANCE)
    ridge = as_number(ridge, "ridge")
    test, train = _risk(gamma, signal, noise, np.full_like(gamma, ridge))
    name = "ridge regression, isotropic features" if ridge else "least squares, isotropic features"
    return _curve(name, gamma, test, train, noise, threshold=1.0 if ridge == 0 else None)


def optimal_ridge_curve(ratio: ArrayLike, *, signal: float, noise: float) -> Curve:
    """Compute the limiting risk at the optimal ridge λ = noise γ / signal: excess = noise γ m(-λ). It has no peak.

    Setting and errors as in :func:`isotropic_curve`; the signal must be positive.

    Source: Hastie, Montanari, Rosset, Tibshirani 2022; Nakkiran, Venkat, Kakade, Ma 2021.
    """
    gamma = as_axis(ratio, "ratio")
    signal = as_number(signal, "signal", exclusive=True, maximum=MAX_VARIANCE)
    noise = as_number(noise, "noise", maximum=MAX_VARIANCE)
    test, train = _risk(gamma, signal, noise, noise * gamma / signal)
    name = "ridge regression at the optimal ridge"
    return _curve(name, gamma, test, train, noise, threshold=None if noise else 1.0)


def misspecified_curve(ratio: ArrayLike, *, signal: float, noise: float, signal_fraction: ArrayLike) -> Curve:
    """Compute the limiting risk of least squares on features that carry only part of the signal, κ(γ) |β|².

    The missing part M = signal (1 - κ) acts as noise: with e = noise + M ::

        γ < 1: test = noise + M + e γ / (1 - γ),     γ > 1: test = noise + M + signal κ (1 - 1/γ) + e / (γ - 1)

    If κ grows with γ, the second descent can go below the first minimum (:func:`polynomial_signal_fraction`).

    Args:
        ratio: increasing values γ = p / n > 0, p the number of observed features.
        signal: |β|² of all features.
        noise: variance of ε.
        signal_fraction: (G,) κ in [0, 1], one for each ratio.

    Raises:
        InputError: as :func:`isotropic_curve`, or the fractions have another length or are outside of [0, 1].

    Source: Hastie, Montanari, Rosset, Tibshirani 2022.
    """
    gamma = as_axis(ratio, "ratio")
    signal, noise = as_number(signal, "signal", maximum=MAX_VARIANCE), as_number(noise, "noise", maximum=MAX_VARIANCE)
    kappa = as_tensor(signal_fraction, "signal_fraction").double().cpu().numpy()
    if kappa.shape != gamma.shape or (kappa < 0).any() or (kappa > 1).any():
        raise InputError(
            f"signal_fraction of shape {kappa.shape} for {len(gamma)} ratios",
            expected="one value in [0, 1] for each ratio",
            hint="pass signal_fraction=polynomial_signal_fraction(ratio, exponent=1.5), or ratio / ratio[-1]",
        )
    missing = signal * (1 - kappa)
    risks = [_risk(gamma[[i]], signal * kappa[i], noise + missing[i], np.zeros(1)) for i in range(len(gamma))]
    test, train = (np.concatenate(values) for values in zip(*risks, strict=True))
    return _curve("least squares on part of the features", gamma, test, train, noise, threshold=1.0)


def polynomial_signal_fraction(ratio: ArrayLike, *, exponent: float) -> torch.Tensor:
    """Return the fraction of the signal carried by the features, κ(γ) = 1 - (1 + γ)^(-exponent), (G,) for G ratios γ.

    The signal then decays polynomially over the features; γ is the number of features per example.

    Raises:
        InputError: ratios are not positive or do not increase, or the exponent is not positive.
    """
    gamma = as_axis(ratio, "ratio")
    return torch.from_numpy(-np.expm1(-as_number(exponent, "exponent", exclusive=True) * np.log1p(gamma)))


def simulate_isotropic(
    ratio: ArrayLike, *, n: int, signal: float, noise: float, ridge: float = 0.0, repetitions: int = 60, seed: int = 0
) -> Simulation:
    """Compare :func:`isotropic_curve` with fits to random sets of n Gaussian examples; ratio · n must be whole numbers.

    The theory is a limit, so z grows with the number of repetitions. Cost: one decomposition (n, p) for each draw and
    ratio.
    """
    theory = isotropic_curve(ratio, signal=signal, noise=noise, ridge=ridge)
    signal, noise, ridge = float(signal), float(noise), float(ridge)
    n = as_count(n, "n")
    widths = [as_scaled_count(gamma, n, "ratio times n") for gamma in theory.axis.tolist()]

    def draw(rng: np.random.Generator) -> list[float]:
        """Return the test risks of fits to one random data set, one for each number of features."""
        X = rng.standard_normal((n, widths[-1]))
        epsilon = math.sqrt(noise) * rng.standard_normal(n)
        risks = []
        for p in widths:
            beta = np.full(p, math.sqrt(signal / p))
            w = least_squares(X[:, :p], X[:, :p] @ beta + epsilon, n * ridge)
            risks.append(((w - beta) ** 2).sum() + noise)
        return risks

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def _risk(gamma: np.ndarray, signal: float, noise: float, ridge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return limiting test and training risk of ridge regression, (G,) each, for G ratios γ = features / examples.

    ``signal`` is |β|², ``noise`` the variance of the targets and ``ridge`` (G,) the ridge λ; the formulas are those of
    :func:`isotropic_curve`. The test risk is infinite at γ = 1 if λ = 0 and the noise is positive.
    """
    b = 1 - gamma + ridge
    D = np.sqrt(b * b + 4 * gamma * ridge)
    # One of D - b and D + b cancels; their product is 4 γ λ.
    large = D + np.abs(b)
    small = np.divide(4 * gamma * ridge, large, out=np.zeros_like(D), where=large > 0)
    D_minus_b, D_plus_b = np.where(b > 0, small, large), np.where(b > 0, large, small)
    s = D_minus_b / (2 * gamma)
    numerator = signal * s * (ridge + gamma * s) + noise * gamma * (1 - s)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(D > 0, numerator / D, np.inf if noise > 0 else 0.0)
    factor = ((1 - s) * D_plus_b / 2) ** 2
    train = np.multiply(factor, noise + excess, out=np.zeros_like(D), where=factor > 0)
    return noise + excess, train


def _curve(
    name: str, gamma: np.ndarray, test: np.ndarray, train: np.ndarray, noise: float, *, threshold: float | None
) -> Curve:
    return as_curve(name, AXIS, gamma, test, noise=noise, exact=False, source=SOURCE, train=train, threshold=threshold)
