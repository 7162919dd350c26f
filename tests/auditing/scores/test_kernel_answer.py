"""Kernel method: exact permutation test, leave-group-out predictions, calibration and power, on kernels without networks."""

from itertools import combinations

import numpy as np
import pytest
import torch

from kernelmem.auditing.data_checks import find_near_duplicates
from kernelmem.auditing.scores import kernel_how_much, kernel_power, kernel_scores, permuted_alarms
from kernelmem.auditing.scores.kernel_answer import permutation_p_value, permutation_sums


def make_scores(seed=0, n=120, m=120, memorized=0, copies=0):
    """A noisy classifier of Gaussian clusters that never saw a row, except ``memorized`` wrong training labels that it gives."""
    generator = torch.Generator().manual_seed(seed)
    centers = 0.8 * torch.randn(3, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (n + m,), generator=generator)
    x = centers[labels] + torch.randn(n + m, 10, generator=generator, dtype=torch.float64)
    if copies:
        x[n + m - copies :] = x[n : n + copies]
        labels[n + m - copies :] = labels[n : n + copies]
    noise = 2.0 * torch.randn(n + m, 3, generator=generator, dtype=torch.float64)
    noise[n + m - copies :] = noise[n : n + copies] if copies else noise[n + m :]
    outputs = x @ centers.T - 0.5 * centers.square().sum(1) + noise
    labels[:memorized] = (labels[:memorized] + 1) % 3
    outputs[torch.arange(memorized), labels[:memorized]] += 100.0
    kernel = torch.exp(-torch.cdist(x, x).square() / 60)
    near = find_near_duplicates(kernel, n, cosine=0.999, seed=seed)
    return kernel_scores(kernel, outputs, labels, n, near), kernel, outputs, labels


def test_predictions_are_those_of_literal_refits_without_the_group():
    scores, kernel, _, labels = make_scores(copies=6)
    representative = scores.near.representative
    targets = torch.eye(3, dtype=torch.float64)[labels] - 1 / 3
    ridge = scores.fidelity.label_regression_ridge
    group = torch.from_numpy(scores.near.group)
    for row in (0, 5, 121, 239, 237):
        keep = representative[group[representative] != group[row]]
        inner = kernel[keep][:, keep] + ridge * torch.eye(len(keep), dtype=torch.float64)
        expected = kernel[row, keep] @ torch.linalg.solve(inner, targets[keep])
        assert torch.allclose(scores.predictions[row], expected, atol=1e-9)
        everything = kernel[representative][:, representative] + ridge * torch.eye(
            len(representative), dtype=torch.float64
        )
        fitted = kernel[row, representative] @ torch.linalg.solve(everything, targets[representative])
        assert float(scores.label_memorization[row]) == pytest.approx(float((fitted - expected)[labels[row]]), abs=1e-9)


def test_the_permutation_test_is_exact_on_all_subsets():
    rng = np.random.default_rng(0)
    statistic = np.array([3.0, -1.0, -1.0, 0.5, 0.5, 2.0, -1.0, 3.0])
    sums = permutation_sums(statistic, 3, rng=rng, permutations=40_000)
    subsets = np.array([statistic[list(chosen)].sum() for chosen in combinations(range(8), 3)])
    for mask in (range(3), (0, 5, 7), (1, 2, 6)):
        is_train = np.isin(np.arange(8), list(mask))
        exact = (subsets >= statistic[is_train].sum() - 1e-12).mean()
        error = (exact * (1 - exact) / 40_000) ** 0.5
        assert permutation_p_value(statistic, is_train, sums) == pytest.approx(exact, abs=5 * error + 1e-4)


def test_nothing_is_found_where_no_row_was_seen_also_with_copies():
    for copies in (0, 40):
        covered = alarms = 0
        for seed in range(8):
            scores, _, outputs, _ = make_scores(seed, 80, 80, copies=copies)
            result = kernel_how_much(scores, outputs, seed=seed)
            covered += result.fraction.low <= 0 <= result.fraction.high
            alarms += result.p_value < 0.05
            assert len(scores.control) <= 80 - copies + 1
        assert covered >= 6  # Binomial(8, .95) is below 6 with probability .006
        assert alarms <= 2


@pytest.mark.soak
@pytest.mark.parametrize("copies", [0, 40])
def test_false_alarms_of_five_hundred_audits(copies):
    """Also with near-duplicates: 40 of 80 test rows are copies of other test rows."""
    p_values, covered = [], []
    for seed in range(500):
        scores, _, outputs, _ = make_scores(seed, 80, 80, copies=copies)
        result = kernel_how_much(scores, outputs, seed=seed)
        p_values.append(result.p_value)
        covered.append(result.fraction.low <= 0 <= result.fraction.high)
    assert np.mean(np.array(p_values) < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5
    assert np.mean(np.array(p_values) < 0.01) <= 0.01 + 3 * (0.01 * 0.99 / 500) ** 0.5
    assert np.mean(covered) >= 0.9


def test_fitted_wrong_labels_are_counted_and_announced():
    scores, _, outputs, _ = make_scores(3, 150, 150, memorized=30)
    result = kernel_how_much(scores, outputs, seed=0)
    assert result.fraction.low <= 0.2 <= result.fraction.high
    assert result.p_value < 0.001
    assert scores.flagged[:30].double().mean() > 0.8
    assert permuted_alarms(scores, outputs, seed=0) <= 7


def test_the_smallest_announced_number_of_rows_is_announced_about_four_times_in_five():
    scores, _, outputs, _ = make_scores(4, 150, 150)
    count = kernel_power(scores, outputs, seed=0).smallest_count
    assert count is not None
    announced = {}
    for k in (round(count / 2), 2 * count):
        results = [make_scores(100 + seed, 150, 150, memorized=k) for seed in range(6)]
        announced[k] = np.mean([kernel_how_much(s, o, seed=0).p_value < 0.01 for s, _, o, _ in results])
    assert announced[round(count / 2)] < 0.8
    assert announced[2 * count] > 0.8
