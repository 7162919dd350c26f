"""Exact curves of Gaussian least squares: reference values, infinities, simulation, and the bound for any features."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory import (
    gaussian_features_curve,
    gaussian_samples_curve,
    isotropic_curve,
    simulate_gaussian_features,
    universal_lower_bound,
)

sizes = st.integers(1, 60)
levels = st.floats(0.0, 10.0)


def isotropic(p: list[int], n: int, noise: float = 0.25) -> torch.Tensor:
    """Excess risk if each p carries the full signal of 1."""
    return torch.tensor([float(gaussian_features_curve([k], n=n, power=[1 / k] * k, noise=noise).excess[0]) for k in p])


def test_values_of_the_isotropic_model():
    measured = [0.0279, 0.2525, 2.368, 5.28, 5.60, 2.72, 0.838, 0.751, 0.8335]
    got = isotropic([20, 100, 180, 190, 210, 220, 300, 400, 800], 200)
    assert torch.allclose(got, torch.tensor(measured), rtol=3e-3)


def test_a_simulation_agrees():
    power = np.linspace(2, 0, 320) / 320
    simulated = simulate_gaussian_features(
        [4, 20, 40, 64, 76, 96, 110, 160, 320], n=70, power=power, noise=0.3, repetitions=150, seed=2
    )
    assert simulated.z.abs().max() <= 3
    assert (simulated.se / simulated.mean).max() < 0.12
    null = simulate_gaussian_features([20], n=70, power=power, noise=0.0, repetitions=150, seed=2)
    assert simulated.z[1].abs() < 3 < abs(float((null.mean[0] - simulated.theory.test[1]) / null.se[0]))


@given(n=sizes, noise=st.floats(0.01, 5))
def test_infinite_exactly_within_one_of_n(n, noise):
    p = np.arange(1, n + 6)
    curve = gaussian_features_curve(p, n=n, power=np.ones(n + 5), noise=noise)
    assert (torch.isinf(curve.test).numpy() == (np.abs(p - n) <= 1)).all()
    rows = gaussian_samples_curve(p, n_features=n, signal=1.0, noise=noise)
    assert (torch.isinf(rows.test).numpy() == (np.abs(p - n) <= 1)).all()
    assert rows.threshold == curve.threshold == n


@given(n=sizes, p=sizes, signal=levels, noise=levels)
def test_sample_and_feature_curves_agree(n, p, signal, noise):
    by_rows = gaussian_samples_curve([n], n_features=p, signal=signal, noise=noise)
    by_features = gaussian_features_curve([p], n=n, power=[signal / p] * p, noise=noise)
    assert torch.allclose(by_rows.test, by_features.test)
    assert torch.allclose(by_rows.train, by_features.train)
    assert by_rows.exact
    assert by_features.exact


@given(n=st.integers(4, 60), noise=levels)
def test_without_noise_p_examples_recover_the_target(n, noise):
    curve = gaussian_features_curve([n - 2, n, n + 2], n=n, power=np.eye(n + 2)[0], noise=0.0)
    assert curve.test[0] == 0
    assert torch.isfinite(curve.test).all()
    noisy = gaussian_features_curve([1], n=n, power=[1.0], noise=noise)
    assert math.isclose(float(noisy.train[0]), noise * (1 - 1 / n), abs_tol=1e-12)


def test_missing_signal_acts_as_noise_and_many_rows_reach_the_limit():
    curve = gaussian_features_curve([3], n=20, power=[1.0, 2.0, 3.0, 4.0, 5.0], noise=0.5)
    assert math.isclose(float(curve.test[0]), 9.5 * (1 + 3 / 16))
    assert math.isclose(float(curve.train[0]), 9.5 * (1 - 3 / 20))
    n = 100_000
    limit = isotropic_curve([0.3, 0.8, 1.5, 3], signal=1, noise=0.25)
    rows = [
        gaussian_samples_curve([n], n_features=round(g * n), signal=1, noise=0.25).test for g in limit.axis.tolist()
    ]
    assert torch.allclose(torch.cat(rows), limit.test, rtol=1e-3)


@given(n=sizes, p=sizes, noise=st.floats(0.01, 5))
def test_gaussian_noise_stays_above_the_universal_bound(n, p, noise):
    bound = universal_lower_bound(n, p, noise=noise)
    exact = float(gaussian_samples_curve([n], n_features=p, signal=0.0, noise=noise).excess[0])
    assert exact >= bound * (1 - 1e-12)
    assert math.isclose(bound, universal_lower_bound(p, n, noise=noise))


def feature_maps(name: str, rng: np.random.Generator, n: int, p: int) -> np.ndarray:
    if name == "sphere":
        x = rng.standard_normal((n, p))
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    if name == "anisotropic":
        return rng.standard_normal((n, p)) / np.arange(1, p + 1)
    if name == "legendre":
        return np.polynomial.legendre.legvander(rng.uniform(-1, 1, n), p - 1)
    if name == "student":
        return rng.standard_t(5, (n, p))
    if name == "signs":
        return rng.choice([-1.0, 1.0], (n, p))
    W = np.random.default_rng(7).standard_normal((6, p))
    return np.maximum(rng.standard_normal((n, 6)) @ W, 0)


def noise_risk(name: str, n: int, p: int) -> tuple[float, float]:
    """Mean over draws of tr(Φ⁺ᵀ Σ Φ⁺), and its standard error."""
    rng = np.random.default_rng(1)
    many = feature_maps(name, np.random.default_rng(3), 100_000, p)
    second = many.T @ many / len(many)
    inverses = [np.linalg.pinv(feature_maps(name, rng, n, p), rcond=1e-12) for _ in range(400)]
    values = np.array([np.einsum("pn,pq,qn->", P, second, P) for P in inverses])
    return values.mean(), values.std() / 20


@pytest.mark.parametrize("name", ["sphere", "anisotropic", "legendre", "student", "relu"])
@pytest.mark.parametrize(("n", "p"), [(1, 1), (6, 10), (10, 6), (30, 4)])
def test_other_features_stay_above_the_bound(name, n, p):
    mean, se = noise_risk(name, n, p)
    assert mean >= universal_lower_bound(n, p, noise=1.0) - 3 * se


def test_repeated_examples_can_violate_the_bound():
    mean, se = noise_risk("signs", 3, 2)
    assert mean < universal_lower_bound(3, 2, noise=1.0) - 3 * se


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_features_curve([1, 2], n=0, power=[1, 1], noise=0.1),
        lambda: gaussian_features_curve([2, 1], n=5, power=[1, 1], noise=0.1),
        lambda: gaussian_features_curve([1, 3], n=5, power=[1, 1], noise=0.1),
        lambda: gaussian_features_curve([1.5], n=5, power=[1, 1], noise=0.1),
        lambda: gaussian_features_curve([0, 1], n=5, power=[1, 1], noise=0.1),
        lambda: gaussian_features_curve([], n=5, power=[1, 1], noise=0.1),
        lambda: gaussian_features_curve([1], n=5, power=[1, -1], noise=0.1),
        lambda: gaussian_features_curve([1], n=5, power=[[1.0]], noise=0.1),
        lambda: gaussian_features_curve([1], n=5, power=[1], noise=-0.1),
        lambda: gaussian_features_curve([1], n=5, power=[1], noise=math.nan),
        lambda: gaussian_features_curve([1], n=True, power=[1], noise=1.0),
        lambda: gaussian_samples_curve([3, 3], n_features=5, signal=1, noise=0.1),
        lambda: gaussian_samples_curve([[3]], n_features=5, signal=1, noise=0.1),
        lambda: universal_lower_bound(0, 1, noise=1.0),
        lambda: universal_lower_bound(2, 1.5, noise=1.0),
        lambda: simulate_gaussian_features([1], n=5, power=[1], noise=0.1, repetitions=1),
        lambda: simulate_gaussian_features([1], n=5, power=[1], noise=0.1, seed=-1),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError):
        call()
