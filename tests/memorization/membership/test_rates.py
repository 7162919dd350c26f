"""True-positive rates: expectation without information, coverage of intervals, resolution; equivalence test."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from kernelmem.core import InputError
from kernelmem.memorization.membership import equivalence_test, tpr_at_fpr
from kernelmem.memorization.membership.equivalence import auc_over_targets
from kernelmem.memorization.membership.inference import best_threshold
from kernelmem.memorization.membership.rates import members_above, roc
from kernelmem.statistics import auroc_interval
from tests.profiles import examples

LEAST = 1e-4  # probability with which a correct interval fails a coverage test


def drawn(rng, n_members, n_nonmembers, d):
    scores = np.concatenate([rng.normal(size=n_members) + d, rng.normal(size=n_nonmembers)])
    return scores, np.arange(n_members + n_nonmembers) < n_members


def assert_covers(misses, trials, level=0.95):
    assert misses <= binom.isf(LEAST, trials, 1 - level)


@examples(0.5)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 30), distinct=st.integers(1, 30))
def test_counts_are_expectations_over_orders_of_ties(seed, n, distinct):
    rng = np.random.default_rng(seed)
    scores, members = rng.integers(0, distinct, n).astype(float), np.arange(n) < max(1, n // 3)
    counts = members_above(scores, members)
    total = np.zeros(len(counts))
    for _ in range(200):
        order = np.lexsort((rng.random(n), -scores))
        flags = members[order]
        total += np.concatenate([[0], np.cumsum(flags)[~flags], [flags.sum()]])
    largest = np.sqrt(members.sum() ** 2 / 200) * 5
    assert np.abs(counts - total / 200).max() <= largest
    assert (np.diff(counts) >= 0).all()


def test_a_rate_without_information_is_the_false_positive_rate_on_average():
    """The first threshold above j of N non-members would give (j + 1) / (N + 1): 10 % too much at the resolution."""
    rng = np.random.default_rng(0)
    values = [tpr_at_fpr(*drawn(rng, 100, 1000, 0.0), 0.01).value for _ in range(225)]
    assert np.mean(values) == pytest.approx(0.01, abs=4 * np.std(values) / 15)


@pytest.mark.parametrize(("n", "fpr", "d"), [(100, 0.01, 2.0), (100, 0.1, 0.0), (1000, 0.01, 1.0)])
def test_intervals_include_the_error_of_the_threshold(n, fpr, d):
    """100 controls at 1 %: an interval for a fixed threshold is above the truth in 6 % of nulls."""
    rng, truth, trials = np.random.default_rng(n), norm.sf(norm.isf(fpr) - d), 100
    rates = [tpr_at_fpr(*drawn(rng, n, n, d), fpr) for _ in range(trials)]
    assert_covers(sum(r.low > truth for r in rates), trials, 0.975)
    assert_covers(sum(r.high < truth for r in rates), trials, 0.975)


@pytest.mark.soak
@pytest.mark.parametrize("fpr", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("n_nonmembers", [100, 1000, 10_000])
@pytest.mark.parametrize("d", [0.0, 1.0, 3.0])
def test_coverage_of_rates(fpr, n_nonmembers, d):
    rng, truth, trials = np.random.default_rng(n_nonmembers), norm.sf(norm.isf(fpr) - d), 1000
    rates = [tpr_at_fpr(*drawn(rng, 200, n_nonmembers, d), fpr) for _ in range(trials)]
    assert_covers(sum(not r.low <= truth <= r.high for r in rates), trials)


def test_rates_below_the_resolution_are_refused_with_a_reason():
    rng = np.random.default_rng(0)
    scores, members = drawn(rng, 50, 500, 1.0)
    at_1_percent, at_10_percent = roc(scores, members, (0.01, 0.1))
    assert at_1_percent.value is None
    assert "500 non-members, fewer than 10 / 0.01 = 1,000" in str(at_1_percent)
    assert at_1_percent.precision(0.1) is None
    assert at_10_percent.value > 0.1
    pooled = tpr_at_fpr(np.stack([scores] * 2), np.stack([members] * 2), 0.01)
    assert pooled.value is not None
    assert "pooled over 2 targets" in str(pooled)


def test_precision_at_a_prior():
    rate = tpr_at_fpr(np.r_[np.ones(100), np.zeros(1000)], np.arange(1100) < 50, 0.1)
    # 50 members and 50 others at the top; 0.1 is 100.1 of 1,000 non-members
    assert rate.value == 1.0
    assert rate.precision(0.5) == pytest.approx(1 / 1.1)
    assert rate.precision(0.01) == pytest.approx(0.01 / (0.01 + 0.99 * 0.1))
    with pytest.raises(InputError, match="prior"):
        rate.precision(0.0)


def test_intervals_over_targets_widen_with_differences_of_targets():
    rng = np.random.default_rng(0)
    members = np.tile(np.arange(400) < 200, (12, 1))
    scores = rng.normal(size=(12, 400)) + members
    same = tpr_at_fpr(scores, members, 0.1)
    different = tpr_at_fpr(scores + rng.normal(size=(12, 1)), members, 0.1)
    assert different.high - different.low > 1.5 * (same.high - same.low)


def test_the_threshold_of_the_best_accuracy():
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert best_threshold(scores, torch.tensor([[False, False, True, True]])) == 1.5
    assert best_threshold(torch.zeros(1, 4), torch.tensor([[False, False, True, True]])) == 0.0


def gaussian_targets(rng, K, n, d):
    members = np.tile(np.arange(n) < n // 2, (K, 1))
    return rng.normal(size=(K, n)) + d * members, members


@pytest.mark.parametrize("K", [1, 4])
def test_equivalence_is_rarely_concluded_at_the_margin(K):
    """Size: AUC 0.55 passes in at most alpha of the audits."""
    rng, trials = np.random.default_rng(K), 60
    d = np.sqrt(2) * norm.ppf(0.55)
    tests = [equivalence_test(*gaussian_targets(rng, K, 1000, d), fprs=(), alpha=0.05) for _ in range(trials)]
    assert_covers(sum(test.equivalent for test in tests), trials)


@pytest.mark.parametrize("K", [1, 4])
def test_the_stated_power_is_that_of_the_test(K):
    rng, trials = np.random.default_rng(K), 50
    null = [equivalence_test(*gaussian_targets(rng, K, 800, 0.0), fprs=(), alpha=0.05) for _ in range(trials)]
    passed = np.mean([test.equivalent for test in null])
    assert passed == pytest.approx(null[0].power, abs=0.2)
    assert np.mean([test.detected for test in null]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    d = np.sqrt(2) * norm.ppf(null[0].detectable_auc)
    noticed = [equivalence_test(*gaussian_targets(rng, K, 800, d), fprs=()).detected for _ in range(trials)]
    assert np.mean(noticed) == pytest.approx(0.8, abs=0.18)


def test_equivalence_needs_resolution_and_says_so():
    rng = np.random.default_rng(0)
    test = equivalence_test(*gaussian_targets(rng, 8, 1000, 0.0))
    assert not test.equivalent
    assert "TPR at FPR 0.001: 4,000 non-members, fewer than 10 / 0.001 = 10,000" in test.not_shown
    assert "not shown" in str(test)
    leak = equivalence_test(*gaussian_targets(rng, 8, 1000, 2.0), fprs=(0.1,))
    assert leak.detected
    assert not leak.equivalent
    shown = equivalence_test(*gaussian_targets(rng, 40, 4000, 0.0), fprs=(0.1, 0.01))
    assert shown.equivalent
    assert not shown.detected


def test_the_variance_of_dependent_targets_widens_the_interval():
    rng = np.random.default_rng(0)
    scores, members = gaussian_targets(rng, 8, 200, 0.5)
    one, two = (equivalence_test(scores, members, fprs=(), variance_factor=f).auc for f in (1.0, 4.0))
    assert two.high - two.value == pytest.approx(2 * (one.high - one.value))


def test_targets_with_equal_areas_have_the_interval_over_rows():
    members = np.arange(40) < 20
    separated = auc_over_targets(np.stack([members * 1.0] * 5), np.stack([members] * 5), 0.95)
    over_rows = auroc_interval(members * 1.0, members)
    assert (separated.value, separated.low, separated.high) == (1, over_rows.low, 1)
    assert over_rows.low < 0.95
    constant = auc_over_targets(np.ones((5, 40)), np.stack([members] * 5), 0.95)
    assert (constant.low, constant.high) == (0.5, 0.5)


def test_junk_is_refused_by_name():
    with pytest.raises(InputError, match="members"):
        tpr_at_fpr([1.0, 2.0], [True, True], 0.1)
    with pytest.raises(InputError, match="same shape"):
        tpr_at_fpr([1.0, 2.0], [True], 0.1)
    with pytest.raises(InputError, match="fpr"):
        tpr_at_fpr([1.0, 2.0], [True, False], 1.5)
