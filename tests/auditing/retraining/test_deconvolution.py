"""Memorized share behind noisy counts: unbiased where counting estimates is not, its interval covers, power as stated."""

import numpy as np
import pytest

from kernelmem.auditing.retraining.answer import PROBABILITY, adjusted_p_values, smallest_effect
from kernelmem.auditing.retraining.deconvolution import CorrectCounts, deconvolve


def draw(rng, p_in, p_out, n_in=44, n_out=20):
    n = len(p_in)
    return CorrectCounts(rng.binomial(n_in, p_in), np.full(n, n_in), rng.binomial(n_out, p_out), np.full(n, n_out))


def population(rng, n):
    """Rows with p_in = .99 and p_out of three kinds: easy, memorized, in between."""
    p_out = np.where(rng.random(n) < 0.8, 0.97, np.where(rng.random(n) < 0.6, 0.05, 0.6))
    return np.full(n, 0.99), p_out


def test_the_share_is_near_the_truth_where_counting_is_biased():
    """Rows that models without them get right four times in five: memorization .2, but many noisy estimates above .25."""
    rng = np.random.default_rng(0)
    counts = draw(rng, np.full(400, 1.0), np.full(400, 0.8))
    counted = (counts.correct_in / counts.n_in - counts.correct_out / counts.n_out > 0.25).mean()
    result = deconvolve(counts, 0.25, repetitions=20)
    assert counted > 0.15
    assert result.fraction < 0.05
    assert result.low <= 0.02


def test_the_interval_covers():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(8):
        p_in, p_out = population(rng, 150)
        result = deconvolve(draw(rng, p_in, p_out), 0.25, repetitions=30, seed=seed)
        truth = (p_in - p_out > 0.25).mean()
        covered += result.low <= truth <= result.high
        assert abs(result.fraction - truth) < 0.08
    assert covered >= 6


def test_no_memorization_gives_zero_and_order_does_not_matter():
    rng = np.random.default_rng(2)
    p = rng.choice([0.05, 0.5, 0.95, 1.0], 300)
    counts = draw(rng, p, p)
    result = deconvolve(counts, 0.25, repetitions=10)
    assert result.fraction < 0.02
    order = rng.permutation(300)
    shuffled = CorrectCounts(*(getattr(counts, name)[order] for name in ("correct_in", "n_in", "correct_out", "n_out")))
    assert np.allclose(deconvolve(shuffled, 0.25, repetitions=2).probability, result.probability[order], atol=1e-9)


@pytest.mark.parametrize(("n", "n_in", "n_out"), [(1000, 44, 20), (200, 90, 38), (1000, 64, 64)])
def test_the_smallest_effect_is_announced_as_often_as_stated(n, n_in, n_out):
    effect = smallest_effect(n, n_in, n_out)
    assert effect is not None
    rng = np.random.default_rng(3)
    shares = []
    for e in (effect / 1.5, effect, min(1.0, 1.5 * effect)):
        counts = draw(rng, np.full(n, 1.0), np.full(n, 1 - e), n_in, n_out)
        shares.append((adjusted_p_values(counts) < 0.01).mean())
    assert shares[0] < PROBABILITY - 0.1
    assert shares[1] == pytest.approx(PROBABILITY, abs=4 * (0.16 / n) ** 0.5 + 0.02)
    assert shares[2] > PROBABILITY
    assert smallest_effect(n, 3, 2) is None
