"""Tests of exposure: definition, exact null expectation, trained canaries, coverage of intervals, refusals."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.memorization.canaries import CanaryCoverage, Exposure, exposure
from tests.profiles import examples
from tests.tolerances import EPS

SMALL = st.integers(-6, 6)


@examples(2)
@given(st.lists(SMALL, min_size=1, max_size=12), st.lists(SMALL, min_size=2, max_size=40), st.integers(0, 2**32))
def test_rank_by_its_definition_and_invariances(scores, references, seed):
    found = exposure(scores, references)
    R = len(references) + 1
    ranks = [1 + sum(reference >= score for reference in references) for score in scores]
    assert found.rank.tolist() == ranks
    assert found.n_candidates == R
    np.testing.assert_allclose(found.exposure, np.log2(R) - np.log2(ranks), atol=4 * EPS * math.log2(R))
    order = np.random.default_rng(seed).permutation(len(scores))
    x = torch.tensor(scores, dtype=torch.float32)
    moved = exposure(x[order].exp() * 3 - 7, torch.tensor(references[::-1], dtype=torch.float32).exp() * 3 - 7)
    assert moved.rank.tolist() == [ranks[i] for i in order]
    group = found.groups[0]
    assert 0 <= group.low <= group.mean <= group.high <= math.log2(R)
    assert group.mean == pytest.approx(float(found.exposure.mean()))


def test_equal_scores_have_no_exposure():
    found = exposure(np.zeros(5), np.zeros(20))
    assert found.exposure.tolist() == [0.0] * 5
    assert found.groups[0].low == 0


@pytest.mark.parametrize("R", [3, 100, 5000])
def test_expected_control_is_the_mean_over_all_ranks(R):
    found = exposure([0.0], np.arange(R - 1))
    assert found.expected_control == pytest.approx(np.mean(np.log2(R) - np.log2(np.arange(1, R + 1))), rel=1e-10)


def test_known_values_of_the_control():
    assert exposure([0.0], np.arange(99)).expected_control == pytest.approx(1.396, abs=5e-4)
    assert exposure([0.0], np.arange(100_000)).expected_control == pytest.approx(math.log2(math.e), abs=2e-4)


def test_canaries_that_were_not_inserted():
    """Mean 1.44 bits within 3 standard errors, intervals around it, and p-values of the control that are uniform."""
    rng = np.random.default_rng(0)
    found = [exposure(rng.normal(size=20), rng.normal(size=255), repetitions=np.zeros(20)) for _ in range(200)]
    means = np.array([own.groups[0].mean for own in found])
    assert means.mean() == pytest.approx(found[0].expected_control, abs=3 * means.std(ddof=1) / math.sqrt(len(means)))
    # its spread: that of 20 canaries and that of the references, which the canaries share
    spread = math.hypot(1 / math.log(2) / math.sqrt(20), found[0].expected_control_se)
    assert means.std(ddof=1) == pytest.approx(spread, rel=4 / math.sqrt(2 * len(means)))
    p_values = np.array([own.control_p for own in found])
    for level in (0.05, 0.5):
        assert np.mean(p_values <= level) <= level + 3 * math.sqrt(level * (1 - level) / len(found))


def trained_scores(rng, repetitions, n_references=255, d=60, n=80):
    """Minus the squared error of a ridge regression on random labels, in which each canary is repeated."""
    planted, references = rng.normal(size=(len(repetitions), d)), rng.normal(size=(n_references, d))
    y, y_references = rng.choice([-1.0, 1.0], len(repetitions)), rng.choice([-1.0, 1.0], n_references)
    X = np.concatenate([rng.normal(size=(n, d)), np.repeat(planted, repetitions, 0)])
    labels = np.concatenate([rng.choice([-1.0, 1.0], n), np.repeat(y, repetitions)])
    weights = np.linalg.solve(X.T @ X + 5 * np.eye(d), X.T @ labels)
    return -((planted @ weights - y) ** 2), -((references @ weights - y_references) ** 2)


def test_exposure_rises_with_repetitions_and_the_control_has_none():
    rng = np.random.default_rng(1)
    repetitions = np.repeat([0, 1, 2, 4, 8], 6)
    found = [exposure(*trained_scores(rng, repetitions), repetitions=repetitions) for _ in range(12)]
    means = np.array([[group.mean for group in own.groups] for own in found])
    assert [group.repetitions for group in found[0].groups] == [0, 1, 2, 4, 8]
    assert (np.diff(means.mean(0)) > 0).all()
    error = means[:, 0].std(ddof=1) / math.sqrt(len(found))
    assert means[:, 0].mean() == pytest.approx(found[0].expected_control, abs=3 * error)
    assert means[:, 1].mean() > found[0].expected_control + 3 * error


def coverage_of_intervals(k, n_references, shift, draws, seed):
    """Share of intervals with the mean over all canaries N(shift, 1), for the same references N(0, 1)."""
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    R, covered = n_references + 1, 0
    for _ in range(draws):
        references = np.sort(rng.normal(size=n_references))
        shares = np.diff(np.concatenate([[0.0], norm.cdf(references - shift), [1.0]]))
        true = float(shares @ (np.log2(R) - np.log2(R - np.arange(R))))
        group = exposure(rng.normal(size=k) + shift, references).groups[0]
        covered += group.low <= true <= group.high
    return covered / draws


@pytest.mark.parametrize(("k", "shift"), [(5, 0.0), (5, 3.0), (20, 1.0)])
def test_interval_covers(k, shift):
    assert coverage_of_intervals(k, 255, shift, draws=300, seed=0) >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 300)


@pytest.mark.soak
@pytest.mark.parametrize("k", [3, 5, 20, 100])
@pytest.mark.parametrize("n_references", [99, 1023])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 3.0])
def test_interval_covers_in_many_draws(k, n_references, shift):
    assert coverage_of_intervals(k, n_references, shift, draws=2000, seed=1) >= 0.92


def test_coverage_decides_which_canaries_are_accepted():
    scores, references, repetitions = np.arange(3.0), np.arange(10.0), torch.tensor([1, 2, 0])
    covered = CanaryCoverage(torch.tensor([3, 6, 0]), torch.tensor([1, 2, 0]))
    found = exposure(scores, references, repetitions=repetitions, coverage=covered)
    assert found.covered
    assert "every inserted canary received loss" in str(found)
    assert "not checked" in str(exposure(scores, references))
    for counts, says in (([3, 0, 0], "1 canaries inserted but never received loss"), ([1, 1, 1], "of the control")):
        broken = CanaryCoverage(torch.tensor(counts), torch.tensor([1, 2, 0]))
        with pytest.raises(InputError, match=says):
            exposure(scores, references, repetitions=repetitions, coverage=broken)
    with pytest.raises(InputError, match="coverage of 3 canaries and scores of 2"):
        exposure(scores[:2], references, coverage=covered)


def test_a_result_is_saved_printed_and_drawn(tmp_path):
    rng = np.random.default_rng(0)
    found = exposure(rng.normal(size=8) + 2, rng.normal(size=31), repetitions=[0, 0, 1, 1, 2, 2, 2, 2])
    read = Exposure.load(found.save(tmp_path / "exposure.safetensors"))
    assert str(read) == str(found)
    assert list(found.to_frame().columns) == ["repetitions", "rank", "exposure"]
    assert "not inserted" in str(found)
    assert "no control" in str(exposure([1.0], [0.0, 2.0]))
    axes = found.plot().axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2"]
    assert axes.get_ylim()[1] > 5
    found.plot().savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (([], [1, 2]), {}, "at least one canary"),
        (([1], [1]), {}, "two references"),
        (([[1]], [1, 2]), {}, "shape"),
        (([math.nan], [1, 2]), {}, "NaN"),
        (([1], [1, math.inf]), {}, "infinite"),
        (([1], [1, 2]), {"repetitions": [1, 2]}, "repetitions"),
        (([1], [1, 2]), {"repetitions": [-1]}, "repetitions"),
        (([1], [1, 2]), {"repetitions": [0.5]}, "repetitions"),
        (([1], [1, 2]), {"coverage": {}}, "coverage"),
        (([1], [1, 2]), {"level": 1}, "level"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, says):
    with pytest.raises(InputError, match=says):
        exposure(*arguments, **options)
