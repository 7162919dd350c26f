"""Literal retraining, null audits and power on small inputs; false alarms of a thousand audits in the soak suite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.audit_validation.literal import LITERAL_SETTINGS, measure_literal, retrain_without
from experiments.audit_validation.nulls import (
    NullOptions,
    announced_counts,
    announced_effect,
    null_audits,
    retraining_nulls,
)
from experiments.audit_validation.planted import PlantedOptions, measure_planted
from experiments.audit_validation.training import Training
from kernelmem.training import digits


def test_literal_retraining_is_that_of_single_networks():
    data, training = digits(n_train=60, seed=3), Training(steps=40, width=8)
    x, y = data.x_train, data.y_train
    rows = torch.tensor([4, 17, 30])
    truth = retrain_without(training, x, y, rows, pairs=2, seed=5)
    seeds = np.random.default_rng(5).integers(2**31 - 2, size=2).tolist()
    everything = torch.arange(60)
    hits = torch.zeros(2)
    for k, seed in enumerate(seeds):
        keep = everything[everything != 17]
        with_row, without = training.networks(x, y, [everything, keep], [seed, seed])
        f, g = with_row(x[17:18])[0].detach().double(), without(x[17:18])[0].detach().double()
        margins = [float(v[y[17]] - v[torch.arange(10) != y[17]].max()) for v in (f, g)]
        assert float(truth.change[k, 1]) == pytest.approx(margins[0] - margins[1], abs=1e-3)
        hits[k] = g.argmax() == y[17]
    assert float(truth.p_out[1]) == pytest.approx(float(hits.mean()))
    assert ((truth.p_in >= 0) & (truth.p_in <= 1)).all()


@pytest.mark.soak
def test_audits_are_compared_with_literal_retraining():
    setting = next(setting for setting in LITERAL_SETTINGS if setting.training.convolutional)
    training = replace(setting.training, steps=20, width=2)
    small = replace(setting, training=training, n_train=60, n_test=60, n_models=32, n_rows=5, n_flagged=1, pairs=2)
    result = measure_literal(small, 1)
    for name in ("retraining", "kernel"):
        assert -1 <= result[f"{name}_spearman"] <= 1
        assert result[f"{name}_low"] <= result[f"{name}_share"] <= result[f"{name}_high"]
    assert result["true_share_low"] <= result["true_share"] <= result["true_share_high"]


@pytest.mark.soak
def test_nothing_is_announced_of_rows_that_the_network_never_saw():
    results = null_audits("test", range(2), NullOptions(50, 100))
    assert sum(result["status"] == "memorized" for result in results) <= 1
    assert all(result["printed"] > 0 for result in results)


@pytest.mark.soak
@pytest.mark.parametrize("unseen", ["network", "network and models"])
def test_retraining_announces_nothing_of_rows_that_the_network_never_saw(unseen):
    """Models that saw the rows differ from the network; without any that did, memberships say nothing."""
    result = retraining_nulls(unseen, range(1), NullOptions(60, 100))[0]
    assert result["status"] != "memorized"
    assert ("shadow fidelity" in str(result["failed"])) == (unseen == "network")


@pytest.mark.soak
def test_wrong_labels_are_announced_and_flagged():
    results = measure_planted(0, PlantedOptions(n_train=80, n_flips=8, n_verified=1, training=Training(100, width=32)))
    wrong, clean = results["wrong labels"], results["no wrong labels"]
    assert wrong["retraining_announced"] == 1
    assert wrong["retraining_flips_flagged"] > 0.5
    assert wrong["retraining_flagged"] > clean["retraining_flagged"]
    assert wrong["verified_mean"] > 0
    assert clean["retraining_flips_flagged"] is None


@pytest.mark.soak
def test_planted_wrong_labels_are_fitted_and_counted():
    results = announced_counts(3, NullOptions(60, 100))
    assert [result["place"] for result in results] == ["nothing", "printed / 1.5", "printed", "1.5 printed"]
    assert results[3]["planted"] > results[1]["planted"] > 0
    assert results[3]["fitted"] > 0.9
    assert results[3]["p_value"] < results[0]["p_value"]


@pytest.mark.soak
def test_the_smallest_effect_is_that_of_real_models():
    result = announced_effect(48, 32, 1, 0)
    assert 0 < result["printed"] <= 1
    assert result["announced_at_two_thirds"] < 0.8


@pytest.mark.soak
@pytest.mark.parametrize(("copies", "share", "count"), [("none", 0.0, 600), ("test", 0.5, 200), ("train", 0.5, 200)])
def test_false_alarms_of_a_thousand_audits(copies, share, count):
    """Digits networks that saw neither training nor test rows, also with near-copies: at most 5 % are announced."""
    results = null_audits(copies, range(count), NullOptions(100, 200, copied_share=share))
    announced = np.mean([result["status"] == "memorized" for result in results])
    p_values = np.array([result["p_value"] for result in results])
    assert announced <= 0.05
    assert (p_values < 0.01).mean() <= 0.01 + 3 * (0.01 * 0.99 / count) ** 0.5
