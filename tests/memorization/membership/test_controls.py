"""Blind baseline and fidelity of shadow models: no alarm without a difference, an alarm with one."""

import pytest
import torch

from kernelmem.core import InputError
from kernelmem.memorization.membership import blind_baseline, shadow_fidelity
from kernelmem.statistics import auroc_interval
from tests.memorization.membership.simulated import gaussian_ensemble, logits_of


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_of_one_distribution_are_not_told_apart():
    flagged = 0
    for seed in range(3):
        result = blind_baseline(normal(150, 4, seed=seed), normal(200, 4, seed=seed + 100), seed=seed)
        flagged += result.flagged
        assert result.largest.value < 0.62
    assert flagged <= 1


@pytest.mark.soak
def test_false_alarms_of_the_blind_baseline():
    flagged = [
        blind_baseline(normal(200, 5, seed=s), normal(200, 5, seed=s + 10_000), seed=s).flagged for s in range(200)
    ]
    assert sum(flagged) <= 0.05 * 200 + 3 * (0.05 * 0.95 * 200) ** 0.5


@pytest.mark.parametrize("kind", ["shift", "spread", "copies"])
def test_an_injected_difference_is_flagged(kind):
    members, others = normal(300, 5, seed=0), normal(300, 5, seed=1)
    if kind == "shift":
        others = others + 0.5
    elif kind == "spread":
        others = 2 * others  # no linear classifier finds it
    else:
        members = members[torch.arange(300) // 3] + 1e-3 * normal(300, 5, seed=2)
    result = blind_baseline(members, others, seed=0)
    assert result.flagged
    if kind == "spread":
        assert result.aurocs["logistic"].value < 0.6 < result.aurocs["boosting"].value
    if kind == "copies":
        assert result.aurocs["nearest"].value > 0.9
    assert "differ without the model" in str(result)
    assert len(result.to_frame()) == 3


def test_constant_columns_images_and_many_rows():
    members, others = torch.rand(120, 1, 3, 3), torch.rand(90, 1, 3, 3)
    members[:, :, 0] = others[:, :, 0] = 1.0
    result = blind_baseline(members, others, seed=0, max_rows=100)
    assert (result.n_members, result.n_nonmembers) == (100, 90)
    with pytest.raises(InputError, match="at least 20"):
        blind_baseline(members[:5], others, seed=0)


def test_a_further_model_of_the_same_kind_is_faithful_and_others_are_not():
    ensemble = gaussian_ensemble(25, 400, 1.0, 0)
    shadows = ensemble.select(torch.arange(24))
    phi, labels = ensemble.statistic("logit")[24], ensemble.labels
    same = shadow_fidelity(shadows, ensemble.logits[24], ensemble.masks[24])
    assert same.faithful
    assert same.accuracy_in == pytest.approx(same.shadow_accuracy_in, abs=0.1)
    sharper = shadow_fidelity(shadows, logits_of(3 * phi, labels), ensemble.masks[24])
    assert not sharper.faithful  # equal accuracy, other confidence
    assert sharper.accuracy_in == same.accuracy_in
    assert float(sharper.p_values[2]) < 0.05 < float(sharper.p_values[0])
    better = shadow_fidelity(shadows, logits_of(phi + 1, labels), ensemble.masks[24])
    assert not better.faithful
    assert "differs" in str(better)


def test_false_alarms_of_shadow_fidelity():
    alarms = 0
    for seed in range(40):
        ensemble = gaussian_ensemble(13, 80, 1.0, seed)
        shadows = ensemble.select(torch.arange(12))
        alarms += not shadow_fidelity(shadows, ensemble.logits[12], ensemble.masks[12]).faithful
    assert alarms <= 0.05 * 40 + 3 * (0.05 * 0.95 * 40) ** 0.5


def test_intervals_of_scores_from_folds_are_wider_than_those_of_independent_scores():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    interval = blind_baseline(x[:40], x[40:], seed=0).largest
    independent = auroc_interval(torch.arange(80.0), torch.arange(80) % 2, level=interval.level)  # AUROC near .5
    assert interval.high - interval.low > 1.3 * (independent.high - independent.low)
