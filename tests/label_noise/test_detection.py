"""Tests of detect: equality with scikit-learn and simulation, ties, monotone transforms, permutation."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from kernelmem.core.errors import InputError
from kernelmem.label_noise.detection import detect
from kernelmem.statistics import auroc_interval, auroc_standard_error
from tests.profiles import examples


@st.composite
def flagged_scores(draw):
    """Scores with many ties, and flags with both values among them."""
    n = draw(st.integers(2, 60))
    score = draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n))
    flags = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda f: 0 < sum(f) < len(f)))
    return np.array(score, dtype=float), np.array(flags)


def same(a, b):
    return all(np.array_equal(np.asarray(a_), np.asarray(b_)) for a_, b_ in zip(fields(a), fields(b), strict=True))


def fields(value):
    return [getattr(value, f.name) for f in dataclasses.fields(value)]


@examples(2)
@given(flagged_scores())
def test_agrees_with_scikit_learn(case):
    score, flags = case
    found = detect(score, flags, seed=0, permutations=2)
    assert found.auroc == pytest.approx(roc_auc_score(flags, score), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision_score(flags, score), abs=1e-12)
    assert found.n_flipped == flags.sum()


@examples(1)
@given(flagged_scores())
def test_error_and_interval_are_those_of_the_statistics(case):
    found = detect(*case, seed=0, permutations=2)
    interval = auroc_interval(*case)
    assert found.auroc_se == auroc_standard_error(*case)
    assert (found.auroc, found.auroc_interval) == (interval.value, (interval.low, interval.high))


@pytest.mark.parametrize("n", [240, pytest.param(2000, marks=pytest.mark.soak)])
def test_standard_error_is_the_spread_of_fresh_samples(n):
    rng = np.random.default_rng(0)
    flags = np.arange(300) < 60
    draws = [detect(rng.normal(size=300) + 1.0 * flags, flags, seed=0, permutations=2) for _ in range(n)]
    spread = np.std([d.auroc for d in draws], ddof=1)
    claimed = math.sqrt(np.mean([d.auroc_se**2 for d in draws]))
    assert claimed == pytest.approx(spread, rel=5 / math.sqrt(2 * n))
    # the area of two unit Gaussians one apart: Phi(1 / sqrt 2)
    assert np.mean([d.auroc for d in draws]) == pytest.approx(0.76025, abs=5 * spread / math.sqrt(n))


@examples(1)
@given(flagged_scores(), st.integers(0, 2**32))
def test_row_order_and_monotone_transforms_change_nothing(case, seed):
    score, flags = case
    found = detect(score, flags, seed=0, permutations=2)
    order = np.random.default_rng(seed).permutation(len(score))
    moved = detect(score[order], flags[order], seed=0, permutations=2)
    for name in (
        "auroc",
        "auroc_se",
        "auroc_interval",
        "n_flipped",
        "ranks",
        "precision",
        "recall",
        "average_precision",
    ):
        np.testing.assert_allclose(np.asarray(getattr(moved, name)), np.asarray(getattr(found, name)), atol=1e-12)
    assert same(found, detect(np.exp(score) * 3 - 7, flags, seed=0, permutations=2))


@examples(1)
@given(flagged_scores())
def test_reversed_score_has_the_other_area(case):
    score, flags = case
    up, down = (detect(s, flags, seed=0, permutations=2) for s in (score, -score))
    assert up.auroc + down.auroc == pytest.approx(1, abs=1e-12)
    assert up.auroc_se == pytest.approx(down.auroc_se, abs=1e-12)


@examples(1)
@given(flagged_scores())
def test_precision_and_recall_average_over_the_order_of_ties(case):
    score, flags = case
    found = detect(score, flags, seed=0, permutations=2)
    ranks = found.ranks.numpy()
    assert ranks.dtype == np.int64
    assert ranks[0] == 1
    assert ranks[-1] == len(score)
    assert np.all(np.diff(ranks) > 0)
    assert flags.sum() in ranks
    for k, precision, recall in zip(ranks, found.precision.tolist(), found.recall.tolist(), strict=True):
        cut = np.sort(score)[::-1][k - 1]
        above, tied = score > cut, score == cut
        hits = flags[above].sum() + (k - above.sum()) * flags[tied].mean()
        assert precision == pytest.approx(hits / k, abs=1e-12)
        assert recall == pytest.approx(hits / flags.sum(), abs=1e-12)
    assert found.recall[-1] == 1.0
    assert bool((found.recall.diff() >= -1e-12).all())


def test_perfect_score():
    flags = np.arange(50) < 10
    found = detect(flags.astype(int), flags, seed=0)
    assert found.auroc == found.average_precision == 1.0
    assert 0.75 < found.auroc_interval[0] < 0.95
    at = found.ranks.tolist().index(10)
    assert found.precision[at] == found.recall[at] == 1.0


def test_constant_score_knows_nothing():
    flags = np.arange(37) < 10
    found = detect(np.full(37, 0.1), flags, seed=0)
    assert found.auroc == 0.5
    assert found.auroc_se == 0.0
    assert found.permuted_auroc == 0.5
    assert found.permuted_sd == 0.0
    np.testing.assert_allclose(found.precision, 10 / 37, rtol=1e-12)


def test_permuted_flags_are_the_null():
    """Mean one half, and the spread of the Mann-Whitney statistic without ties, sqrt((N + 1) / (12 m n))."""
    flags = np.arange(200) < 40
    score = np.random.default_rng(0).normal(size=200) + 5.0 * flags
    found = detect(score, flags, seed=3, permutations=1000)
    known = math.sqrt(201 / (12 * 40 * 160))
    assert found.auroc > 0.99
    assert found.permuted_auroc == pytest.approx(0.5, abs=5 * known / math.sqrt(1000))
    assert found.permuted_sd == pytest.approx(known, rel=5 / math.sqrt(2000))


def test_seed_decides_the_permutations_only():
    flags = np.arange(60) < 20
    score = np.random.default_rng(0).normal(size=60)
    a, again, other = (detect(score, flags, seed=s) for s in (1, 1, 2))
    assert same(a, again)
    assert a.permuted_auroc != other.permuted_auroc
    assert a.auroc == other.auroc


def test_takes_tensors_integers_and_zero_one_flags():
    score, flags = torch.tensor([3, 1, 2, 0], dtype=torch.float32), torch.tensor([True, False, True, False])
    found = detect(score.requires_grad_(), flags, seed=0)
    assert same(found, detect([3, 1, 2, 0], [1, 0, 1, 0], seed=0))
    assert same(found, detect(score.bfloat16(), flags.bfloat16(), seed=0))  # NumPy has no bfloat16
    assert isinstance(found.precision, torch.Tensor)
    assert found.precision.dtype == torch.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.auroc = 1.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: detect([1, 2], [True, True], seed=0), "flipped"),
        (lambda: detect([1, 2], [False, False], seed=0), "flipped"),
        (lambda: detect([], [], seed=0), "score"),
        (lambda: detect([1, 2, 3], [True, False], seed=0), "3"),
        (lambda: detect([[1, 2]], [True, False], seed=0), "shape"),
        (lambda: detect([1, float("nan")], [True, False], seed=0), "NaN"),
        (lambda: detect([1, 2], [2, 0], seed=0), "flipped"),
        (lambda: detect([1, 2], [True, False], seed=-1), "seed"),
        (lambda: detect([1, 2], [True, False], seed=0, permutations=1), "permutations"),
        (lambda: detect([1, 2], [True, False], seed=0, permutations=2.5), "permutations"),
    ],
)
def test_bad_arguments_are_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
