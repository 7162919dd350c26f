"""Tests of the split bound: known mechanisms, null coverage, and the two uncorrected bounds that it replaces."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm

from kernelmem.core import InputError
from kernelmem.memorization.canaries import PrivacyBound, split_bound
from tests.profiles import examples


def response(n, epsilon, rng):
    """Scores of n trainings with and n without the record, under randomized response."""
    q = 1 / (1 + math.exp(-epsilon))
    return (rng.random(n) < q).astype(float), (rng.random(n) >= q).astype(float)


def bounds(epsilon, n, runs, seed):
    rng = np.random.default_rng(seed)
    return np.array([split_bound(*response(n, epsilon, rng), seed=i).epsilon for i in range(runs)])


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_bound_is_above_the_true_value_in_few_runs(epsilon):
    assert (bounds(epsilon, 100, 100, seed=0) > epsilon).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


@pytest.mark.soak
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
def test_bound_is_above_the_true_value_in_few_of_many_runs(epsilon):
    assert (bounds(epsilon, 500, 500, seed=1) > epsilon).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


def test_bound_has_power():
    assert np.median(bounds(1.0, 5000, 10, seed=2)) >= 0.8


def test_a_separating_score_reaches_the_ceiling():
    """25 of 25 and 0 of 25 in the second half: log(α^(1/n) / (1 − α^(1/n))) with α = 0.025."""
    found = split_bound(np.ones(50), np.zeros(50))
    share = 0.025 ** (1 / 25)
    assert found.epsilon == found.ceiling == pytest.approx(math.log(share / (1 - share)), rel=1e-9)
    assert found.counts == {"in": 25, "in_at_or_above_threshold": 25, "out": 25, "out_at_or_above_threshold": 0}
    assert split_bound(np.zeros(50), np.ones(50)).epsilon == 0


def test_both_inequalities_are_used():
    """A record that only lowers the score of trainings without it: the evidence is in the true negatives."""
    rng = np.random.default_rng(0)
    without = np.where(rng.random(4000) < 0.3, -5.0, 0.0)
    found = split_bound(np.zeros(4000), without)
    share = found.counts["out"] - found.counts["out_at_or_above_threshold"]
    low = beta.ppf(0.025, share, found.counts["out"] - share + 1)
    assert found.epsilon == pytest.approx(math.log(low / (1 - 0.025 ** (1 / found.counts["in"]))), rel=1e-9)
    assert found.epsilon > 4


def test_gaussian_mechanism_with_delta():
    """Sensitivity 1 and noise 1: δ(ε) = Φ(1/2 − ε) − e^ε Φ(−1/2 − ε) (Balle and Wang 2018)."""
    rng = np.random.default_rng(0)
    for epsilon in (1.0, 2.0):
        delta = norm.cdf(0.5 - epsilon) - math.exp(epsilon) * norm.cdf(-0.5 - epsilon)
        found = [split_bound(rng.normal(size=1000) + 1, rng.normal(size=1000), delta=delta).epsilon for _ in range(20)]
        assert np.mean(np.array(found) > epsilon) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20)
        assert np.median(found) > 0.2


def naive_maximum(in_scores, out_scores, tail):
    """The bound of one threshold, maximized over all thresholds of the same scores; tail None: without intervals."""
    best, n = 0.0, len(in_scores)
    for threshold in np.unique(np.concatenate([in_scores, out_scores])):
        hits, errors = int((in_scores >= threshold).sum()), int((out_scores >= threshold).sum())
        if tail is None:
            best = max(best, math.log(hits / errors) if hits and errors else 0.0)
        elif hits and errors < n:
            ends = beta.ppf(tail, hits, n - hits + 1), beta.isf(tail, errors + 1, n - errors)
            best = max(best, math.log(ends[0] / ends[1]))
    return best


def test_uncorrected_bounds_claim_leakage_where_there_is_none():
    """Traps: a maximum over thresholds with intervals at 20 % per end, and estimates without any interval."""
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=60), rng.normal(size=60)) for _ in range(30)]
    own = np.array([split_bound(*draw, seed=i).epsilon for i, draw in enumerate(draws)])
    assert (own > 0).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 30)
    assert np.mean([naive_maximum(*draw, 0.2) > 0 for draw in draws]) > 0.3
    assert np.median([naive_maximum(*draw, None) for draw in draws]) > 0.5


@examples(1)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 2**32))
def test_invariances(a, b, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, a).astype(float), rng.integers(0, 5, b).astype(float)
    found = split_bound(x, y)
    moved = split_bound(torch.from_numpy(x).float() * 2 - 3, y * 2 - 3)
    assert moved.epsilon == found.epsilon
    assert 0 <= found.epsilon <= found.ceiling
    assert split_bound(x, y, delta=0.1).epsilon <= split_bound(x, y, delta=0.0).epsilon + 1e-12
    assert split_bound(np.full(a, 0.3), np.full(b, 0.3)).epsilon == 0


def test_a_result_is_saved_and_printed(tmp_path):
    found = split_bound(np.arange(20.0), np.arange(20.0) - 30)
    assert str(PrivacyBound.load(found.save(tmp_path / "bound.safetensors"))) == str(found)
    assert "split sample: in 10" in str(found)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (([1, 2, 3], [1, 2, 3, 4]), {}, "in_scores"),
        (([1, 2, 3, 4], [[1, 2, 3, 4]]), {}, "out_scores"),
        (([1, 2, 3, math.nan], [1, 2, 3, 4]), {}, "NaN"),
        (([1, 2, 3, 4], [1, 2, 3, 4]), {"level": 0.4}, "level"),
        (([1, 2, 3, 4], [1, 2, 3, 4]), {"delta": 2}, "delta"),
        (([1, 2, 3, 4], [1, 2, 3, 4]), {"seed": 0.5}, "seed"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, says):
    with pytest.raises(InputError, match=says):
        split_bound(*arguments, **options)
