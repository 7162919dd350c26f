"""Tests of the weighted choice of ridges, also for kernels with negative eigenvalues."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.kernel_machines.model_selection import gcv
from kernelmem.kernel_machines.model_selection.gcv import choose_weighted_ridge
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge
from kernelmem.kernel_machines.solvers.solution import Code
from kernelmem.kernel_machines.solvers.solve import solve
from kernelmem.testing.kernels import gaussian_kernel
from tests.profiles import examples

RNG = np.random.default_rng(0)
N = 25
X = RNG.standard_normal((N, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1) + 0.1 * RNG.standard_normal((N, 2))
CRITERIA = ["loo", "gcv"]


def squared_distances(A, B=None):
    """−|x − x'|²: positive on zero-sum vectors, one negative eigenvalue, zero diagonal."""
    B = A if B is None else B
    return -np.square(A[:, None] - B).sum(2)


def shifted(size=1.5):
    """A kernel less a constant: one eigenvalue well below zero, none on zero-sum vectors."""
    K = gaussian_kernel(X)
    return K - size * K.mean()


def choose(K, criterion, y=Y, weights=None):
    weights = np.ones(len(K)) if weights is None else weights
    return choose_weighted_ridge(K, torch.as_tensor(y), torch.as_tensor(weights), criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("K", [squared_distances(X), shifted(), shifted(40.0)], ids=["distances", "less", "far less"])
def test_only_ridges_that_outweigh_a_conditionally_positive_kernel_count(criterion, K):
    smallest = np.linalg.eigvalsh(K)[0]
    assert smallest < -0.1
    found = choose(K, criterion)
    counted = torch.isfinite(found.errors)
    assert (counted == (found.grid > -2 * smallest)).all()
    assert 0 < int(counted.sum()) < len(found.grid)
    assert found.ridge > -2 * smallest
    assert found.index == int(found.errors.argmin())
    machine = KernelMachineRegressor(kernel="precomputed", ridge=criterion).fit(K, Y)
    assert machine.ridge_ == found.ridge == machine.ridge_choice_.ridge
    assert np.allclose(machine.dual_coef_, np.linalg.solve(K + found.ridge * np.eye(N), Y), atol=1e-12)


@pytest.mark.parametrize("K", [squared_distances(X), shifted()], ids=["distances", "less"])
@pytest.mark.parametrize("weights", [None, RNG.integers(0, 4, N).astype(float)])
def test_the_left_out_error_of_a_conditionally_positive_kernel_is_that_of_literal_refits(K, weights):
    w = np.ones(N) if weights is None else weights
    found = choose(K, "loo", weights=weights)
    for index in (found.index, len(found.grid) - 1):
        ridge, total = float(found.grid[index]), 0.0
        for i in range(N):
            rest = w.copy()
            rest[i] = max(0.0, rest[i] - 1)
            a = solve(K, Y, ridge, sample_weight=rest).require().coefficients.numpy()
            total += w[i] * np.square(K[i] @ a - Y[i]).sum()
        assert float(found.errors[index]) == pytest.approx(total / w.sum() / 2, rel=1e-8)


def test_generalized_cross_validation_of_a_conditionally_positive_kernel_is_its_definition():
    K = shifted()
    found = choose(K, "gcv")
    for index in (found.index, 45, 50):
        H = K @ np.linalg.inv(K + float(found.grid[index]) * np.eye(N))
        want = np.square(Y - H @ Y).mean() / (1 - np.trace(H) / N) ** 2
        assert float(found.errors[index]) == pytest.approx(want, rel=1e-9)


def test_the_scale_of_the_ridges_is_blind_to_a_constant_that_makes_the_kernel_negative():
    weights = RNG.integers(1, 4, N).astype(float)
    for w in (np.ones(N), weights):
        here, there = (choose(shifted(size), "gcv", weights=w).grid for size in (1.5, 40.0))
        assert torch.allclose(here, there, rtol=1e-9)
        centering = np.eye(N) - np.outer(np.ones(N), w) / w.sum()
        centered = centering @ gaussian_kernel(X) @ centering.T
        assert float(here[36]) == pytest.approx(float(w @ np.diag(centered) / w.sum()), rel=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_doubled_weight_is_a_row_given_twice(criterion):
    K, twice = shifted(), np.concatenate([np.arange(N), np.arange(5)])
    weighted = choose(K, criterion, weights=1.0 + (np.arange(N) < 5))
    repeated = choose(K[np.ix_(twice, twice)], criterion, Y[twice])
    assert torch.allclose(weighted.grid, repeated.grid, rtol=1e-9)
    assert weighted.index == repeated.index
    assert torch.allclose(weighted.errors, repeated.errors, rtol=1e-7)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_integers_that_were_positive_before_truncation_are_taken_and_the_same_real_numbers_are_not(criterion):
    K = (100 * gaussian_kernel(X, gamma=0.05)).astype(int)
    smallest = np.linalg.eigvalsh(K)[0]
    assert -N < smallest < -0.1
    found = choose(K, criterion)
    assert (torch.isfinite(found.errors) == (found.grid > -2 * smallest)).all()
    assert float(found.grid[36]) == pytest.approx(np.diag(K).mean(), rel=1e-12)
    machine = KernelMachineRegressor(kernel="precomputed", ridge=criterion).fit(K, Y)
    assert machine.solution_.code is Code.solved
    assert machine.ridge_ == found.ridge
    with pytest.raises(NumericalError, match="negative eigenvalues"):
        choose(K.astype(float), criterion)


@examples(0.5)
@given(st.integers(0, 1000), st.sampled_from(CRITERIA), st.floats(1e-3, 0.5))
def test_an_indefinite_kernel_is_never_answered(seed, criterion, share):
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    values = np.concatenate([rng.uniform(0.1, 1.0, 10), [-share, -share]])  # two: one at least not along the ones
    K = (V * values) @ V.T
    K = (K + K.T) / 2
    for make, y in ((KernelMachineRegressor, rng.standard_normal(12)), (KernelMachineClassifier, np.arange(12) % 2)):
        with pytest.raises(NumericalError, match="negative eigenvalues"):
            make(kernel="precomputed", ridge=criterion).fit(K, y)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_negative_eigenvalues_larger_than_every_ridge_raise(criterion):
    K = 1e-3 * gaussian_kernel(X) - 10.0
    with pytest.raises(NumericalError, match="positive definite"):
        choose(K, criterion)


def test_without_negative_eigenvalues_it_is_choose_ridge():
    K = gaussian_kernel(X)
    found, want = choose(K, "loo"), choose_ridge(K, Y)
    assert found.index == want.index
    assert torch.allclose(found.errors[10:], want.errors[10:], rtol=1e-7)
    error = leave_one_out(K, Y, found.ridge).errors.square().mean()
    assert float(found.errors[found.index]) == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_targets_that_are_all_alike_are_targets(criterion):
    y = np.tile([1.0, 0.0], (N, 1))
    assert KernelMachineRegressor(ridge=criterion).fit(X, y).predict(X).shape == (N, 2)


def test_rounding_of_float32_leaves_the_smallest_ridges_out(monkeypatch):
    monkeypatch.setattr(gcv, "diagnose", None)  # rounding needs no diagnosis
    phi = RNG.standard_normal((N, 4)).astype(np.float32)
    K = phi @ phi.T
    smallest = np.linalg.eigvalsh(K.astype(float))[0]
    assert smallest < 0
    found = choose(K, "loo")
    assert torch.isinf(found.errors[found.grid <= -smallest]).all()
    assert torch.isfinite(found.errors[found.grid > -1.1 * smallest + 1e-12]).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_too_little_to_choose_from_is_refused(criterion):
    with pytest.raises(InputError, match="at least two rows"):
        choose(np.ones((1, 1)), criterion, Y[:1])
    with pytest.raises(InputError, match="at least two rows"):
        choose(np.eye(4), criterion, Y[:4], np.array([0.0, 0, 0, 2]))
    with pytest.raises(InputError, match="mean diagonal"):
        choose(np.zeros((4, 4)), criterion, Y[:4])
