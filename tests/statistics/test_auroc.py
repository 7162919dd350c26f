"""Tests of the AUROC: equality with scikit-learn, DeLong's table, symmetries, coverage of the interval."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm, t
from sklearn.metrics import roc_auc_score

from kernelmem.core import InputError
from kernelmem.statistics import auroc, auroc_interval, auroc_standard_error
from tests.profiles import examples


@st.composite
def flagged_scores(draw):
    """Scores with many ties, and flags with both values among them."""
    n = draw(st.integers(2, 60))
    scores = draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n))
    flags = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda f: 0 < sum(f) < len(f)))
    return np.array(scores, dtype=float), np.array(flags)


def slow_delong(scores, flags):
    """DeLong's standard error from the m x n table of comparisons."""
    table = (scores[flags][:, None] > scores[~flags][None]) + 0.5 * (scores[flags][:, None] == scores[~flags][None])
    m, n = table.shape
    return math.sqrt(table.mean(1).var(ddof=1) / m + table.mean(0).var(ddof=1) / n)


@examples(2)
@given(flagged_scores())
def test_agrees_with_scikit_learn_and_the_table(case):
    scores, flags = case
    area = auroc(scores, flags)
    assert area == pytest.approx(roc_auc_score(flags, scores), abs=1e-12)
    error = auroc_standard_error(scores, flags)
    if 2 <= flags.sum() <= len(flags) - 2:
        assert error == pytest.approx(slow_delong(scores, flags), abs=1e-12)
    else:
        assert error == pytest.approx(math.sqrt(area * (1 - area)), abs=1e-12)


@examples(2)
@given(flagged_scores(), st.integers(0, 2**32))
def test_symmetries(case, seed):
    """Row order and monotone transforms change nothing; reversing scores or swapping flags reflects the interval."""
    scores, flags = case
    found = auroc_interval(scores, flags)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found.value == auroc(scores, flags)
    order = np.random.default_rng(seed).permutation(len(scores))
    for moved in (auroc_interval(scores[order], flags[order]), auroc_interval(np.exp(scores) * 3 - 7, flags)):
        assert [moved.low, moved.value, moved.high] == pytest.approx([found.low, found.value, found.high], abs=1e-9)
    for reversed_ in (auroc_interval(-scores, flags), auroc_interval(scores, ~flags)):
        ends = [1 - reversed_.high, 1 - reversed_.value, 1 - reversed_.low]
        assert ends == pytest.approx([found.low, found.value, found.high], abs=1e-9)


@examples(1)
@given(flagged_scores())
def test_interval_contains_that_of_delong_on_the_logit_scale(case):
    scores, flags = case
    m, n = int(flags.sum()), int((~flags).sum())
    found = auroc_interval(scores, flags)
    assume(min(m, n) >= 2 and 0 < found.value < 1)
    pairs = scores[flags][:, None] - scores[~flags][None]
    table = (pairs > 0) + 0.5 * (pairs == 0)
    parts = np.array([table.mean(1).var(ddof=1) / m, table.mean(0).var(ddof=1) / n])
    assume(parts.sum() > 0)
    freedom = parts.sum() ** 2 / (parts**2 / [m - 1, n - 1]).sum()
    half_width = t.ppf(0.975, freedom) * math.sqrt(parts.sum()) / (found.value * (1 - found.value))
    ends = expit(math.log(found.value / (1 - found.value)) + np.array([-half_width, half_width]))
    assert found.low <= ends[0] + 1e-9
    assert found.high >= ends[1] - 1e-9


@examples(1)
@given(flagged_scores())
def test_a_higher_level_is_wider(case):
    low, high = auroc_interval(*case, level=0.8), auroc_interval(*case, level=0.99)
    assert high.low <= low.low + 1e-9
    assert high.high >= low.high - 1e-9


def coverage(deviation, n_flagged, area, draws, seed):
    """Share of intervals that contain the area under a binormal curve with 1,000 other rows."""
    rng = np.random.default_rng(seed)
    flags = np.arange(n_flagged + 1000) < n_flagged
    shift = math.sqrt(1 + deviation**2) * norm.ppf(area)
    covered = 0
    for _ in range(draws):
        scores = rng.normal(size=len(flags))
        scores[flags] = deviation * scores[flags] + shift
        found = auroc_interval(scores, flags)
        covered += found.low <= area <= found.high
    return covered / draws


@pytest.mark.parametrize(("n_flagged", "area"), [(5, 0.5), (5, 0.998), (30, 0.998)])
def test_interval_covers(n_flagged, area):
    """At least 93 %, within the error of 200 draws; DeLong ± 1.96 standard errors covers 41 % and 66 % at .998."""
    assert coverage(1.0, n_flagged, area, 200, seed=1) >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 200)


@pytest.mark.soak
@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n_flagged", [5, 30, 150])
@pytest.mark.parametrize("area", [0.5, 0.8, 0.95, 0.998])
def test_interval_covers_in_many_draws(deviation, n_flagged, area):
    assert coverage(deviation, n_flagged, area, 2000, seed=2) >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 2000)


def test_interval_approaches_delongs():
    """With many rows of both kinds the union is DeLong's interval or little wider."""
    rng = np.random.default_rng(0)
    flags = np.arange(4000) < 2000
    scores = rng.normal(size=4000) + flags
    found, error = auroc_interval(scores, flags), auroc_standard_error(scores, flags)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_constant_scores_and_separated_groups():
    constant = auroc_interval(np.full(200, 0.1), np.arange(200) < 100)
    assert constant.value == 0.5
    assert constant.low < 0.45 < 0.55 < constant.high
    separated = auroc_interval(np.arange(100) >= 50, np.arange(100) >= 50)
    assert separated.value == separated.high == 1.0
    assert 0.9 < separated.low < 0.97
    single = auroc_interval([2.0, 1.0], [True, False])  # Wilson's interval of one success in one trial
    assert single.low == pytest.approx(1 / (1 + norm.isf(0.025) ** 2), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "flags", "says"),
    [
        ([1, 2], [True, True], "at least one of each"),
        ([], [], "at least one of each"),
        ([1, 2, 3], [True, False], "shape"),
        ([[1, 2]], [[True, False]], "shape"),
        ([1, math.nan], [True, False], "NaN"),
        ([1, 2], [2, 0], "flags"),
    ],
)
@pytest.mark.parametrize("function", [auroc, auroc_standard_error, auroc_interval])
def test_bad_arguments_are_refused(function, scores, flags, says):
    with pytest.raises(InputError, match=says):
        function(scores, flags)
