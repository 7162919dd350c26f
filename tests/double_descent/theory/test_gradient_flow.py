"""Risk along gradient descent: integrals, limits, exact designs, two scales."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory import (
    equalizing_learning_rates,
    gradient_descent_curve,
    gradient_descent_weights,
    gradient_flow_curve,
    isotropic_curve,
    simulate_gradient_flow,
    superposition_curve,
)
from tests.profiles import examples

ratios = st.one_of(st.floats(0.1, 0.9), st.floats(1.1, 8.0))


@examples(0.3)
@given(gamma=ratios, t=st.floats(0, 30), signal=st.floats(0, 3), noise=st.floats(0, 3))
def test_integrals_over_the_marchenko_pastur_law(gamma, t, signal, noise):
    low, high = (1 - math.sqrt(gamma)) ** 2, (1 + math.sqrt(gamma)) ** 2

    def mean(function) -> float:
        # The quadrature takes the square-root ends as weights.
        inner = quad(lambda s: function(s) / (2 * math.pi * gamma * s), low, high, weight="alg", wvar=(0.5, 0.5))
        return inner[0]

    zero = max(1 - 1 / gamma, 0)
    kept = mean(lambda s: math.exp(-2 * t * s)) + zero
    assert math.isclose(mean(lambda s: 1.0) + zero, 1, rel_tol=1e-9)
    expected = noise + signal * kept + noise * gamma * mean(lambda s: math.expm1(-t * s) ** 2 / s)
    train = signal * mean(lambda s: s * math.exp(-2 * t * s)) + noise * (1 - gamma + gamma * kept)
    curve = gradient_flow_curve([t], ratio=gamma, signal=signal, noise=noise)
    assert math.isclose(float(curve.test[0]), expected, rel_tol=1e-7, abs_tol=1e-12)
    assert math.isclose(float(curve.train[0]), train, rel_tol=1e-7, abs_tol=1e-9)


@given(gamma=ratios, signal=st.floats(0, 3), noise=st.floats(0, 3))
def test_time_zero_and_infinity_are_zero_and_least_squares(gamma, signal, noise):
    curve = gradient_flow_curve([0, 1e5], ratio=gamma, signal=signal, noise=noise)
    end = isotropic_curve([gamma], signal=signal, noise=noise)
    assert math.isclose(float(curve.test[0]), signal + noise, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(float(curve.test[1]), float(end.test[0]), rel_tol=1e-8, abs_tol=1e-12)
    assert math.isclose(float(curve.train[1]), float(end.train[0]), rel_tol=1e-8, abs_tol=1e-8)
    assert math.isclose(float(curve.train[0]), signal + noise, rel_tol=1e-10, abs_tol=1e-12)


def test_reference_values_of_the_flow():
    under = gradient_flow_curve([0.5, 2, 20], ratio=0.8, signal=1, noise=1.0)
    over = gradient_flow_curve([5, 100], ratio=2, signal=1, noise=1.0)
    assert torch.allclose(over.excess, torch.tensor([1.32, 1.5], dtype=torch.float64), rtol=3e-3)
    assert torch.allclose(under.excess, torch.tensor([0.592, 0.665, 2.08], dtype=torch.float64), rtol=3e-2)


def test_a_simulation_of_the_flow_agrees():
    for gamma in (0.5, 2.0):
        simulated = simulate_gradient_flow(
            [0, 0.5, 2, 20, 200], ratio=gamma, n=200, signal=1, noise=1.0, repetitions=20, seed=1
        )
        assert simulated.z.abs().max() <= 3
        assert simulated.z[0] == 0


@st.composite
def designs(draw):
    n, p = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    X = rng.standard_normal((n, p)) * 3.0 ** -rng.integers(0, 3, p)
    X[:, -1] = X[:, 0]  # a null direction
    eta = draw(st.floats(0.05, 1.9)) / np.linalg.eigvalsh(X.T @ X / n)[-1]
    return X, eta, rng


@given(designs())
def test_weights_equal_the_iteration(case):
    X, eta, rng = case
    n, p = X.shape
    for y in (rng.standard_normal(n), rng.standard_normal((n, 3))):
        w, seen = np.zeros((p, *y.shape[1:])), {}
        for step in range(13):
            seen[step] = w
            w = w - eta * X.T @ (X @ w - y) / n
        got = gradient_descent_weights(X, y, [0, 1, 2, 5, 12], lr=eta).numpy()
        assert np.allclose(got, np.stack([seen[t] for t in (0, 1, 2, 5, 12)]), atol=1e-9)


def test_small_curvatures_are_accurate():
    X, y, eta = np.diag([1.0, 1e-9]), np.array([0.0, 3.0]), 0.5
    got = gradient_descent_weights(X, y, [0, 1, 1000], lr=eta)[:, 1]
    expected = torch.tensor([0.0, 1.0, 1000.0], dtype=torch.float64) * eta * 1e-9 * 3.0 / 2
    assert torch.allclose(got, expected, rtol=1e-9, atol=0.0)


@given(designs())
def test_the_risk_of_a_design_equals_the_iteration(case):
    X, eta, rng = case
    n, p = X.shape
    beta, root = rng.standard_normal(p), rng.standard_normal((p, p))
    steps, noise = [0, 1, 4, 11], 0.7
    smoothers = gradient_descent_weights(X, np.eye(n), steps, lr=eta).numpy()  # (G, p, n): weights per unit of target
    full = root @ root.T
    for sigma, given_sigma in ((full, full), (np.diag(np.diag(full)), np.diag(full)), (np.eye(p), None)):
        curve = gradient_descent_curve(steps, X=X, coefficients=beta, noise=noise, lr=eta, covariance=given_sigma)
        for i, S in enumerate(smoothers):
            missed = S @ X @ beta - beta
            test = noise + missed @ sigma @ missed + noise * np.trace(S.T @ sigma @ S)
            rest = np.eye(n) - X @ S
            train = ((rest @ X @ beta) ** 2).mean() + noise * (rest**2).sum() / n
            assert math.isclose(float(curve.test[i]), test, rel_tol=1e-8, abs_tol=1e-10)
            assert math.isclose(float(curve.train[i]), train, rel_tol=1e-8, abs_tol=1e-10)
    assert curve.exact


def test_the_limit_is_the_mean_over_designs():
    steps, eta = [10, 100, 2000], 0.01
    rng = np.random.default_rng(0)
    tests = []
    for _ in range(12):
        X = rng.standard_normal((150, 300))
        curve = gradient_descent_curve(steps, X=X, coefficients=np.full(300, 300**-0.5), noise=1.0, lr=eta)
        tests.append(curve.test)
    theory = gradient_flow_curve([eta * t for t in steps], ratio=2, signal=1, noise=1.0)
    assert torch.allclose(torch.stack(tests).mean(0), theory.test, rtol=0.02)


def two_scales(n: int = 700):
    scales, coefficients = [1.0] * 60 + [0.03] * 20, [0.05] * 60 + [5.0] * 20
    return {"scales": scales, "coefficients": coefficients, "n": n, "noise": 4.0}


def test_two_scales_give_two_minima_and_equalized_rates_one():
    steps = [0, 1, 20, 6310, 30000]
    curve = superposition_curve(steps, lr=0.3, **two_scales())
    figures = torch.tensor([0.6, 0.554, 0.787, 0.434, 0.457], dtype=torch.float64)
    assert torch.allclose(curve.excess, figures, atol=3e-3)
    many = np.unique([0, *np.geomspace(1, 1e5, 200).astype(int)])
    turns = torch.diff(torch.sign(torch.diff(superposition_curve(many, lr=0.3, **two_scales()).test)))
    assert (turns != 0).sum() == 3  # down, up, down, up
    pace = equalizing_learning_rates(two_scales()["scales"], rate=0.01)
    equal = torch.diff(superposition_curve(many, lr=pace, **two_scales()).test)
    assert (torch.diff(torch.sign(equal[equal.abs() > 1e-12])) != 0).sum() <= 1


@given(seed=st.integers(0, 2**31), n=st.integers(6, 30), p=st.integers(1, 6), eta=st.floats(0.01, 1.9))
def test_superposition_is_exact_for_orthogonal_columns(seed, n, p, eta):
    rng = np.random.default_rng(seed)
    scales, theta = rng.uniform(0.1, 1, p), rng.standard_normal(p)
    Q = np.linalg.qr(rng.standard_normal((n, p)))[0] * math.sqrt(n) * scales
    steps = [0, 1, 2, 3, 10, 101]
    exact = gradient_descent_curve(steps, X=Q, coefficients=theta, noise=0.5, lr=eta, covariance=scales**2)
    got = superposition_curve(steps, scales=scales, coefficients=theta, n=n, noise=0.5, lr=eta)
    assert torch.allclose(got.test, exact.test, rtol=1e-8)


def test_superposition_is_too_low_by_p_over_n():
    features, gaps = two_scales(), []
    for n in (700, 5600):
        rng = np.random.default_rng(1)
        designs = [rng.standard_normal((n, 80)) * features["scales"] for _ in range(4)]
        settings_ = {"noise": 4.0, "lr": 0.3, "coefficients": features["coefficients"]}
        exact = [
            gradient_descent_curve([20], X=X, covariance=np.square(features["scales"]), **settings_).excess
            for X in designs
        ]
        theory = superposition_curve([20], lr=0.3, **two_scales(n)).excess
        gaps.append(float(torch.stack(exact).mean() / theory - 1))
    assert 0.05 < gaps[0] < 0.15
    assert 0 < gaps[1] < 0.03


@pytest.mark.parametrize(
    "call",
    [
        lambda: gradient_flow_curve([-1.0], ratio=1, signal=1, noise=1),
        lambda: gradient_flow_curve([2.0, 1.0], ratio=1, signal=1, noise=1),
        lambda: gradient_flow_curve([1.0], ratio=0, signal=1, noise=1),
        lambda: superposition_curve([1.5], lr=0.3, **two_scales()),
        lambda: superposition_curve([1], lr=2.0, **two_scales()),
        lambda: superposition_curve([1], lr=-0.1, **two_scales()),
        lambda: superposition_curve([1], lr=[0.1, 0.1], **two_scales()),
        lambda: superposition_curve([1], lr=0.3, **{**two_scales(), "n": 0}),
        lambda: superposition_curve([1], lr=0.3, **{**two_scales(), "coefficients": [1.0]}),
        lambda: equalizing_learning_rates([1.0, 0.0], rate=0.5),
        lambda: equalizing_learning_rates([1.0], rate=2.0),
        lambda: gradient_descent_weights(np.eye(2), [1.0, 1.0, 1.0], [1], lr=0.1),
        lambda: gradient_descent_weights(np.eye(2), [1.0, 1.0], [1], lr=4.0),
        lambda: gradient_descent_weights(np.eye(2), [1.0, 1.0], [1], lr=0.0),
        lambda: gradient_descent_weights(np.zeros((2, 2)), [1.0, 1.0], [1], lr=1.0),
        lambda: gradient_descent_curve([1], X=np.eye(2), coefficients=[1.0], noise=0.1, lr=0.1),
        lambda: gradient_descent_curve([1], X=np.eye(2), coefficients=[1.0, 1.0], noise=0.1, lr=0.1, covariance=[1.0]),
        lambda: gradient_descent_curve([1], X=np.ones(2), coefficients=[1.0, 1.0], noise=0.1, lr=0.1),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError):
        call()
