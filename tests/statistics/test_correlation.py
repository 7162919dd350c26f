"""Tests of rank correlation, reliability and attenuation: agreement with SciPy, coverage, a latent-variable model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from kernelmem.core import InputError
from kernelmem.statistics import attenuation_corrected, spearman, spearman_brown, spearman_interval
from tests.profiles import examples

PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=4, max_size=40)


@examples(1)
@given(PAIRS)
def test_spearman_is_scipys_and_symmetric(pairs):
    a, b = np.array(pairs, dtype=float).T
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    r = spearman(a, b)
    assert r == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert r == pytest.approx(spearman(b, a), abs=1e-12)
    assert r == pytest.approx(-spearman(-a, np.exp(b)), abs=1e-12)
    assert spearman(a, a) == pytest.approx(1.0, abs=1e-12)
    found = spearman_interval(torch.from_numpy(a), b)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def covered(n, rho, draws, seed):
    """Share of intervals with the rank correlation 6 / π asin(ρ / 2) of two Gaussian variables."""
    rng = np.random.default_rng(seed)
    truth = 6 / math.pi * math.asin(rho / 2)
    count = 0
    for _ in range(draws):
        a = rng.normal(size=n)
        found = spearman_interval(a, rho * a + math.sqrt(1 - rho**2) * rng.normal(size=n))
        count += found.low <= truth <= found.high
    return count / draws


def test_interval_covers():
    assert covered(20, 0.8, 400, seed=0) >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 400)


@pytest.mark.soak
@pytest.mark.parametrize("n", [10, 50, 500])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_interval_covers_in_many_draws(n, rho):
    assert covered(n, rho, 5000, seed=1) >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 5000)


@examples(1)
@given(st.floats(0.01, 1.0), st.floats(1.0, 50.0), st.floats(1.0, 50.0))
def test_spearman_brown_composes(r, first, second):
    """k times as many, then l times as many, is k l times as many; the reliability of one is r."""
    twice = spearman_brown(spearman_brown(r, factor=first), factor=second)
    assert twice == pytest.approx(spearman_brown(r, factor=first * second), rel=1e-10)
    assert spearman_brown(r, factor=1) == pytest.approx(r, rel=1e-12)
    assert spearman_brown(-r) == 0.0


def test_corrections_recover_the_correlation_without_noise():
    """Score a and truth b have correlation .6; both are measured twice with noise."""
    rng = np.random.default_rng(0)
    n = 100_000
    a = rng.normal(size=n)
    b = 0.6 * a + 0.8 * rng.normal(size=n)
    halves = [b + rng.normal(size=n) for _ in range(2)]
    reliability = spearman_brown(float(np.corrcoef(*halves)[0, 1]))
    assert reliability == pytest.approx(2 / 3, abs=0.01)  # variance 1 of the truth, 1/2 of the noise of the mean
    measured = float(np.corrcoef(a, np.mean(halves, 0))[0, 1])
    assert attenuation_corrected(measured, reliability) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: spearman([1, 2], [1, 2, 3]), "shape"),
        (lambda: spearman([1], [1]), "n >= 2"),
        (lambda: spearman([1, 1], [1, 2]), "a with 2 equal values"),
        (lambda: spearman([1, 2], [0.5, 0.5]), "b with 2 equal values"),
        (lambda: spearman([1, math.inf], [1, 2]), "infinite"),
        (lambda: spearman_interval([1, 2, 3], [1, 3, 2]), "at least 4"),
        (lambda: spearman_brown(1.5), "r=1.5"),
        (lambda: spearman_brown(0.5, factor=0), "factor=0"),
        (lambda: attenuation_corrected(0.5, 0.0), "reliability_a=0"),
        (lambda: attenuation_corrected(0.5, 0.5, 1.2), "reliability_b=1.2"),
    ],
)
def test_bad_arguments_are_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
