"""Estimates and intervals with kernel machines as the algorithm, and full enumeration as the truth."""

import itertools
import math

import pytest
import torch

from kernelmem.memorization.output_statistics import Statistic
from kernelmem.memorization.retraining import c_score, feldman_zhang
from tests.memorization.retraining.enumerated import all_subsets, ensemble_of, outputs, problem, random_models

STATISTICS: list[Statistic] = ["correct", "probability", "logit", "margin", "log_likelihood"]


def coverage(statistic: Statistic, m: int, problems: int, repetitions: int) -> tuple[float, float, float]:
    """Share of cells whose interval covers, mean error, and root mean square of error / standard error of influence."""
    n_covered = n_cells = 0
    errors, standardized = [], []
    for seed in range(problems):
        everything = all_subsets(seed)
        truth = feldman_zhang(everything, statistic=statistic)
        influence = truth.influence().values
        generator = torch.Generator().manual_seed(seed)
        for _ in range(repetitions):
            estimate = feldman_zhang(random_models(everything, m, generator), statistic=statistic)
            exact = truth.memorization.values
            n_covered += int(((estimate.low <= exact + 1e-12) & (exact - 1e-12 <= estimate.high)).sum())
            n_cells += len(exact)
            errors.append(estimate.memorization.values - exact)
            estimated_influence = estimate.influence()
            standardized.append((estimated_influence.values - influence) / estimated_influence.standard_error)
    bias = float(torch.stack(errors).mean())
    return n_covered / n_cells, bias, float(torch.stack(standardized).square().mean().sqrt())


@pytest.mark.parametrize("statistic", STATISTICS)
def test_intervals_cover_the_enumerated_truth(statistic):
    covered, bias, spread = coverage(statistic, 80, 4, 6)  # 240 cells: 3 standard errors are .042
    assert covered >= 0.95 - 0.042
    assert covered <= 0.95 + 0.05  # proportions of 0 and 1 are covered surely
    assert abs(bias) < 0.05
    assert 0.6 < spread < 1.25


@pytest.mark.soak
@pytest.mark.parametrize("m", [60, 128, 400])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_intervals_cover_93_to_98_percent_of_2000_cells(statistic, m):
    covered, _, spread = coverage(statistic, m, 10, 20)
    assert 0.93 <= covered <= 0.98
    assert 0.8 < spread < 1.15


def test_the_estimate_over_all_subsets_is_the_difference_of_exact_expectations():
    kernel, labels = problem(0)
    everything = all_subsets(0)
    exact = feldman_zhang(everything, statistic="margin")
    for i in (0, 7):
        margins = {True: [], False: []}
        for subset in itertools.combinations(range(10), 7):
            f = outputs(kernel, labels, torch.tensor(subset))[i]
            others = [f[c] for c in range(3) if c != labels[i]]
            margins[i in subset].append(float(f[labels[i]] - max(others)))
        expected = sum(margins[True]) / 84 - sum(margins[False]) / 36
        assert float(exact.memorization.values[i]) == pytest.approx(expected, abs=1e-12)


def test_the_estimate_tends_to_leave_one_out_as_the_share_tends_to_1():
    """Exact expectations over independent draws with share q: weights q^|S| (1 - q)^(n - |S|), by enumeration."""
    n = 8
    kernel, labels = problem(1, n)
    masks = torch.tensor([bits for bits in itertools.product([False, True], repeat=n) if any(bits)])
    everything = ensemble_of(kernel, labels, masks)
    margins, sizes = everything.statistic("margin"), masks.sum(1)
    whole = margins[sizes == n][0]
    leave_one_out = whole - torch.stack([margins[(sizes == n - 1) & ~masks[:, i]][0, i] for i in range(n)])
    gaps = []
    for share in (0.5, 0.7, 0.9, 0.97, 0.999):
        weights = (share**sizes * (1 - share) ** (n - sizes)).double()
        both = [
            (weights[:, None] * part * margins).sum(0) / (weights[:, None] * part).sum(0)
            for part in (masks.double(), (~masks).double())
        ]
        gaps.append(float((both[0] - both[1] - leave_one_out).abs().mean()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1 * float(leave_one_out.abs().mean())  # the size of the bias at share 1/2
    assert gaps[-1] < 0.01 * float(leave_one_out.abs().mean())


@pytest.mark.parametrize("repetitions", [20, pytest.param(400, marks=pytest.mark.soak)])
def test_the_c_score_is_the_accuracy_without_the_row_and_its_error_is_right(repetitions):
    everything = all_subsets(2)
    truth = c_score(everything).c_score
    correct = everything.statistic("correct")
    assert float(truth[3]) == pytest.approx(float(correct[~everything.masks[:, 3], 3].mean()), abs=1e-12)
    generator, standardized = torch.Generator().manual_seed(0), []
    for _ in range(repetitions):
        estimate = c_score(random_models(everything, 120, generator))
        assert estimate.score.standard_error is not None
        standardized.append((estimate.c_score - truth) / estimate.score.standard_error)
    uncertain = (truth > 0.02) & (truth < 0.98)
    values = torch.stack(standardized)[:, uncertain]
    spread = 4 / math.sqrt(2 * values.numel())
    assert abs(float(values.square().mean().sqrt()) - 1) < 0.1 + spread
