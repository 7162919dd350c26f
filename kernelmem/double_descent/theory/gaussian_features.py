"""Least squares on Gaussian features: exact risk for every n, without asymptotics."""

import math

import numpy as np

from kernelmem.core.checks import ArrayLike, as_count, as_number
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis, as_nonnegative
from kernelmem.double_descent.theory.curve import Curve, Simulation, as_curve, least_squares, simulate

NAME = "least squares on Gaussian features"
SOURCE = "Belkin, Hsu, Xu 2020"


def gaussian_features_curve(features: ArrayLike, *, n: int, power: ArrayLike, noise: float) -> Curve:
    """Compute the risk of (least-norm) least squares on the first p of d Gaussian features, for each p.

    The target is x·β + ε with x ~ N(0, I_d), ``power`` = β_j² in the order in which features are added (all equal: a
    random subset of the features) and ``noise`` = Var ε. With in = Σ_{j<=p} β_j², out = Σ_{j>p} β_j² + noise::

        p <= n - 2:   test = out (1 + p / (n - p - 1)),                 train = out (1 - p / n)
        p >= n + 2:   test = in (1 - n / p) + out (1 + n / (p - n - 1)),  train = 0
        otherwise:    test is infinite (if out > 0)

    Args:
        features: increasing whole numbers 1 <= p <= d.
        n: number of training examples.
        power: (d,) squared coefficients.
        noise: variance of ε, >= 0.

    Raises:
        InputError: features do not increase or are outside of 1..d, n < 1, or powers or noise are negative.

    Source: Belkin, Hsu, Xu 2020.

    >>> curve = gaussian_features_curve([10, 50, 200], n=50, power=[0.01] * 200, noise=0.5)
    >>> curve.test.round(decimals=5).tolist()
    [3.01538, inf, 2.16779]
    """
    n, noise = as_count(n, "n"), as_number(noise, "noise", maximum=MAX_VARIANCE)
    beta2 = as_nonnegative(power, "power")
    p = as_axis(features, "features", integer=True)
    if p[-1] > len(beta2):
        raise InputError(
            f"features up to {p[-1]:g} with {len(beta2)} powers",
            expected="at most as many features as the target has coefficients",
            hint="pad power with zeros for features that the target does not use",
        )
    cumulative_power = np.concatenate([[0.0], np.cumsum(beta2)])
    observed = cumulative_power[p.astype(int)]
    unobserved = np.maximum(cumulative_power[-1] - observed, 0.0)
    unobserved[p == len(beta2)] = 0.0
    test, train = _risk(np.full_like(p, n), p, observed, unobserved + noise)
    return as_curve(
        NAME, "features p", p, test, noise=noise, exact=True, source=SOURCE, train=train, threshold=float(n)
    )


def gaussian_samples_curve(samples: ArrayLike, *, n_features: int, signal: float, noise: float) -> Curve:
    """Compute the risk of (least-norm) least squares on p Gaussian features for each number of training examples n.

    The formulas of :func:`gaussian_features_curve` with in = ``signal`` = |β|² and out = ``noise``. Between the minimum
    at n < p and n = p more examples increase the risk (sample-wise double descent).

    Args:
        samples: increasing whole numbers n >= 1.
        n_features: number of features p.
        signal: squared norm |β|² of the coefficients, >= 0.
        noise: variance of the targets, >= 0.

    Raises:
        InputError: samples are not increasing whole numbers >= 1, n_features < 1, or signal or noise is negative.

    Source: Belkin, Hsu, Xu 2020; Nakkiran 2019.
    """
    p, signal = as_count(n_features, "n_features"), as_number(signal, "signal", maximum=MAX_VARIANCE)
    noise = as_number(noise, "noise", maximum=MAX_VARIANCE)
    n = as_axis(samples, "samples", integer=True)
    test, train = _risk(n, np.full_like(n, p), np.full_like(n, signal), np.full_like(n, noise))
    return as_curve(
        NAME, "training examples n", n, test, noise=noise, exact=True, source=SOURCE, train=train, threshold=float(p)
    )


def universal_lower_bound(n: int, p: int, *, noise: float) -> float:
    """Return a lower bound on the noise part of the excess risk of least squares, for any p features.

        noise p / (n + 1 - p)  if p <= n,      noise n / (p + 1 - n)  if p >= n

    It bounds the mean over training sets of noise tr(Φ⁺ᵀ Σ Φ⁺), Φ (n, p) the features of i.i.d. examples and Σ their
    second-moment matrix, if Σ is invertible and Φ almost surely has full rank; not if examples repeat with positive
    probability (discrete inputs).

    Raises:
        InputError: n or p is not a whole number >= 1, or the noise is negative.

    Source: Holzmüller 2021.
    """
    n, p, noise = as_count(n, "n"), as_count(p, "p"), as_number(noise, "noise", maximum=MAX_VARIANCE)
    return noise * p / (n + 1 - p) if p <= n else noise * n / (p + 1 - n)


def simulate_gaussian_features(
    features: ArrayLike, *, n: int, power: ArrayLike, noise: float, repetitions: int = 60, seed: int = 0
) -> Simulation:
    """Compare :func:`gaussian_features_curve` with fits to ``repetitions`` random data sets of n examples.

    The test risk of each fit is exact, without test examples. For p features with |p - n| <= 3 it has no finite variance,
    and z of the result is meaningless. Cost: one singular value decomposition (n, p) for
    each draw and p.
    """
    theory = gaussian_features_curve(features, n=n, power=power, noise=noise)
    beta = np.sqrt(as_nonnegative(power, "power"))
    sigma = math.sqrt(noise)

    def draw(rng: np.random.Generator) -> list[float]:
        X = rng.standard_normal((n, len(beta)))
        y = X @ beta + sigma * rng.standard_normal(n)
        risks = []
        for p in theory.axis.int().tolist():
            w = least_squares(X[:, :p], y)
            risks.append(((w - beta[:p]) ** 2).sum() + (beta[p:] ** 2).sum() + noise)
        return risks

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def _risk(n: np.ndarray, p: np.ndarray, observed: np.ndarray, unobserved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return test and training risk of least squares, (G,) each, for G pairs of n examples and p Gaussian features.

    ``observed`` (G,) is the power of the target in the p features, and ``unobserved`` (G,) the rest and the noise. The test
    risk is infinite if |p − n| <= 1 and ``unobserved`` is positive.
    """
    underparametrized, overparametrized = p <= n - 2, p >= n + 2
    n_minus_p, p_minus_n = np.where(underparametrized, n - p - 1, 1.0), np.where(overparametrized, p - n - 1, 1.0)
    bias = observed * (1 - n / p)
    test = np.where(unobserved > 0, np.inf, np.maximum(bias, 0.0))
    test = np.where(underparametrized, unobserved * (1 + p / n_minus_p), test)
    test = np.where(overparametrized, bias + unobserved * (1 + n / p_minus_n), test)
    return test, unobserved * np.maximum(1 - p / n, 0.0)
