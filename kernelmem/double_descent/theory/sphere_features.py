"""Ridge regression on random nonlinear features of data on a sphere (Mei and Montanari)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_tensor, check_callable, check_instance
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis, as_scaled_count
from kernelmem.double_descent.theory.curve import Curve, Simulation, as_curve, least_squares, simulate

BISECTIONS = 200  # bisections of an interval, until its length is at rounding level


@dataclass(frozen=True)
class ActivationMoments:
    """Gaussian moments of an activation σ, with G ~ N(0, 1) (μ₀, μ₁ and μ⋆ of Mei and Montanari).

    Attributes:
        mean: mean of the activation, E σ(G).
        linear: linear coefficient, E[G σ(G)].
        rest: standard deviation of the nonlinear part, √(E σ(G)² - mean² - linear²).
    """

    mean: float
    linear: float
    rest: float

    def __post_init__(self) -> None:
        for name, minimum in (("mean", -math.inf), ("linear", -math.inf), ("rest", 0.0)):
            number = as_number(getattr(self, name), name, minimum=minimum, exclusive=name == "rest")
            object.__setattr__(self, name, number)
        as_number(abs(self.linear), "linear", exclusive=True)


RELU = ActivationMoments(1 / math.sqrt(2 * math.pi), 0.5, math.sqrt(0.25 - 1 / (2 * math.pi)))


def activation_moments(
    activation: Callable[[np.ndarray], np.ndarray], kinks: Sequence[float] = (0.0,)
) -> ActivationMoments:
    """Integrate an activation by Gauss-Legendre quadrature between its kinks, on [-14, 14], to about 1e-13.

    A Gauss-Hermite rule over a kink is off by percents.

    Args:
        activation: elementwise function of arrays.
        kinks: points at which its derivative jumps.

    Raises:
        InputError: the activation has no linear part or no nonlinear part, or is not finite.
    """
    check_callable(activation, "activation", ("x",))
    kink_positions = as_tensor(kinks, "kinks", dtype=torch.float64).reshape(-1).clamp(-14, 14).tolist()
    nodes, weights = np.polynomial.legendre.leggauss(80)
    interval_ends = np.unique([-14.0, *np.linspace(-7, 7, 8), *kink_positions, 14.0])
    half_lengths = np.diff(interval_ends)[:, None] / 2
    points = ((interval_ends[:-1] + interval_ends[1:])[:, None] / 2 + half_lengths * nodes).ravel()
    point_weights = (half_lengths * weights).ravel() * np.exp(-points * points / 2) / math.sqrt(2 * math.pi)
    try:
        outputs = activation(points)
    except (TypeError, ValueError, RuntimeError) as error:  # raised by the user's function
        raise InputError(
            f"an activation that does not accept an array ({str(error)[:200]})",
            expected="an elementwise function of NumPy arrays",
            hint="pass e.g. numpy.tanh",
        ) from error
    values = as_tensor(outputs, "activation(x)", dtype=torch.float64).numpy()
    if values.shape != points.shape:
        raise InputError(
            f"an activation that returns shape {values.shape} for {points.shape}",
            expected="an elementwise function of arrays",
            hint="pass e.g. numpy.tanh",
        )
    mean, linear, second_moment = (
        float(point_weights @ values),
        float(point_weights @ (points * values)),
        float(point_weights @ values**2),
    )
    rest = second_moment - mean**2 - linear**2
    if (
        not math.isfinite(second_moment)
        or rest <= 1e-10 * second_moment
        or abs(linear) <= 1e-8 * math.sqrt(second_moment)
    ):
        raise InputError(
            f"an activation with linear part {linear:.3g} and nonlinear variance {rest:.3g}",
            expected="an activation with both parts, finite on [-14, 14]",
            hint="use one that is neither linear nor even; isotropic_curve is the theory of linear features",
        )
    return ActivationMoments(mean, linear, math.sqrt(rest))


def sphere_features_curve(
    features_per_dimension: ArrayLike,
    *,
    samples_per_dimension: float,
    linear: float,
    noise: float,
    nonlinear: float = 0.0,
    ridge: float = 0.0,
    moments: ActivationMoments = RELU,
) -> Curve:
    """Compute the limiting risk of ridge regression on N random features σ(⟨θ, x⟩/√d), n examples x on a sphere.

    The sphere has radius √d; ψ1 = N/d, ψ2 = n/d; the fit minimizes |y - Z a|²/n + (N ridge/d) |a|². With ζ = linear/rest
    of the activation, λ = ridge/rest² and w the root in [0, ∞) of ::

        ψ1 ψ2 λ w = (ψ1 - h(w)) (ψ2 - h(w)),     h(w) = w + ζ² w / (1 + ζ² w),     χ = -w

    the risk is test = noise + nonlinear + linear B + (noise + nonlinear) V, B and V being ratios of polynomials in χ.

    Args:
        features_per_dimension: increasing values ψ1 > 0.
        samples_per_dimension: ψ2 > 0.
        linear: F1², power of the linear part of the target.
        noise: variance τ² of the targets.
        nonlinear: F⋆², power of the nonlinear part of the target, a centered isotropic Gaussian field.
        ridge: ridge >= 0; at 0 the risk is infinite at ψ1 = ψ2.
        moments: Gaussian moments of the activation σ.

    Raises:
        InputError: a value is out of range, or the axis does not increase.

    Source: Mei and Montanari 2022; the scalar equation for w is derived from theirs.
    """
    psi1 = as_axis(features_per_dimension, "features_per_dimension")
    psi2 = as_number(samples_per_dimension, "samples_per_dimension", exclusive=True)
    linear, noise = as_number(linear, "linear"), as_number(noise, "noise", maximum=MAX_VARIANCE)
    nonlinear, ridge = as_number(nonlinear, "nonlinear"), as_number(ridge, "ridge")
    check_instance(moments, "moments", ActivationMoments, hint="pass activation_moments(numpy.tanh)")
    zeta2 = (moments.linear / moments.rest) ** 2
    chi = -_solve_w(psi1, psi2, zeta2, ridge / moments.rest**2)
    bias, variance = _bias_and_variance(psi1, psi2, zeta2, chi)
    unexplained = noise + nonlinear
    test = unexplained + linear * bias + unexplained * variance
    if ridge == 0:
        test = np.where(psi1 == psi2, np.inf, test)
    return as_curve(
        "random features on a sphere",
        "features per dimension, N / d",
        psi1,
        test,
        noise=noise,
        exact=False,
        source="Mei, Montanari 2022",
        threshold=psi2 if ridge == 0 else None,
    )


def simulate_sphere_features(
    features_per_dimension: ArrayLike,
    *,
    samples_per_dimension: float,
    dimension: int,
    noise: float,
    ridge: float = 0.0,
    repetitions: int = 8,
    n_test: int = 2000,
    seed: int = 0,
) -> Simulation:
    """Compare :func:`sphere_features_curve` with fits to random ReLU features and a linear target of power 1.

    Cost: one decomposition (n, N) for each draw and ψ1. The theory is a limit, d -> ∞.
    """
    theory = sphere_features_curve(
        features_per_dimension, samples_per_dimension=samples_per_dimension, linear=1.0, noise=noise, ridge=ridge
    )
    d = as_count(dimension, "dimension")
    n = as_scaled_count(samples_per_dimension, d, "samples_per_dimension times dimension")
    n_test_examples = as_count(n_test, "n_test")
    feature_counts = [as_scaled_count(psi, d, "features_per_dimension times dimension") for psi in theory.axis.tolist()]

    def draw(rng: np.random.Generator) -> list[float]:
        """Return the test risks of fits to one random data set, one for each number of random features."""
        x = rng.standard_normal((n + n_test_examples, d))
        x *= math.sqrt(d) / np.linalg.norm(x, axis=1, keepdims=True)
        beta = rng.standard_normal(d)
        target = x @ (beta / np.linalg.norm(beta))
        y = target[:n] + math.sqrt(noise) * rng.standard_normal(n)
        risks = []
        for N in feature_counts:
            theta = rng.standard_normal((d, N))
            theta *= math.sqrt(d) / np.linalg.norm(theta, axis=0)
            Z = np.maximum(x @ theta / math.sqrt(d), 0.0)
            a = least_squares(Z[:n], y, n * N * ridge / d)
            risks.append(((Z[n:] @ a - target[n:]) ** 2).mean() + noise)
        return risks

    return simulate(theory, draw, repetitions=repetitions, seed=seed)


def _solve_w(psi1: np.ndarray, psi2: float, zeta2: float, ridge: float) -> np.ndarray:
    """Return the root w of ψ1 ψ2 λ w = (ψ1 − h(w)) (ψ2 − h(w)), h(w) = w + ζ² w / (1 + ζ² w), (G,) for G values of ψ1.

    ``zeta2`` is ζ² and ``ridge`` λ. The left side increases from 0 and the right side falls to 0 where h(w) = min(ψ1, ψ2).
    """
    psi = np.minimum(psi1, psi2)
    b = zeta2 + 1 - psi * zeta2
    sqrt_discriminant = np.sqrt(b * b + 4 * zeta2 * psi)
    # h(w) = ψ is ζ² w² + b w - ψ = 0; the form without cancellation depends on the sign of b.
    ridgeless_w = np.where(b > 0, 2 * psi / (b + sqrt_discriminant), (sqrt_discriminant - b) / (2 * zeta2))
    if ridge == 0:
        return ridgeless_w
    low, high = np.zeros_like(ridgeless_w), ridgeless_w
    for _ in range(BISECTIONS):
        w = (low + high) / 2
        h = w + zeta2 * w / (1 + zeta2 * w)
        root_is_higher = psi1 * psi2 * ridge * w < (psi1 - h) * (psi2 - h)
        low, high = np.where(root_is_higher, w, low), np.where(root_is_higher, high, w)
    return (low + high) / 2


def _bias_and_variance(psi1: np.ndarray, psi2: float, z2: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bias B = E1 / E0 and the variance V = E2 / E0 of random features on a sphere, (G,) for G values of ψ1.

    E0, E1, E2 are polynomials in ``x`` (G,), the χ of Mei and Montanari, and in ``z2`` = ζ², ψ1 and ψ2.
    """
    z4, z6, psi12 = z2**2, z2**3, psi1 * psi2
    common = -(x**5) * z6 + 3 * x**4 * z4 - 2 * x**3 * z4 - 3 * x**3 * z2
    E0 = common + (psi12 - psi2 - psi1 + 1) * x**3 * z6 + (psi1 + psi2 - 3 * psi12 + 1) * x**2 * z4
    E0 = E0 + 2 * x**2 * z2 + x**2 + 3 * psi12 * x * z2 - psi12
    E1 = psi2 * x**3 * z4 - psi2 * x**2 * z2 + psi12 * x * z2 - psi12
    E2 = -common + (psi1 - 1) * x**3 * z6 - (psi1 + 1) * x**2 * z4 - 2 * x**2 * z2 - x**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return E1 / E0, E2 / E0
