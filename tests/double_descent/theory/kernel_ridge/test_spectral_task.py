"""Tasks, flipped labels, and risk estimates from training data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, KernelmemError
from kernelmem.double_descent.theory import error_bound, estimate_risk, flip_noise, pool_task, population_task
from kernelmem.label_noise.corrupt import corrupt_labels


@pytest.mark.parametrize("kind", ["symmetric", "uniform"])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_flip_noise_matches_drawn_flips(kind, n_classes):
    labels = torch.arange(n_classes).repeat(20_000 // n_classes)
    corrupted = corrupt_labels(labels, 0.3, kind, seed=0)
    noisy, law = corrupted.y, corrupted.matrix
    flips = flip_noise(0.3, n_classes, kind=kind)
    centered = torch.eye(n_classes, dtype=torch.float64) - 1 / n_classes
    mean_target = law.double() @ centered  # exactly c times the clean one
    assert torch.allclose(mean_target, flips.shrink * centered)
    variance = (law.double() @ centered.square().sum(1) - mean_target.square().sum(1)).mean()
    assert math.isclose(float(variance), flips.variance, rel_tol=1e-9)
    seen = (centered[noisy] - flips.shrink * centered[labels]).square().sum(1)
    assert abs(float(seen.mean()) - flips.variance) < 0.03


def test_no_flips_and_all_flips():
    assert flip_noise(0.0, 10).variance == 0
    assert flip_noise(0.0, 10).shrink == 1
    assert math.isclose(flip_noise(1.0, 10, kind="uniform").variance, 0.9)
    assert flip_noise(1.0, 2).shrink == -1
    assert flip_noise(1.0, 2).variance == 0
    assert math.isclose(flip_noise(0.9, 10).shrink, 0, abs_tol=1e-12)


@given(seed=st.integers(0, 2**31), n_classes=st.integers(2, 6), scale=st.floats(0.01, 3))
def test_the_error_rate_stays_below_its_bound(seed, n_classes, scale):
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=50)
    target = np.eye(n_classes)[labels] - 1 / n_classes
    outputs = target + scale * rng.standard_normal(target.shape)
    rate = (outputs.argmax(1) != labels).mean()
    assert rate <= float(error_bound(((outputs - target) ** 2).sum(1).mean())) + 1e-12


def test_the_bound_is_reached():
    target = np.array([0.5, -0.5])
    just_wrong = np.array([-1e-9, 1e-9])
    assert math.isclose(float(error_bound(((just_wrong - target) ** 2).sum())), 1, rel_tol=1e-6)
    assert error_bound([math.inf, 0.1]).tolist() == [1.0, 0.2]


@given(seed=st.integers(0, 2**31), n=st.integers(2, 12), C=st.integers(1, 3))
def test_a_pool_is_its_matrix_and_targets(seed, n, C):
    rng = np.random.default_rng(seed)
    phi, Y = rng.standard_normal((n, 5)), rng.standard_normal((n, C))
    task = pool_task(phi @ phi.T, Y)
    assert task.pool == n
    assert math.isclose(float(task.eigenvalues.sum()), (phi**2).sum(), rel_tol=1e-9)
    assert math.isclose(float(task.power.sum()), (Y**2).sum(), rel_tol=1e-9)
    reached = float(task.power @ task.eigenvalues)
    assert math.isclose(reached, np.trace(Y.T @ phi @ phi.T @ Y), rel_tol=1e-8)
    if C == 1:
        assert torch.allclose(pool_task(phi @ phi.T, Y[:, 0]).power, task.power)
    assert (task.eigenvalues >= 0).all()
    population = task.as_population()
    assert population.pool is None
    assert population.as_population() is population
    assert torch.allclose(population.eigenvalues * n, task.eigenvalues)


@given(
    seed=st.integers(0, 2**31), n=st.integers(3, 12), width=st.integers(1, 20), ridge=st.sampled_from([0.0, 1e-3, 1.0])
)
def test_estimates_by_definition(seed, n, width, ridge):
    rng = np.random.default_rng(seed)
    phi, Y = rng.standard_normal((n, width)), rng.standard_normal((n, 2))
    K = phi @ phi.T
    if ridge == 0 and abs(width - n) < 3:
        return
    got = estimate_risk(K, Y, ridge=ridge)
    positive_ridge = ridge if ridge else 1e-9
    H = K @ np.linalg.inv(K + positive_ridge * np.eye(n))
    if ridge == 0 and (np.linalg.eigvalsh(K)[-min(n, width)] < 1e-2 or (width < n and (1 - np.diag(H)).min() < 1e-2)):
        return  # the small ridge of the definition is not small there
    gcv = ((Y - H @ Y) ** 2).sum() / n / (1 - np.trace(H) / n) ** 2
    assert math.isclose(got.gcv, gcv, rel_tol=1e-3 if ridge == 0 else 1e-6)
    left_out = ((Y - H @ Y) / (1 - np.diag(H))[:, None]) ** 2
    assert math.isclose(got.leave_one_out, left_out.sum(1).mean(), rel_tol=1e-3 if ridge == 0 else 1e-6)
    se = left_out.sum(1).std(ddof=1) / math.sqrt(n)
    assert math.isclose(got.leave_one_out_se, se, rel_tol=1e-3 if ridge == 0 else 1e-6)
    assert math.isclose(got.degrees_of_freedom, np.trace(H), rel_tol=1e-6)
    assert got.n == n


@pytest.mark.parametrize(
    "call",
    [
        lambda: flip_noise(1.1, 10),
        lambda: flip_noise(-0.1, 10),
        lambda: flip_noise(0.1, 1),
        lambda: flip_noise(0.1, 10, kind="pair"),  # type: ignore[arg-type]
        lambda: error_bound(-0.1),
        lambda: error_bound(math.nan),
        lambda: pool_task(np.eye(3), np.ones(2)),
        lambda: pool_task(np.eye(3), np.ones((3, 1, 1))),
        lambda: pool_task(-np.eye(3), np.ones(3)),
        lambda: pool_task(np.ones((3, 2)), np.ones(3)),
        lambda: population_task([[1.0]], [[1.0]]),
        lambda: estimate_risk(np.eye(3), [0.0, 1.0, 2.0], ridge=-1.0),
        lambda: estimate_risk(np.array([[1.0, 2.0], [0.0, 1.0]]), [0.0, 1.0], ridge=1.0),
    ],
)
def test_refusals(call):
    with pytest.raises(KernelmemError):
        call()


def test_eigenvalues_within_rounding_are_zero():
    task = population_task([1.0, 1e-17, -1e-17], [1.0, 1.0, 1.0])
    assert task.eigenvalues.tolist() == [1.0, 0.0, 0.0]
    assert population_task([1.0, 1e-30], [1.0, 1.0]).eigenvalues[1] == 1e-30
    with pytest.raises(InputError, match="positive semidefinite"):
        population_task([1.0, -1e-3], [1.0, 1.0])
