"""Laws of intervals of proportions, their differences and means: coverage, binomial tails at the ends, SciPy's results."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from kernelmem.core import InputError
from kernelmem.statistics import clopper_pearson, mean_interval, proportion_difference
from tests.profiles import examples

LEVELS = st.floats(0.5, 0.999)


@examples(1)
@given(st.integers(1, 200), st.data(), LEVELS)
def test_ends_are_where_a_binomial_tail_is_half_the_error(n, data, level):
    k = data.draw(st.integers(0, n))
    found = clopper_pearson(k, n, level=level)
    tail = (1 - level) / 2
    assert found.value == k / n
    assert found.level == level
    assert 0 <= found.low <= found.value <= found.high <= 1
    # beta quantiles are exact to about 1e-12; the tails change by at most n per unit of p
    if k > 0:
        assert stats.binom.sf(k - 1, n, found.low) == pytest.approx(tail, abs=1e-9)
    if k < n:
        assert stats.binom.cdf(k, n, found.high) == pytest.approx(tail, abs=1e-9)


@examples(0.5)
@given(st.integers(1, 30), st.floats(0, 1))
def test_covers_every_proportion(n, p):
    """The exact probability of coverage, by a sum over all outcomes."""
    intervals = [clopper_pearson(k, n) for k in range(n + 1)]
    weights = stats.binom.pmf(np.arange(n + 1), n, p)
    covered = sum(w for w, i in zip(weights, intervals, strict=True) if i.low <= p <= i.high)
    assert covered >= 0.95 - 1e-9


@examples(1)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), LEVELS)
def test_mean_interval_is_scipys(values, level):
    x = np.array(values)
    assume(x.std() > 1e-3)
    found = mean_interval(x, level=level)
    low, high = stats.t.interval(level, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    scale = np.abs(x).max()
    np.testing.assert_allclose(
        [found.low, found.value, found.high], [low, x.mean(), high], rtol=1e-10, atol=1e-12 * scale
    )


def test_mean_interval_covers_with_few_values():
    """Three Gaussian values: 95 %, where ± 1.96 standard errors covers 81 %."""
    x = np.random.default_rng(0).normal(size=(2000, 3))
    found = [mean_interval(row) for row in x]
    covered = np.mean([i.low <= 0 <= i.high for i in found])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / len(x)))


def test_takes_tensors_of_either_type():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float32)
    assert mean_interval(values) == mean_interval([1, 2, 4])
    assert str(mean_interval(values, level=0.5)) == "2.333 (1.613 to 3.053)"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clopper_pearson(3, 2), "successes=3"),
        (lambda: clopper_pearson(-1, 2), "successes"),
        (lambda: clopper_pearson(0, 0), "trials=0"),
        (lambda: clopper_pearson(1.5, 2), "successes"),
        (lambda: clopper_pearson(1, 2, level=1.0), "level=1"),
        (lambda: clopper_pearson(1, 2, level=0), "level=0"),
        (lambda: clopper_pearson(1, 2, level=95), "level=95"),
        (lambda: mean_interval([1.0]), "two"),
        (lambda: mean_interval([]), "two"),
        (lambda: mean_interval([[1.0, 2.0]]), "shape"),
        (lambda: mean_interval([1.0, math.nan]), "NaN"),
    ],
)
def test_bad_arguments_are_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090), ((10, 10, 0, 10), 0.6075, 1.0)],
)
def test_intervals_of_differences_are_the_published_ones(counts, low, high):
    """Newcombe 1998, table II, method 10."""
    found = proportion_difference(*counts)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@examples(1)
@given(st.integers(1, 50), st.integers(1, 50), st.data(), LEVELS)
def test_exchanged_proportions_exchange_the_ends(n, m, data, level):
    k, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    a, b = proportion_difference(k, n, j, m, level=level), proportion_difference(j, m, k, n, level=level)
    assert -1 <= a.low <= a.value <= a.high <= 1
    assert (a.value, a.low, a.high) == pytest.approx((-b.value, -b.high, -b.low), abs=1e-15)


@pytest.mark.parametrize(("p", "q"), [(0.02, 0.02), (0.3, 0.3), (0.5, 0.1), (0.9, 0.02)])
def test_intervals_of_differences_cover(p, q):
    """The exact probability, by a sum over all outcomes of 16 and 40 trials; the smallest of all pairs is about 0.91."""
    n, m = 16, 40
    intervals = [[proportion_difference(k, n, j, m) for j in range(m + 1)] for k in range(n + 1)]
    weights = np.outer(stats.binom.pmf(np.arange(n + 1), n, p), stats.binom.pmf(np.arange(m + 1), m, q))
    covered = np.array([[interval.low <= p - q <= interval.high for interval in row] for row in intervals])
    assert weights[covered].sum() >= 0.93
