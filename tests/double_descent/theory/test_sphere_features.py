"""Random features on a sphere: reference values, the equations of the paper, limits, simulation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory import (
    ActivationMoments,
    activation_moments,
    simulate_sphere_features,
    sphere_features_curve,
)
from kernelmem.double_descent.theory.sphere_features import RELU

ratios = st.floats(0.2, 10.0)


def chi_of_the_paper(psi1: float, psi2: float, zeta2: float, ridge: float) -> float:
    """The two coupled equations, iterated with damping; without a ridge the closed form."""
    if ridge == 0:
        b = min(psi1, psi2) * zeta2 - zeta2 - 1
        return -(math.sqrt(b * b + 4 * zeta2 * min(psi1, psi2)) + b) / (2 * zeta2)
    u = math.sqrt(psi1 * psi2 * ridge)
    v1, v2 = psi1 / (u + 1), psi2 / (u + 1)
    for _ in range(3000):
        shared = zeta2 / (1 + zeta2 * v1 * v2)
        v1, v2 = (v1 + psi1 / (u + v2 + shared * v2)) / 2, (v2 + psi2 / (u + v1 + shared * v1)) / 2
    return -v1 * v2


def risk_of_the_paper(psi1, psi2, linear, nonlinear, noise, ridge, moments=RELU):
    z = moments.linear / moments.rest
    x = chi_of_the_paper(psi1, psi2, z * z, ridge / moments.rest**2)
    E0 = (
        -(x**5) * z**6 + 3 * x**4 * z**4 + (psi1 * psi2 - psi2 - psi1 + 1) * x**3 * z**6 - 2 * x**3 * z**4
        - 3 * x**3 * z**2 + (psi1 + psi2 - 3 * psi1 * psi2 + 1) * x**2 * z**4 + 2 * x**2 * z**2 + x**2
        + 3 * psi1 * psi2 * x * z**2 - psi1 * psi2
    )  # fmt: skip
    E1 = psi2 * x**3 * z**4 - psi2 * x**2 * z**2 + psi1 * psi2 * x * z**2 - psi1 * psi2
    E2 = (
        x**5 * z**6 - 3 * x**4 * z**4 + (psi1 - 1) * x**3 * z**6 + 2 * x**3 * z**4 + 3 * x**3 * z**2
        + (-psi1 - 1) * x**2 * z**4 - 2 * x**2 * z**2 - x**2
    )  # fmt: skip
    return linear * E1 / E0 + (noise + nonlinear) * E2 / E0 + nonlinear


@given(psi1=ratios, psi2=ratios, ridge=st.floats(0.01, 2), noise=st.floats(0, 1), nonlinear=st.floats(0, 1))
def test_the_equations_of_the_paper(psi1, psi2, ridge, noise, nonlinear):
    for delta in (0.0, ridge):
        if delta == 0 and abs(psi1 - psi2) < 0.02:
            continue
        expected = risk_of_the_paper(psi1, psi2, 0.7, nonlinear, noise, delta)
        curve = sphere_features_curve(
            [psi1], samples_per_dimension=psi2, linear=0.7, nonlinear=nonlinear, noise=noise, ridge=delta
        )
        assert math.isclose(float(curve.excess[0]), expected, rel_tol=1e-5, abs_tol=1e-9)


def test_reference_values():
    curve = sphere_features_curve([0.5, 1, 2, 2.7, 4, 6, 12], samples_per_dimension=3, linear=1, noise=0.2)
    figures = torch.tensor([0.850, 0.772, 1.085, 3.43, 1.13, 0.437, 0.2072], dtype=torch.float64)
    assert torch.allclose(curve.excess, figures, rtol=4e-3)
    ridge = sphere_features_curve([2, 6, 12], samples_per_dimension=3, linear=1, noise=0.2, ridge=0.01)
    assert torch.allclose(ridge.excess, torch.tensor([0.564, 0.260, 0.1725], dtype=torch.float64), rtol=2e-3)


@given(psi1=ratios, psi2=ratios, noise=st.floats(0, 1), nonlinear=st.floats(0, 1))
def test_limits_of_the_ridge(psi1, psi2, noise, nonlinear):
    setting = {"samples_per_dimension": psi2, "linear": 1.0, "noise": noise, "nonlinear": nonlinear}
    huge = sphere_features_curve([psi1], ridge=1e9, **setting)
    assert math.isclose(float(huge.test[0]), 1 + noise + nonlinear, rel_tol=1e-5)
    if abs(psi1 - psi2) > 0.1:
        none, small = sphere_features_curve([psi1], **setting), sphere_features_curve([psi1], ridge=1e-9, **setting)
        assert torch.allclose(none.test, small.test, rtol=max(1e-4, 5e-5 / (psi1 - psi2) ** 2))


def test_infinite_only_at_the_threshold():
    curve = sphere_features_curve([2.99, 3.0, 3.01], samples_per_dimension=3, linear=1, noise=0.1)
    assert torch.isinf(curve.test).tolist() == [False, True, False]
    assert curve.threshold == 3
    assert torch.isfinite(
        sphere_features_curve([3.0], samples_per_dimension=3, linear=1, noise=0.1, ridge=1e-8).test
    ).all()


def test_moments_of_activations():
    got = activation_moments(lambda g: np.maximum(g, 0))
    for name in ("mean", "linear", "rest"):
        assert math.isclose(getattr(got, name), getattr(RELU, name), rel_tol=1e-11)
    late = activation_moments(lambda g: np.maximum(g - 1, 0), kinks=(1.0,))
    tail = 0.5 * math.erfc(1 / math.sqrt(2))
    assert math.isclose(late.linear, tail, rel_tol=1e-10)
    assert math.isclose(late.mean, math.exp(-0.5) / math.sqrt(2 * math.pi) - tail, rel_tol=1e-10)
    cube = activation_moments(lambda g: g**3)
    assert math.isclose(cube.linear, 3, rel_tol=1e-11)
    assert math.isclose(cube.rest, math.sqrt(6), rel_tol=1e-10)


def test_a_simulation_agrees():
    simulated = simulate_sphere_features(
        [0.5, 1, 2, 5, 12], samples_per_dimension=3, dimension=60, noise=0.2, repetitions=10, seed=3
    )
    assert simulated.z.abs().max() <= 3
    ridge = simulate_sphere_features(
        [1, 3, 6], samples_per_dimension=3, dimension=60, noise=0.2, ridge=0.1, repetitions=10, seed=3
    )
    assert ridge.z.abs().max() <= 3
    other = sphere_features_curve([1, 3, 6], samples_per_dimension=3, linear=1, noise=0.2, ridge=0.3)
    assert ((other.test - ridge.mean) / ridge.se).abs().max() > 4


@pytest.mark.parametrize(
    "call",
    [
        lambda: sphere_features_curve([1.0], samples_per_dimension=0, linear=1, noise=0.1),
        lambda: sphere_features_curve([0.0], samples_per_dimension=1, linear=1, noise=0.1),
        lambda: sphere_features_curve([1.0], samples_per_dimension=1, linear=1, noise=0.1, ridge=-1),
        lambda: sphere_features_curve([1.0], samples_per_dimension=1, linear=1, noise=0.1, nonlinear=-1),
        lambda: activation_moments(lambda g: 2 * g + 1),
        lambda: activation_moments(lambda g: g**2),
        lambda: activation_moments(lambda g: g * np.inf),
        lambda: simulate_sphere_features([0.51], samples_per_dimension=1, dimension=10, noise=0.1),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError), np.errstate(all="ignore"):
        call()


def test_other_activations_peak_at_the_same_threshold():
    erf = ActivationMoments(0.0, 0.7, 0.2)
    curve = sphere_features_curve([1, 2.9, 3.1, 9], samples_per_dimension=3, linear=1, noise=0.2, moments=erf)
    assert curve.test.argmax() in (1, 2)
    assert not torch.allclose(
        curve.test, sphere_features_curve([1, 2.9, 3.1, 9], samples_per_dimension=3, linear=1, noise=0.2).test
    )
