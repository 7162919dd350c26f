"""Tests of the one-run bound: exact sums, known mechanisms, coverage under the null, choices that are not allowed."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from kernelmem.core import InputError
from kernelmem.memorization.canaries import PrivacyBound, one_run_bound
from kernelmem.memorization.canaries.one_run import _epsilon, _n_correct, p_value
from tests.profiles import examples


def randomized_response(m, epsilon, rng):
    """Scores are the fair coins, each reported truly with probability e^ε / (1 + e^ε)."""
    coins = rng.random(m) < 0.5
    true = rng.random(m) < 1 / (1 + math.exp(-epsilon))
    return np.where(true, coins, ~coins).astype(float), coins


def exact_p_value(m, r, v, odds, delta):
    """The formula by sums over all outcomes in rational numbers; odds = e^ε."""
    q = Fraction(odds) / (1 + Fraction(odds))
    weights = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    excess = max((sum(weights[v - i : v]) / i for i in range(1, v + 1)), default=Fraction(0))
    return min(Fraction(1), sum(weights[v:], Fraction(0)) + 2 * m * Fraction(delta) * excess)


@examples(2)
@given(st.data())
def test_p_value_is_the_sum_over_outcomes(data):
    m = data.draw(st.integers(1, 12))
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(0, r))
    odds, delta = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([0.0, 2.0**-12, 2.0**-5]))
    exact = float(exact_p_value(m, r, v, odds, delta))
    # binomial weights of SciPy are accurate to some 1e-14
    assert p_value(m, r, v, math.log(odds), delta) == pytest.approx(exact, rel=1e-11, abs=1e-14)


@examples(1)
@given(st.integers(1, 300), st.data(), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_bound_is_where_the_p_value_crosses(r, data, delta):
    v = data.draw(st.integers(0, r))
    m = r + data.draw(st.integers(0, 100))
    found = _epsilon(m, r, v, delta, 0.05)
    assert found >= 0
    if found > 0:
        assert p_value(m, r, v, found, delta) == pytest.approx(0.05, abs=1e-6)
        for smaller in np.linspace(0, found * (1 - 1e-6), 20):
            assert p_value(m, r, v, float(smaller), delta) < 0.05
    else:
        assert p_value(m, r, v, 0.0, delta) >= 0.05
    assert found <= _epsilon(m, r, v, 0.0, 0.05)
    assert found <= _epsilon(m, r, r, delta, 0.05)


@pytest.mark.parametrize("r", [10, 100])
def test_ceiling_in_closed_form(r):
    """All guesses are correct with probability q^r under ε = log(q / (1 − q))."""
    coins = np.arange(200) % 2 == 0
    found = one_run_bound(coins, coins, guesses=r)
    q = 0.05 ** (1 / r)
    assert found.epsilon == found.ceiling == pytest.approx(math.log(q / (1 - q)), rel=1e-9)
    assert found.counts == {"canaries": 200, "guesses": r, "correct": r}


@examples(1)
@given(st.integers(1, 60), st.floats(0.0, 4.0), st.sampled_from([0.001, 0.01, 0.1]))
def test_theorem_holds_for_a_mechanism_that_uses_its_delta(m, epsilon, delta):
    """Each coin is revealed with probability δ, otherwise randomized: (ε, δ)-private, with more correct guesses."""
    accuracy = delta + (1 - delta) / (1 + math.exp(-epsilon))
    for v in range(m + 1):
        assert binom.sf(v - 1, m, accuracy) <= p_value(m, m, v, epsilon, delta) + 1e-12


def share_above(epsilon, m, runs, seed, **options):
    rng = np.random.default_rng(seed)
    found = [one_run_bound(*randomized_response(m, epsilon, rng), seed=i, **options).epsilon for i in range(runs)]
    return np.mean(np.array(found) > epsilon), np.median(found)


def at_most(level, runs):
    """Upper end of what a share of ``level`` gives in so many runs (three binomial errors)."""
    return level + 3 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("guesses", [200, "split"])
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_bound_is_above_the_true_value_in_few_runs(epsilon, guesses):
    assert share_above(epsilon, 200, 100, seed=0, guesses=guesses)[0] <= at_most(0.05, 100)


@pytest.mark.soak
@pytest.mark.parametrize("guesses", [1000, 100, "split"])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
def test_bound_is_above_the_true_value_in_few_of_many_runs(epsilon, guesses):
    assert share_above(epsilon, 1000, 500, seed=1, guesses=guesses)[0] <= at_most(0.05, 500)


@pytest.mark.parametrize("guesses", [10_000, "split"])
def test_bound_has_power(guesses):
    assert share_above(1.0, 10_000, 10, seed=2, guesses=guesses)[1] >= 0.8


def gaussian(m, seed):
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    return rng.normal(size=m) + 2 * coins, coins


def test_gaussian_mechanism_with_delta():
    """Sensitivity 1 and noise 1/2: δ(ε) = Φ(1 − ε/2) − e^ε Φ(−1 − ε/2) (Balle and Wang 2018)."""
    epsilon = 10.0
    delta = norm.cdf(1 - epsilon / 2) - math.exp(epsilon) * norm.cdf(-1 - epsilon / 2)
    found = [one_run_bound(*gaussian(1000, seed), delta=delta, guesses=100).epsilon for seed in range(40)]
    assert np.mean(np.array(found) > epsilon) <= at_most(0.05, 40)
    assert np.median(found) > 1
    without = [one_run_bound(*gaussian(1000, seed), guesses=100).epsilon for seed in range(40)]
    assert (np.array(found) <= without).all()


def test_constant_scores_and_row_order_say_nothing():
    """Rows that were included come first: no order of tied rows may count as a guess."""
    included = np.arange(400) < 200
    for guesses in (400, 100, "split"):
        found = one_run_bound(np.full(400, 0.3), included, guesses=guesses)
        assert (found.epsilon, found.counts["correct"]) == (0.0, 0)
    almost = np.zeros(400)
    almost[7] = 1.0
    for coins in (included, ~included):
        above = [one_run_bound(almost, coins, guesses=100, seed=seed).epsilon > 0 for seed in range(60)]
        assert np.mean(above) <= at_most(0.05, 60)


@examples(1)
@given(st.integers(4, 60), st.integers(0, 2**32))
def test_invariances(m, seed):
    rng = np.random.default_rng(seed)
    scores, coins = rng.permutation(m).astype(float), np.arange(m) % 2 == 0
    found = one_run_bound(scores, coins, guesses=m // 2)
    order = rng.permutation(m)
    moved = one_run_bound(torch.from_numpy(np.exp(scores[order] / m)), coins[order], guesses=m // 2, seed=1)
    assert moved.counts == found.counts
    assert moved.epsilon == found.epsilon
    assert found.epsilon <= found.ceiling
    swapped = one_run_bound(-scores, ~coins, guesses=2 * (m // 4) or 2)
    assert swapped.epsilon == one_run_bound(scores, coins, guesses=2 * (m // 4) or 2).epsilon


def test_the_best_of_many_numbers_of_guesses_is_not_a_bound():
    """What "split" avoids: the maximum over numbers of guesses is above 0 in far more than 5 % of null runs."""
    rng = np.random.default_rng(0)
    numbers = range(5, 101, 5)
    critical = {r: binom.isf(0.05, r, 0.5) for r in numbers}  # more correct guesses have p < 0.05 at ε = 0
    coins = rng.random((200, 100)) < 0.5  # in the order of scores that say nothing
    wins = [any(_n_correct(own, r) > critical[r] for r in numbers) for own in coins]
    assert np.mean(wins) > 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200)


def test_a_result_is_saved_and_printed(tmp_path):
    found = one_run_bound(*gaussian(200, 0), delta=1e-6, guesses=100)
    read = PrivacyBound.load(found.save(tmp_path / "bound.safetensors"))
    assert str(read) == str(found)
    assert str(found).startswith("privacy loss of at least")
    assert found.to_frame().guesses.iloc[0] == 100
    assert "not evidence of privacy" in str(one_run_bound([1.0] * 8, [True, False] * 4))


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (([1, 2, 3], [1, 0, 1]), {}, "m >= 4"),
        (([1] * 4, [1, 0, 1]), {}, "shape"),
        (([1] * 4, [1, 0, 1, 2]), {}, "other than 0 and 1"),
        (([1, 2, 3, math.nan], [1, 0, 1, 0]), {}, "NaN"),
        ((np.arange(100), np.arange(100) < 10), {}, "fair coin"),
        (([1] * 4, [1, 0, 1, 0]), {"guesses": 5}, "guesses=5"),
        (([1] * 4, [1, 0, 1, 0]), {"guesses": 0}, "guesses=0"),
        (([1] * 4, [1, 0, 1, 0]), {"guesses": "best"}, "chosen in advance"),
        (([1] * 4, [1, 0, 1, 0]), {"guesses": None}, "chosen in advance"),
        (([1] * 4, [1, 0, 1, 0]), {"delta": 1}, "delta=1"),
        (([1] * 4, [1, 0, 1, 0]), {"delta": -0.1}, "delta"),
        (([1] * 4, [1, 0, 1, 0]), {"level": 0.5}, "level=0.5"),
        (([1] * 4, [1, 0, 1, 0]), {"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, says):
    with pytest.raises(InputError, match=says):
        one_run_bound(*arguments, **options)
