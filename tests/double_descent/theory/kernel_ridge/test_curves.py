"""The eigenframework: literal formulas, conservation, limits, pools, random features, simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory import (
    FlipNoise,
    SpectralTask,
    feature_curve,
    isotropic_curve,
    learnabilities,
    learning_curve,
    population_task,
    ridge_curve,
    simulate_features,
    simulate_learning,
    sphere_features_curve,
)

levels = st.floats(0.01, 3.0)


@st.composite
def tasks(draw, pool=False):
    """Power-law or stepwise spectra and random targets; for a pool, matrices of N examples."""
    size = draw(st.integers(12, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = np.arange(1.0, size + 1) ** -draw(st.floats(0.0, 2.5)) * rng.uniform(0.5, 2, size)
    power = rng.exponential(size=size) * np.arange(1.0, size + 1) ** -draw(st.floats(0, 2))
    return SpectralTask(torch.from_numpy(values), torch.from_numpy(power), size if pool else None)


def root(function) -> float:
    return math.exp(brentq(lambda u: function(math.exp(u)), -60, 40, xtol=1e-14, rtol=1e-14))


def eigenlearning(task: SpectralTask, n: int, ridge: float, noise: float) -> tuple[float, float]:
    """Test and train risk as the papers write them."""
    lam, v2 = task.eigenvalues.numpy(), task.power.numpy()
    kappa = root(lambda k: (lam / (lam + k)).sum() + ridge / k - n)
    L = lam / (lam + kappa)
    test = n / (n - (L**2).sum()) * (((1 - L) ** 2 * v2).sum() + noise)
    return test, (ridge / (n * kappa)) ** 2 * test


def random_features(task: SpectralTask, n: int, k: int, ridge: float, noise: float) -> tuple[float, float]:
    lam, v2 = task.eigenvalues.numpy(), task.power.numpy()

    def parts(gamma: float) -> tuple[float, float]:
        z = (lam / (lam + gamma)).sum()
        return z, gamma * (1 - z / k)

    gamma = root(lambda g: 1e9 if parts(g)[1] <= 0 else min(parts(g)[0] + ridge / parts(g)[1] - n, 1e9))
    (z, kappa), q = parts(gamma), ((lam / (lam + gamma)) ** 2).sum()
    first = 1 / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    second = ((gamma / (lam + gamma) - kappa * lam / (lam + gamma) ** 2 * k / (k - q)) * v2).sum() + noise
    return first * second, (ridge / (n * kappa)) ** 2 * first * second


def from_pool(task: SpectralTask, n: int, ridge: float, noise: float, k: float = math.inf) -> tuple[float, float]:
    """The pool equations, with the squared resolvents of k random features by differences of the resolvent."""
    a, y2, N = task.eigenvalues.numpy(), task.power.numpy(), task.pool

    def mu_at(g: float) -> float:
        return g * (1 - (a / (a + g)).sum() / k)

    def trace(g: float, weights: np.ndarray) -> float:
        return g / mu_at(g) * (weights / (a + g)).sum()

    def slope(g: float, weights: np.ndarray) -> float:
        def difference(function):
            near, far = (function(g + d) - function(g - d) for d in (1e-4 * g, 2e-4 * g))
            return 8 * near - far

        return -difference(lambda at: trace(at, weights)) / difference(mu_at)

    def equation(g: float) -> float:
        mu = mu_at(g)
        return 1e9 if mu <= 0 else min((N - n) - (mu - ridge) * trace(g, one), 1e9)

    one = np.ones(N)
    gamma = root(equation)
    mu, T, T2, S2 = mu_at(gamma), trace(gamma, one), slope(gamma, one), slope(gamma, y2)
    squares = N - 2 * mu * T + mu**2 * T2
    den = T - (mu - ridge) * T2
    extra, pace = (mu - ridge) * squares / den, T / den
    everywhere = (mu**2 + extra) * S2 + noise * (squares + extra * T2)
    on_rows = ridge**2 * pace * S2 + noise * (n - 2 * ridge * T + ridge**2 * pace * T2)
    return (everywhere - on_rows) / (N - n) + noise, ridge**2 * pace * (S2 + noise * T2) / n


@given(task=tasks(), n=st.integers(1, 200), ridge=levels, noise=levels)
def test_kernel_ridge_as_the_papers_write_it(task, n, ridge, noise):
    curve = learning_curve(task, [n], ridge=ridge, noise=noise)
    test, train = eigenlearning(task, n, ridge, noise)
    assert math.isclose(float(curve.test[0]), test, rel_tol=1e-9)
    assert math.isclose(float(curve.train[0]), train, rel_tol=1e-8)
    assert math.isclose(float(curve.clean[0]), test - noise, rel_tol=1e-6, abs_tol=1e-9)


@given(task=tasks(), n=st.integers(1, 100), k=st.integers(2, 100), ridge=levels, noise=levels)
def test_random_features_as_the_papers_write_it(task, n, k, ridge, noise):
    curve = feature_curve(task, [k], n=n, ridge=ridge, noise=noise)
    test, train = random_features(task, n, k, ridge, noise)
    assert math.isclose(float(curve.test[0]), test, rel_tol=1e-7)
    assert math.isclose(float(curve.train[0]), train, rel_tol=1e-6)


@given(task=tasks(pool=True), share=st.floats(0.05, 0.9), ridge=levels, noise=levels)
def test_pool_equations(task, share, ridge, noise):
    n = max(1, round(share * task.pool))
    curve = learning_curve(task, [n], ridge=ridge, noise=noise)
    test, train = from_pool(task, n, ridge, noise)
    assert math.isclose(float(curve.test[0]), test, rel_tol=1e-6)
    assert math.isclose(float(curve.train[0]), train, rel_tol=1e-6)


@given(task=tasks(pool=True), share=st.floats(0.1, 0.9), k=st.integers(3, 150), ridge=levels, noise=levels)
def test_pool_equations_of_random_features(task, share, k, ridge, noise):
    n = max(1, round(share * task.pool))
    curve = feature_curve(task, [k], n=n, ridge=ridge, noise=noise)
    test, train = from_pool(task, n, ridge, noise, k)
    assert math.isclose(float(curve.test[0]), test, rel_tol=1e-4)
    assert math.isclose(float(curve.train[0]), train, rel_tol=1e-4)


@given(task=tasks(), pool=st.booleans(), n=st.integers(1, 11), ridge=st.floats(0, 3))
def test_conservation_of_learnability(task, pool, n, ridge):
    task = replace(task, pool=len(task.power)) if pool else task
    L = learnabilities(task, [n], ridge=ridge)
    total = float(L.sum())
    assert ((L >= 0) & (L <= 1)).all()
    assert total <= n * (1 + 1e-12)
    assert math.isclose(float(learnabilities(task, [n]).sum()), n, rel_tol=1e-9)
    if ridge > 0.01:
        assert total < n


@given(task=tasks(), pool=st.booleans(), n=st.integers(1, 100), k=st.integers(1, 90))
def test_a_vanishing_ridge_is_no_ridge(task, pool, n, k):
    size = len(task.power)
    task, n = (replace(task, pool=size), min(n, size - 1)) if pool else (task, n)
    if abs(min(k, size) - n) < 2:
        return
    none = feature_curve(task, [k], n=n, noise=0.3)
    ridge = 1e-17 if k == size else 1e-11  # with as many features as eigenvalues the error falls only as √ridge
    small = feature_curve(task, [k], n=n, ridge=ridge * float(task.eigenvalues.sum()), noise=0.3)
    assert torch.allclose(none.test, small.test, rtol=1e-4)
    assert torch.allclose(none.train, small.train, rtol=1e-4, atol=1e-8)
    assert (none.train[0] == 0) == (min(k, size) > n)


def test_training_errors_of_tiny_ridges_keep_their_digits():
    values = np.arange(1.0, 61) ** -1.5
    for task in (population_task(values, values), SpectralTask(torch.from_numpy(values), torch.from_numpy(values), 60)):
        for k in (20, 45, math.inf):
            trains = [learning_curve(task, [30], ridge=d, noise=0.3, n_features=k).train[0] for d in (1e-8, 1e-15)]
            if k > 30:
                assert math.isclose(float(trains[0]), 1e14 * float(trains[1]), rel_tol=1e-4)
            else:
                exact = learning_curve(task, [30], noise=0.3, n_features=k).train[0]
                assert torch.allclose(trains[1], exact, rtol=1e-9)


@given(task=tasks(), pool=st.booleans(), n=st.integers(1, 11), ridge=st.floats(0, 3))
def test_many_features_are_the_kernel(task, pool, n, ridge):
    task = replace(task, pool=len(task.power)) if pool else task
    many = feature_curve(task, [10**10], n=n, ridge=ridge, noise=0.3)
    kernel = learning_curve(task, [n], ridge=ridge, noise=0.3)
    assert torch.allclose(many.test, kernel.test, rtol=1e-6)
    assert torch.allclose(many.train, kernel.train, rtol=1e-5)
    assert torch.allclose(learning_curve(task, [n], ridge=ridge, noise=0.3, n_features=10**10).test, kernel.test)


@given(task=tasks(), n=st.integers(1, 11), ridge=st.floats(0, 3), k=st.integers(14, 60))
def test_a_large_pool_is_a_population(task, n, ridge, k):
    N = 100_000
    values = torch.cat([N * task.eigenvalues, torch.zeros(N - len(task.power))])
    pool = SpectralTask(values, torch.cat([N * task.power, torch.zeros(N - len(task.power))]), N)
    for features in (math.inf, k):
        large = learning_curve(pool, [n], ridge=ridge, noise=0.3, n_features=features)
        limit = learning_curve(task, [n], ridge=ridge, noise=0.3, n_features=features)
        assert torch.allclose(large.test, limit.test, rtol=2e-3)
        assert torch.allclose(large.train, limit.train, rtol=5e-3)
        flips = FlipNoise(0.6, 0.3)
        large, limit = (
            learning_curve(each, [n], ridge=ridge, noise=flips, n_features=features) for each in (pool, task)
        )
        assert torch.allclose(large.clean, limit.clean, rtol=2e-3)
        # The pool's own spectrum taken for the population's: the same equations as the task's.
        plain = learning_curve(pool.as_population(), [n], ridge=ridge, noise=0.3, n_features=features)
        assert torch.allclose(
            plain.excess, learning_curve(task, [n], ridge=ridge, noise=0.3, n_features=features).excess
        )


@given(task=tasks(), pool=st.booleans(), scale=st.floats(1e-6, 1e6), ridge=st.floats(0.0, 3), k=st.integers(2, 40))
def test_scales_of_kernel_and_targets(task, pool, scale, ridge, k):
    task = replace(task, pool=len(task.power)) if pool else task
    one = feature_curve(task, [k], n=7, ridge=ridge, noise=0.3)
    kernel = replace(task, eigenvalues=scale * task.eigenvalues)
    assert torch.allclose(feature_curve(kernel, [k], n=7, ridge=scale * ridge, noise=0.3).test, one.test)
    targets = replace(task, power=scale * task.power)
    other = feature_curve(targets, [k], n=7, ridge=ridge, noise=scale * 0.3)
    assert torch.allclose(other.test, scale * one.test)
    assert torch.allclose(other.train, scale * one.train)


@given(gamma_n=st.integers(1, 200), n=st.integers(1, 100), ridge=levels, signal=levels, noise=levels)
def test_equal_eigenvalues_are_the_isotropic_model(gamma_n, n, ridge, signal, noise):
    task = population_task([1.0] * gamma_n, [signal / gamma_n] * gamma_n)
    for delta in (0.0, ridge):
        here = learning_curve(task, [n], ridge=n * delta, noise=noise)
        there = isotropic_curve([gamma_n / n], signal=signal, noise=noise, ridge=delta)
        assert torch.allclose(here.test, there.test, rtol=1e-8)
        assert torch.allclose(here.train, there.train, rtol=1e-7, atol=1e-12)


@given(N=st.integers(3, 40), share=st.floats(0.1, 0.9), a=levels, ridge=st.floats(0, 3), noise=levels)
def test_an_orthogonal_pool_learns_nothing_about_other_examples(N, share, a, ridge, noise):
    n = min(max(1, round(share * N)), N - 1)
    power = np.random.default_rng(N).exponential(size=N)
    curve = learning_curve(
        SpectralTask(torch.full((N,), a).double(), torch.from_numpy(power), N), [n], ridge=ridge, noise=noise
    )
    assert math.isclose(float(curve.test[0]), power.mean() + noise, rel_tol=1e-8)
    flips = FlipNoise(0.6, noise)
    flipped = learning_curve(
        SpectralTask(torch.full((N,), a).double(), torch.from_numpy(power), N), [n], ridge=ridge, noise=flips
    )
    assert math.isclose(float(flipped.test[0]), 0.36 * power.mean() + noise, rel_tol=1e-8)
    assert math.isclose(float(flipped.clean[0]), power.mean(), rel_tol=1e-7)
    train = (ridge / (a + ridge)) ** 2 * (power.mean() + noise)
    assert math.isclose(float(curve.train[0]), train, rel_tol=1e-7, abs_tol=1e-12)


def test_infinite_only_at_the_threshold():
    values = np.arange(1.0, 81) ** -1.5
    for task in (population_task(values, values), SpectralTask(torch.from_numpy(values), torch.from_numpy(values), 80)):
        width = feature_curve(task, [29, 30, 31], n=30, noise=0.1)
        assert torch.isinf(width.test).tolist() == [False, True, False]
        assert width.threshold == 30
        assert width.train[1] == 0
        assert width.train[0] > 0 == width.train[2]
        rows = learning_curve(task, [29, 30, 31], n_features=30, noise=0.1)
        assert torch.isinf(rows.test).tolist() == [False, True, False]
        assert rows.threshold == 30
        assert torch.isfinite(feature_curve(task, [30], n=30, noise=0.1, ridge=1e-6).test).all()
    few = population_task([1.0, 0.5, 0.0], [1.0, 1.0, 0.0])
    curve = learning_curve(few, [1, 2, 4], noise=0.1)
    assert torch.isinf(curve.test).tolist() == [False, True, False]
    assert curve.threshold == 2
    assert math.isclose(float(curve.test[2]), 0.2)
    assert math.isclose(float(curve.train[2]), 0.1 * 0.5)
    clean = learning_curve(few, [1, 2, 4], noise=0.0)
    assert clean.test[1:].tolist() == [0.0, 0.0]
    assert feature_curve(few, [2, 3], n=4, noise=0.1).test.tolist() == pytest.approx([0.2, 0.2])


def test_targets_outside_the_range_of_the_kernel_are_never_learned():
    task = population_task([1.0, 0.0], [1.0, 3.0])
    assert math.isclose(float(learning_curve(task, [100], noise=0.5).excess[0]), 3.0 + 3.5 / 99)


def test_a_good_ridge_removes_the_peak():
    values = np.arange(1.0, 301) ** -1.2
    task = population_task(values, values)
    widths = [10, 20, 40, 60, 80, 90, 110, 130, 200, 400, 1600]
    raw = feature_curve(task, widths, n=100, noise=0.5)
    assert raw.test.argmax() in (5, 6)
    ridges = np.geomspace(1e-4, 10, 60)
    best = [ridge_curve(task, ridges, n=100, noise=0.5, n_features=k).test.min() for k in widths]
    assert (np.diff(np.array(best)) < 0).all()
    more = [ridge_curve(task, ridges, n=n, noise=0.5).test.min() for n in (20, 50, 100, 200, 300, 400)]
    assert (np.diff(np.array(more)) < 0).all()
    assert (
        ridge_curve(task, [0.0, 0.3], n=100, noise=0.5).test[1]
        == learning_curve(task, [100], ridge=0.3, noise=0.5).test[0]
    )


def test_sphere_features_are_a_special_case():
    d, bulk = 400, 40_000
    linear, rest = 0.25, 0.25 - 1 / (2 * math.pi)
    values = np.concatenate([np.full(d, linear / d), np.full(bulk, rest / bulk)])
    task = population_task(values, np.concatenate([np.full(d, 1 / d), np.zeros(bulk)]))
    for ridge in (0.0, 0.05):
        here = feature_curve(task, [200, 800, 2400, 4800], n=1200, ridge=3 * ridge, noise=0.2)
        there = sphere_features_curve([0.5, 2, 6, 12], samples_per_dimension=3, linear=1, noise=0.2, ridge=ridge)
        assert torch.allclose(here.test, there.test, rtol=0.02)


def flips_by_hand(task: SpectralTask, n: int, ridge: float, flips: FlipNoise) -> tuple[float, float]:
    shrunk = replace(task, power=flips.shrink**2 * task.power)
    noisy = float(learning_curve(task=shrunk, samples=[n], ridge=ridge, noise=flips.variance).test[0])
    L = learnabilities(task, [n], ridge=ridge)[0]
    lost = 1 - flips.shrink
    total, cross = float(task.power.sum()), float((task.power * (1 - L)).sum())
    return noisy, noisy - flips.variance + lost**2 * total + 2 * lost * flips.shrink * cross


@given(task=tasks(), n=st.integers(1, 40), ridge=levels, shrink=st.floats(0, 1), variance=levels)
def test_flipped_labels(task, n, ridge, shrink, variance):
    flips = FlipNoise(shrink, variance)
    curve = learning_curve(task, [n], ridge=ridge, noise=flips)
    test, clean = flips_by_hand(task, n, ridge, flips)
    assert math.isclose(float(curve.test[0]), test, rel_tol=1e-9)
    assert math.isclose(float(curve.clean[0]), clean, rel_tol=1e-9)
    assert curve.noise == variance


def pool_of(size: int, alpha: float = 1.5) -> SpectralTask:
    rank = np.arange(1.0, size + 1)
    return SpectralTask(torch.from_numpy(size * rank**-alpha), torch.from_numpy(size * rank**-1.2), size)


def test_simulations_of_gaussian_designs_agree():
    rank = np.arange(1.0, 301)
    task = population_task(rank**-1.5, rank**-1.2)
    for ridge in (0.0, 0.3):
        simulated = simulate_learning(task, [50, 150], ridge=ridge, noise=0.3, repetitions=24, seed=3)
        assert simulated.z.abs().max() <= 3
    simulated = simulate_features(task, [20, 60, 180, 500], n=100, ridge=0.05, noise=0.3, repetitions=24, seed=3)
    assert simulated.z.abs().max() <= 3
    ridgeless = simulate_features(task, [20, 60, 180, 500], n=100, noise=0.3, repetitions=24, seed=8)
    assert ridgeless.z.abs().max() <= 3


def test_simulations_of_rotated_pools_agree_and_population_equations_do_not():
    task = pool_of(240)
    simulated = simulate_learning(task, [40, 120, 200], ridge=0.1, noise=0.3, repetitions=24, seed=5)
    assert simulated.z.abs().max() <= 3
    plain = learning_curve(task.as_population(), [40, 120, 200], ridge=0.1, noise=0.3)
    assert ((simulated.mean - plain.test) / simulated.se)[1:].min() > 5
    widths = [20, 50, 90, 120, 300, 1200]
    for ridge in (0.0, 0.1):
        simulated = simulate_features(task, widths, n=70, ridge=ridge, noise=0.3, repetitions=24, seed=6)
        assert simulated.z.abs().max() <= 3
        plain = feature_curve(task.as_population(), widths, n=70, ridge=ridge, noise=0.3)
        assert ((simulated.mean - plain.test) / simulated.se)[-2:].min() > 5


@pytest.mark.parametrize(
    "call",
    [
        lambda: learning_curve(pool_of(20), [20]),
        lambda: learnabilities(pool_of(20), [25]),
        lambda: learning_curve(pool_of(20), [0, 5]),
        lambda: learning_curve(pool_of(20), [5, 4]),
        lambda: learning_curve(pool_of(20), [5], ridge=-0.1),
        lambda: learning_curve(pool_of(20), [5], noise=-0.1),
        lambda: learning_curve(pool_of(20), [5], n_features=0),
        lambda: learning_curve(pool_of(20), [5], n_features=2.5),
        lambda: feature_curve(pool_of(20), [5], n=0),
        lambda: ridge_curve(pool_of(20), [0.1, 0.1], n=5),
        lambda: ridge_curve(pool_of(20), [-0.1, 0.1], n=5),
        lambda: population_task([1.0, -0.1], [1.0, 1.0]),
        lambda: population_task([1.0], [1.0, 1.0]),
        lambda: population_task([1.0, math.nan], [1.0, 1.0]),
        lambda: population_task([], []),
    ],
)
def test_refusals(call):
    with pytest.raises(InputError):
        call()
