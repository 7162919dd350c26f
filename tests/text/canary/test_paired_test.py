"""Paired tests: known counts and bounds, ties, nulls of permuted coins."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

import kernelmem as km
from kernelmem.text.canary import PairedTest, canaries, exposure, paired_test
from tests.profiles import examples
from tests.text.canary.tables import encode, memory_lm, table_lm


def scores_of(design, difference):
    """Scores whose difference, inserted minus twin, is given."""
    scores = torch.zeros(len(design), 2, dtype=torch.float64)
    scores[torch.arange(len(design)), design.inserted] = torch.as_tensor(difference, dtype=torch.float64)
    return scores


@pytest.mark.parametrize(("r", "ceiling"), [(8, 0.79), (16, 1.58), (40, 2.55), (80, 3.27), (160, 3.97)])
def test_ceilings_are_those_of_correct_pairs(r, ceiling):
    design = canaries(r, encode, tiers=(1,))
    test = paired_test(scores_of(design, torch.ones(r)), design, permutations=99)
    assert round(test.epsilon, 2) == ceiling
    assert test.epsilon == test.all_pairs.ceiling == test.tiers[0].epsilon
    assert math.isclose(test.all_pairs.p, 0.5**r, rel_tol=1e-9)
    assert test.permutation_p == 0.01
    assert test.epsilon_add_remove == test.epsilon / 2


@examples(1)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=1, max_size=40), st.integers(0, 2**32))
def test_counts_p_values_and_bounds(difference, seed):
    design = canaries(len(difference), encode, tiers=(1, 2), seed=seed)
    test = paired_test(scores_of(design, difference), design, permutations=19, seed=seed)
    assert test.difference.tolist() == difference
    for count in (test.all_pairs, *test.tiers):
        own = [d for d, k in zip(difference, design.repetitions.tolist(), strict=True) if count.repetitions in (0, k)]
        right, ties = sum(d > 0 for d in own), own.count(0.0)
        r = len(own) - ties
        assert (count.n_pairs, count.n_ties, count.n_right) == (len(own), ties, right)
        assert math.isclose(count.p, binom.sf(right - 1, r, 0.5) if r else 1.0, rel_tol=1e-9)
        assert 0 <= count.epsilon <= count.ceiling
        if count.epsilon > 0:  # Binomial(r, e^E / (1 + e^E)) has as many correct pairs with probability .05
            accuracy = 1 / (1 + math.exp(-count.epsilon))
            assert math.isclose(binom.sf(right - 1, r, accuracy), 0.05, rel_tol=1e-6)
        assert (count.epsilon > 0) == (r >= 4 and count.p < 0.05)


def test_the_permutation_p_value_is_that_of_all_signs():
    design = canaries(8, encode, tiers=(1,))
    difference = torch.tensor([3.0, 1.0, -0.5, 2.0, 0.25, -1.0, 4.0, 0.125], dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 8)
    exact = float((signs @ difference >= difference.sum()).double().mean())
    test = paired_test(scores_of(design, difference), design, permutations=20_000)
    assert abs(test.permutation_p - exact) < 5 * math.sqrt(exact / 20_000)


def test_constant_scores_show_nothing():
    design = canaries(40, encode)
    for value in (0.0, 0.1, -1e130):
        test = paired_test(torch.full((40, 2), value, dtype=torch.float64), design)
        assert (test.permutation_p, test.all_pairs.p, test.epsilon, test.all_pairs.ceiling) == (1.0, 1.0, 0.0, 0.0)
        assert "not evidence of privacy" in str(test)


def test_equal_differences_of_either_sign_are_ties_of_the_permutation_test():
    """0.1 + 0.2 - 0.3 is not 0 in floating point: sums that differ by rounding count against memorization."""
    design = canaries(3, encode, tiers=(1,))
    test = paired_test(scores_of(design, [0.1, 0.2, -0.3]), design, permutations=2000)
    exact = sum(a * 1 + b * 2 - c * 3 >= 0 for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)) / 8
    assert abs(test.permutation_p - exact) < 5 * math.sqrt(exact / 2000)


def refuted(runs, first, r=40):
    """Number of runs with a bound above 0, and p-values, if the coins are drawn again for the same scores."""
    design = canaries(r, encode, tiers=(1, 2))
    scores = torch.from_numpy(np.random.default_rng(7).normal(size=(r, 2)))
    above, p_values = 0, []
    for seed in range(first, first + runs):
        coins = torch.from_numpy(np.random.default_rng(seed).integers(2, size=r))
        test = paired_test(scores, dataclasses.replace(design, inserted=coins), permutations=39, seed=seed)
        above += test.epsilon > 0
        p_values.append(test.permutation_p)
    return above, np.array(p_values)


def test_permuted_coins_seldom_give_a_bound():
    above, p_values = refuted(200, 0)
    assert binom.sf(above - 1, 200, 0.05) > 1e-3
    assert binom.sf((p_values <= 0.1).sum() - 1, 200, 0.1) > 1e-3


@pytest.mark.soak
def test_many_permuted_coins_give_a_bound_in_at_most_5_percent():
    above, p_values = refuted(2000, 10_000)
    assert above <= 0.05 * 2000
    for x in (0.025, 0.05, 0.1, 0.25, 0.5):
        assert binom.sf((p_values <= x).sum() - 1, 2000, x) > 1e-3


def test_exposures_are_scores():
    design = canaries(12, encode, length=2, tiers=(1, 4))
    test = paired_test(exposure(memory_lm(design, range(12)), design), design)
    assert test.all_pairs.n_right == 12
    assert test.epsilon_per_row == test.epsilon / 8
    null = paired_test(exposure(table_lm(scale=2.0), design), design)
    assert null.all_pairs.p > 1e-3
    other = canaries(12, encode, length=2, tiers=(1, 4), seed=1)
    with pytest.raises(km.InputError, match="exposures of these canaries"):
        paired_test(exposure(memory_lm(design, []), design), other)


def test_results_are_saved_and_tabulated(tmp_path):
    design = canaries(10, encode)
    test = paired_test(scores_of(design, torch.arange(10.0)), design)
    assert str(PairedTest.load(test.save(tmp_path / "test"))) == str(test)
    assert test.to_frame()["repetitions"].tolist() == [1, 2, 4, 8, 16, 0]


def test_other_scores_are_refused():
    design = canaries(4, encode)
    for scores in (torch.zeros(4), torch.zeros(2, 4), torch.full((4, 2), torch.nan), "scores"):
        with pytest.raises(km.InputError):
            paired_test(scores, design)
    with pytest.raises(km.InputError, match="above"):
        paired_test(torch.zeros(4, 2), design, level=0.4)
