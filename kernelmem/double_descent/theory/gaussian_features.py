"""Least squares on Gaussian features: the risk at every n, without asymptotics."""

import math
from typing import Any

import numpy as np
import torch

from kernelmem.core.checks import as_count, as_number
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import as_axis, as_powers
from kernelmem.double_descent.theory.curve import Curve, Simulation, least_squares, simulate

__all__ = ["gaussian_features_curve", "gaussian_samples_curve", "simulate_gaussian_features", "universal_lower_bound"]

SOURCE = "Belkin, Hsu, Xu 2020"


def gaussian_features_curve(features: Any, *, n: int, power: Any, noise: float) -> Curve:
    """Compute the risk of least squares (of least norm) on the first p of d Gaussian features, for each p.

    The target is x·β + ε with x ~ N(0, I_d), ``power`` = β_j² in the order in which features are added (equal ones: a
    random subset of features) and ``noise`` = Var ε. With in = Σ_{j<=p} β_j², out = Σ_{j>p} β_j² + noise::

        p <= n - 2:   test = out (1 + p / (n - p - 1)),                 train = out (1 - p / n)
        p >= n + 2:   test = in (1 - n / p) + out (1 + n / (p - n - 1)),  train = 0
        otherwise:    test is infinite (if out > 0)

    Args:
        features: increasing whole numbers 1 <= p <= d.
        n: training rows.
        power: (d,) squared coefficients.
        noise: variance of ε, >= 0.

    Raises:
        InputError: an axis that is not sorted or out of 1..d, n < 1, negative powers or noise.

    Source: Belkin, Hsu, Xu 2020.

    >>> curve = gaussian_features_curve([10, 50, 200], n=50, power=[0.01] * 200, noise=0.5)
    >>> curve.test.round(decimals=5).tolist()
    [3.01538, inf, 2.16779]
    """
    n, noise = as_count(n, "n"), as_number(noise, "noise")
    beta2 = as_powers(power, "power")
    p = as_axis(features, "features", whole=True)
    if p[-1] > len(beta2):
        raise InputError(
            f"features up to {p[-1]:g} with {len(beta2)} powers",
            expected="at most as many features as the target has coefficients",
            hint="pad power with zeros for features that the target does not use",
        )
    total = np.concatenate([[0.0], np.cumsum(beta2)])
    seen = total[p.astype(int)]
    unseen = np.maximum(total[-1] - seen, 0.0)
    unseen[p == len(beta2)] = 0.0
    test, train = _risk(np.full_like(p, n), p, seen, unseen + noise)
    return Curve(
        "least squares on Gaussian features",
        "features p",
        torch.from_numpy(p),
        torch.from_numpy(test),
        noise,
        True,
        SOURCE,
        torch.from_numpy(train),
        threshold=float(n),
    )


def gaussian_samples_curve(samples: Any, *, n_features: int, signal: float, noise: float) -> Curve:
    """Compute the risk of least squares (of least norm) on p Gaussian features for each number of rows n.

    The formulas are those of :func:`gaussian_features_curve` with in = ``signal`` = |β|², out = ``noise``. More rows
    hurt between the minimum at n < p and n = p (sample-wise double descent).

    Raises:
        InputError: rows that are not increasing whole numbers >= 1, n_features < 1, negative signal or noise.

    Source: Belkin, Hsu, Xu 2020.
    """
    p, signal, noise = as_count(n_features, "n_features"), as_number(signal, "signal"), as_number(noise, "noise")
    n = as_axis(samples, "samples", whole=True)
    test, train = _risk(n, np.full_like(n, p), np.full_like(n, signal), np.full_like(n, noise))
    return Curve(
        "least squares on Gaussian features",
        "training rows n",
        torch.from_numpy(n),
        torch.from_numpy(test),
        noise,
        True,
        SOURCE,
        torch.from_numpy(train),
        threshold=float(p),
    )


def universal_lower_bound(n: int, p: int, *, noise: float) -> float:
    """Return a bound from below on the noise part of the excess risk of least squares, for any p features.

        noise p / (n + 1 - p)  if p <= n,      noise n / (p + 1 - n)  if p >= n

    It is the mean over training sets of noise tr(Φ⁺ᵀ Σ Φ⁺) with Φ (n, p) the features of i.i.d. rows and Σ their
    second-moment matrix. It holds if Σ is invertible and Φ almost surely has full rank; where rows repeat with positive
    probability (discrete inputs) it does not.

    Raises:
        InputError: n or p not a whole number >= 1, negative noise.

    Source: Holzmueller 2021.
    """
    n, p, noise = as_count(n, "n"), as_count(p, "p"), as_number(noise, "noise")
    return noise * p / (n + 1 - p) if p <= n else noise * n / (p + 1 - n)


def simulate_gaussian_features(
    features: Any, *, n: int, power: Any, noise: float, repetitions: int = 60, seed: int = 0
) -> Simulation:
    """Draw data, fit, and compare with :func:`gaussian_features_curve`; the test risk of each fit is exact.

    Where |p - n| <= 3 the risk has no variance, and z means nothing. Cost: one singular value decomposition (n, p) a
    draw and place.
    """
    theory = gaussian_features_curve(features, n=n, power=power, noise=noise)
    beta = np.sqrt(as_powers(power, "power"))
    scale = math.sqrt(noise)

    def draw(rng: np.random.Generator) -> list[float]:
        X = rng.standard_normal((n, len(beta)))
        y = X @ beta + scale * rng.standard_normal(n)
        risks = []
        for p in theory.axis.int().tolist():
            w = least_squares(X[:, :p], y)
            risks.append(((w - beta[:p]) ** 2).sum() + (beta[p:] ** 2).sum() + noise)
        return risks

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def _risk(n: np.ndarray, p: np.ndarray, seen: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    under, over = p <= n - 2, p >= n + 2
    few, many = np.where(under, n - p - 1, 1.0), np.where(over, p - n - 1, 1.0)
    at_peak = np.where(out > 0, np.inf, np.maximum(seen * (1 - n / p), 0.0))
    test = np.where(under, out * (1 + p / few), at_peak)
    test = np.where(over, seen * (1 - n / p) + out * (1 + n / many), test)
    return test, out * np.maximum(1 - p / n, 0.0)
