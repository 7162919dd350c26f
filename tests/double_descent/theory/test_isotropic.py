"""Limit curves of isotropic regression: formulas, limits, simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory import (
    isotropic_curve,
    misspecified_curve,
    optimal_ridge_curve,
    polynomial_signal_fraction,
    simulate_isotropic,
)

ratios = st.floats(0.05, 20.0)
levels = st.floats(0.01, 10.0)


def stieltjes(gamma: float, ridge: float) -> tuple[float, float]:
    """m(-λ) and m'(-λ), as the paper writes them."""
    b = 1 - gamma + ridge
    D = math.sqrt(b * b + 4 * gamma * ridge)
    slope = (b + 2 * gamma) / D
    return (D - b) / (2 * gamma * ridge), -((slope - 1) * ridge - (D - b)) / (2 * gamma * ridge**2)


@given(gamma=ratios, signal=levels, noise=levels, ridge=st.floats(0.01, 10))
def test_the_formula_of_the_paper(gamma, signal, noise, ridge):
    m, slope = stieltjes(gamma, ridge)
    expected = signal * ridge**2 * slope + noise * gamma * (m - ridge * slope)
    got = isotropic_curve([gamma], signal=signal, noise=noise, ridge=ridge)
    assert math.isclose(float(got.excess[0]), expected, rel_tol=1e-7)


@given(gamma=ratios, signal=levels, noise=levels)
def test_a_vanishing_ridge_is_no_ridge(gamma, signal, noise):
    if abs(gamma - 1) < 1e-2:
        return
    none = isotropic_curve([gamma], signal=signal, noise=noise)
    small = isotropic_curve([gamma], signal=signal, noise=noise, ridge=1e-12)
    under, over = noise * gamma / (1 - gamma), signal * (1 - 1 / gamma) + noise / (gamma - 1)
    assert math.isclose(float(none.excess[0]), under if gamma < 1 else over, rel_tol=1e-9)
    assert torch.allclose(none.test, small.test, rtol=1e-6)
    assert torch.allclose(none.train, small.train, atol=1e-6)
    assert math.isclose(float(none.train[0]), noise * max(1 - gamma, 0.0), rel_tol=1e-9, abs_tol=1e-12)


@given(gamma=ratios, signal=levels, noise=levels)
def test_a_huge_ridge_predicts_zero(gamma, signal, noise):
    curve = isotropic_curve([gamma], signal=signal, noise=noise, ridge=1e9)
    assert math.isclose(float(curve.test[0]), signal + noise, rel_tol=1e-6)
    assert math.isclose(float(curve.train[0]), signal + noise, rel_tol=1e-6)


@given(signal=levels, noise=levels)
def test_the_optimal_ridge_is_optimal_and_has_no_peak(signal, noise):
    gammas = np.geomspace(0.05, 20, 80)
    best = optimal_ridge_curve(gammas, signal=signal, noise=noise)
    assert (torch.diff(best.test) > 0).all()
    assert best.threshold is None
    for factor in (0.0, 0.5, 0.9, 1.1, 3.0):
        for i in (3, 30, 70):
            ridge = factor * noise * gammas[i] / signal
            other = isotropic_curve(gammas[[i]], signal=signal, noise=noise, ridge=ridge)
            assert other.test[0] >= best.test[i] * (1 - 1e-12)
    m, _ = stieltjes(gammas[30], noise * gammas[30] / signal)
    assert math.isclose(float(best.excess[30]), noise * gammas[30] * m, rel_tol=1e-9)


@given(gamma=ratios, signal=levels, noise=levels, scale=levels)
def test_risk_scales_with_the_targets(gamma, signal, noise, scale):
    one = isotropic_curve([gamma], signal=signal, noise=noise, ridge=0.3)
    other = isotropic_curve([gamma], signal=scale * signal, noise=scale * noise, ridge=0.3)
    assert torch.allclose(scale * one.test, other.test)
    assert torch.allclose(scale * one.train, other.train)


def test_infinite_only_at_ratio_one():
    curve = isotropic_curve([0.999, 1.0, 1.001], signal=1, noise=0.1)
    assert torch.isinf(curve.test).tolist() == [False, True, False]
    assert curve.threshold == 1.0
    assert torch.isfinite(isotropic_curve([1.0], signal=1, noise=0.1, ridge=1e-6).test).all()
    assert isotropic_curve([1.0], signal=1, noise=0.0).test[0] == 0
    assert curve.train[1] == 0
    assert not curve.exact


def test_features_with_part_of_the_signal():
    gammas = torch.tensor([0.33, 2.0, 4.0], dtype=torch.float64)
    curve = misspecified_curve(gammas, signal=1, noise=0.25, signal_fraction=gammas / 4)
    under = 0.25 + 0.9175 + 1.1675 * 0.33 / 0.67
    over = 0.25 + 0.5 + 0.5 * 0.5 + 0.75
    assert torch.allclose(curve.test, torch.tensor([under, over, 0.25 + 0.75 + 0.25 / 3], dtype=torch.float64))
    assert math.isclose(float(curve.train[0]), 1.1675 * 0.67)
    assert curve.train[1] == 0
    whole = misspecified_curve(gammas, signal=1, noise=0.25, signal_fraction=[1.0, 1.0, 1.0])
    assert torch.allclose(whole.test, isotropic_curve(gammas, signal=1, noise=0.25).test)


def test_a_second_descent_below_the_first_minimum():
    gammas = np.geomspace(0.05, 20, 400)
    share = polynomial_signal_fraction(gammas, exponent=2.0)
    test = misspecified_curve(gammas, signal=5, noise=0.02, signal_fraction=share).test
    assert (torch.diff(share) > 0).all()
    assert math.isclose(float(share[0]), 1 - 1.05**-2)
    assert test[gammas > 1].min() < test[gammas < 1].min()


def test_a_simulation_agrees_away_from_the_peak():
    for ridge in (0.0, 0.25):
        simulated = simulate_isotropic(
            [0.1, 0.5, 2, 4], n=200, signal=1, noise=0.25, ridge=ridge, repetitions=12, seed=1
        )
        assert simulated.z.abs().max() <= 3
        assert simulated.relative.abs().max() < 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: isotropic_curve([0.0, 1.0], signal=1, noise=0.1),
        lambda: isotropic_curve([-1.0], signal=1, noise=0.1),
        lambda: isotropic_curve([2.0, 1.0], signal=1, noise=0.1),
        lambda: isotropic_curve([1.0], signal=1, noise=0.1, ridge=-1e-9),
        lambda: isotropic_curve([1.0], signal=-1, noise=0.1),
        lambda: isotropic_curve([math.inf], signal=1, noise=0.1),
        lambda: optimal_ridge_curve([1.0], signal=0, noise=0.1),
        lambda: misspecified_curve([1.0], signal=1, noise=0.1, signal_fraction=[1.5]),
        lambda: misspecified_curve([1.0], signal=1, noise=0.1, signal_fraction=[0.5, 0.5]),
        lambda: polynomial_signal_fraction([1.0], exponent=0.0),
        lambda: simulate_isotropic([0.123], n=50, signal=1, noise=0.1),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError):
        call()
