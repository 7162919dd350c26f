import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.memorization.leave_one_out import (
    find_label_issues,
    leave_one_out_margin,
    leave_one_out_memorization,
    to_pred_probs,
)
from tests.profiles import examples
from tests.tolerances import summing


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, C = draw(st.integers(1, 20)), draw(st.integers(2, 5))
    p = rng.dirichlet(np.full(C, draw(st.sampled_from([0.1, 1.0]))), n)
    if draw(st.booleans()):  # ties
        p = rng.integers(0, 4, (n, C)) + 1.0
        p /= p.sum(1, keepdims=True)
    return p, rng.integers(0, C, n)


def definition(p, y):
    """Confident class of every row, or -1."""
    n, C = p.shape
    thresholds = [np.mean([p[i, j] for i in range(n) if y[i] == j]) if j in y else math.inf for j in range(C)]
    suggested = []
    for i in range(n):
        candidates = [j for j in range(C) if p[i, j] >= thresholds[j] - 1e-9]
        largest = max((p[i, j] for j in candidates), default=0)
        best = [j for j in candidates if p[i, j] == largest]
        suggested.append(-1 if not best else y[i] if y[i] in best else best[0])
    return thresholds, suggested


@examples(1)
@given(cases())
def test_issues_and_scores_are_their_definitions(case):
    p, y = case
    n, C = p.shape
    issues = find_label_issues(p, y)
    thresholds, suggested = definition(issues.probabilities.numpy(), y)
    assert np.allclose(issues.thresholds, thresholds, rtol=summing(n), atol=0)
    assert issues.suggested.tolist() == suggested
    joint = np.zeros((C, C), dtype=int)
    for i in range(n):
        joint[y[i], suggested[i]] += suggested[i] >= 0
    assert issues.confident_joint.tolist() == joint.tolist()
    assert issues.is_issue.tolist() == [s >= 0 and s != label for s, label in zip(suggested, y, strict=True)]
    assert np.allclose(issues.joint.sum(1), np.bincount(y, minlength=C) / n, rtol=0, atol=summing(C, n))
    p = issues.probabilities.numpy()
    for i in range(n):
        label, others = p[i, y[i]], max(p[i, j] for j in range(C) if j != y[i])
        entropy = -sum(q * math.log(q) for q in p[i] if q > 0)
        values = [issues.self_confidence, issues.normalized_margin, issues.confidence_weighted_entropy]
        expected = [1 - label, (1 - label + others) / 2, entropy / math.log(C) / max(label, 1e-6)]
        for score, value in zip(values, expected, strict=True):
            assert math.isclose(score.values[i], value, rel_tol=1e-9, abs_tol=1e-9)


@examples(0.3)
@given(cases(), st.integers(0, 2**32 - 1))
def test_order_and_names_do_not_matter(case, seed):
    p, y = case
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(len(y)), rng.permutation(p.shape[1])
    moved = find_label_issues(p[rows][:, classes], np.argsort(classes)[y[rows]])
    issues = find_label_issues(p, y)
    assert torch.equal(moved.is_issue, issues.is_issue[rows])
    for name in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        values = getattr(issues, name).values[rows]
        assert torch.allclose(getattr(moved, name).values, values, rtol=summing(5), atol=summing(5))


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[1.5, -0.5]], [0], "non-negative"),
        ([0.5, 0.5], [0, 1], "stack"),
        ([[0.5, 0.5]], [2], "outside 0..1"),
        ([[0.5, 0.5]], [0, 1], "1 labels"),
    ],
)
def test_what_is_no_distribution_is_refused(p, y, message):
    with pytest.raises(km.InputError, match=message):
        find_label_issues(p, y)


def test_kernel_scores_are_those_of_the_fit_and_flips_are_found(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    flipped = torch.zeros(60, dtype=torch.bool)
    flipped[(x[:, 0].abs() - 1).abs().argsort()[:6]] = True
    fit = km.leave_one_out(torch.exp(-torch.cdist(x, x).square() / 4), y ^ flipped, 0.1)
    memorization, margin = leave_one_out_memorization(fit), leave_one_out_margin(fit)
    assert torch.equal(memorization.values, fit.memorization)
    assert torch.equal(margin.values, -fit.margin)
    issues = find_label_issues(to_pred_probs(fit), y ^ flipped)
    assert memorization.values[flipped].mean() > memorization.values[~flipped].mean()
    scores = [
        margin,
        issues.self_confidence,
        issues.normalized_margin,
        issues.confidence_weighted_entropy,
    ]
    for score in scores:
        assert score.values[flipped].mean() > score.values[~flipped].mean()
        assert km.detect(score.values, flipped, seed=0).auroc > 0.9
    assert bool(issues.is_issue[flipped].all())
    assert "most frequent (label -> class)" in str(issues)
    assert torch.equal(type(issues).load(issues.save(tmp_path / "issues")).suggested, issues.suggested)
    assert len(issues.to_frame()) == 60


def test_many_classes():
    y = np.arange(1000).repeat(2)
    p = np.full((2000, 1000), 1e-4)
    p[np.arange(2000), y] = 1 - 999e-4
    p[0] = p[2]
    issues = find_label_issues(p, y)
    assert issues.is_issue.nonzero()[:, 0].tolist() == [0]
    assert issues.confident_joint.shape == (1000, 1000)
