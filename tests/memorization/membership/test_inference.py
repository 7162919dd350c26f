"""Attacks on all models and on one: closed form of the AUC, controls, what enters, records, files."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import kernelmem as km
from kernelmem.core import InputError
from kernelmem.memorization.membership import Membership, MembershipOptions, attack_scores, membership, tpr_at_fpr
from kernelmem.memorization.membership.attacks import score_target
from kernelmem.memorization.membership.inference import used_models
from kernelmem.memorization.membership.signals import as_signals
from kernelmem.statistics import auroc
from tests.memorization.membership.simulated import gaussian_ensemble


@pytest.mark.parametrize("gain", [0.0, 1.0, 2.0])
def test_lira_reaches_the_closed_form_on_the_gaussian_model(gain):
    """With known means and variances LiRA's AUC is Φ(d′/√2); 39 shadow models lose less than 0.015."""
    result = membership(gaussian_ensemble(40, 200, gain, 3, spread=3.0))
    optimum = norm.cdf(gain / math.sqrt(2))
    assert result.auc.low - 0.015 * (gain > 0) <= optimum - 0.015 * (gain > 0) / 3
    assert result.auc.high + 0.015 * (gain > 0) >= optimum
    assert result.null_auc.low <= 0.5 <= result.null_auc.high
    assert result.rates[0].high >= norm.sf(norm.isf(0.1) - gain) - 0.05
    assert result.equivalence().detected == (gain > 0)


@pytest.mark.parametrize("attack", ["calibrated", "lira", "rmia"])
def test_no_attack_finds_membership_in_balanced_halves_without_any(attack):
    """Each row is in m/2 models, so the number of other models with it would tell whether the target has it."""
    m, n = 8, 400
    areas = []
    for seed in range(6):
        signals = as_signals(gaussian_ensemble(m, n, 0.0, seed), None, MembershipOptions(), 0)
        generator = torch.Generator().manual_seed(seed)
        for k in range(m):
            scores, lacking = score_target(
                signals, k, used_models(signals, k, m, generator), attack, MembershipOptions()
            )
            assert lacking == 0
            areas.append(auroc(scores, signals.masks[k]))
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * math.sqrt(2 / (12 * n / 4 * len(areas))))


def test_without_leaving_one_out_of_the_other_kind_the_counts_tell_membership():
    """The defect that the previous test guards against: LiRA with all other models is biased where nothing is to be found."""
    signals = as_signals(gaussian_ensemble(6, 3000, 0.0, 0), None, MembershipOptions(), 0)
    used = torch.ones_like(signals.masks)
    used[0] = False
    scores, _ = score_target(signals, 0, used, "lira", MembershipOptions())
    area = auroc(scores, signals.masks[0])
    equalized = used_models(signals, 0, 6, torch.Generator().manual_seed(0))
    assert bool(((equalized & signals.masks).sum(0) == 2).all() & ((equalized & ~signals.masks).sum(0) == 2).all())
    fair, _ = score_target(signals, 0, equalized, "lira", MembershipOptions())
    assert abs(area - 0.5) > 0.03
    assert abs(auroc(fair, signals.masks[0]) - 0.5) < 0.03


def test_the_target_is_not_among_its_shadow_models():
    ensemble = gaussian_ensemble(10, 60, 1.0, 0, balanced=False)
    result = membership(ensemble, options=MembershipOptions(fprs=(0.1,)))
    for k in (0, 9):
        others = torch.tensor([j for j in range(10) if j != k])
        alone = attack_scores(ensemble.select(others), ensemble.logits[k])
        torch.testing.assert_close(result.scores[k], alone, rtol=1e-12, atol=1e-12)


def test_the_permuted_run_keeps_counts_per_row_and_changes_members():
    """A permutation that only rebinds a local name is none, and shows no control."""
    ensemble = gaussian_ensemble(16, 300, 2.0, 0)
    result = membership(ensemble)
    assert bool((result.null_members.sum(0) == ensemble.masks.sum(0)).all())
    assert 0.4 < float((result.null_members != result.members).double().mean()) < 0.6
    assert result.null_auc.low <= 0.5 <= result.null_auc.high < result.auc.low
    assert result.null_rates[0].low <= 0.1 <= result.null_rates[0].high


def test_one_given_model_is_attacked_with_all_shadow_models():
    ensemble = gaussian_ensemble(21, 600, 1.5, 0, t=100)
    shadows = ensemble.select(torch.arange(20))
    target = (ensemble.logits[20].numpy(), ensemble.masks[20].numpy(), ensemble.test_logits[20])
    result = membership(shadows, target=target)
    assert (result.level, result.n_targets, result.n_shadows) == ("model", 1, 20)
    assert result.auc.low < norm.cdf(1.5 / math.sqrt(2)) < result.auc.high + 0.03
    assert result.null_auc.low <= 0.5 <= result.null_auc.high
    assert result.accuracy.low < norm.cdf(0.75) < result.accuracy.high + 0.03
    assert result.rates[1].value is None
    assert "intervals over its rows" in str(result)
    assert set(result.worst(5)) <= set(ensemble.masks[20].nonzero()[:, 0].tolist())
    assert result.worst_identified() is None


def test_the_best_attack_is_reported_on_targets_that_did_not_choose_it():
    """The maximum over attacks on the same targets is above 0.5 where nothing is to be found."""
    largest, honest = [], []
    options = MembershipOptions(fprs=(0.1,))
    for seed in range(3):
        ensemble = gaussian_ensemble(8, 60, 0.0, seed)
        best = membership(ensemble, attack="best", seed=seed, options=options)
        assert best.considered == ("loss", "calibrated", "lira", "rmia")
        assert best.n_targets == 4
        honest.append(best.auc.value)
        runs = [membership(ensemble, attack=name, seed=seed, options=options) for name in best.considered]
        largest.append(max(run.auc.value for run in runs))
    assert np.mean(honest) < np.mean(largest)
    assert abs(np.mean(honest) - 0.5) < 0.08
    strong = membership(gaussian_ensemble(12, 150, 2.5, 0, spread=4.0, t=100), attack="best", options=options)
    assert strong.attack == "lira"
    assert "chosen among loss, calibrated, lira, rmia, quantile" in str(strong)


def test_rows_that_are_memorized_are_the_worst_records():
    ensemble = gaussian_ensemble(24, 200, 0.0, 0)
    phi = ensemble.statistic("logit").clone()
    phi[:, :10] += 5 * ensemble.masks[:, :10]
    half = phi * (2 * ensemble.labels - 1) / 2
    planted = km.ShadowEnsemble(
        ensemble.masks,
        torch.stack([-half, half], -1),
        ensemble.labels,
        ensemble.test_logits,
        ensemble.test_labels,
        ensemble.identity,
    )
    result = membership(planted)
    assert set(result.worst(10)) == set(range(10))
    frame = result.to_frame()
    assert list(frame.record[:10]) == result.worst(10)
    assert frame.identified[:10].mean() > 0.7 > 0.1 > frame.identified[10:].mean()
    assert (frame.separation[:10] > 3).all()
    identified = result.worst_identified(10)
    assert identified.low > 0.6
    nothing = membership(ensemble).worst_identified(10)
    assert nothing.low < 0.1


def test_results_are_saved_and_printed(tmp_path):
    result = km.membership(gaussian_ensemble(12, 100, 1.0, 0), options=km.MembershipOptions(fprs=(0.1, 0.01)))
    again = Membership.load(result.save(tmp_path / "membership"))
    assert str(again) == str(result)
    torch.testing.assert_close(again.scores, result.scores, rtol=0, atol=0)
    assert again.equivalence().auc == result.equivalence().auc
    assert result.precision(0.1, 0.5) == pytest.approx(result.rates[0].value / (result.rates[0].value + 0.1), abs=1e-12)
    assert result.precision(0.01, 0.5) is None
    assert result.advantage.value == pytest.approx(2 * result.accuracy.value - 1)
    with pytest.raises(InputError, match=r"fpr=0\.2"):
        result.precision(0.2, 0.5)
    assert len(str(result).splitlines()) < 25
    figure = result.plot()
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_equal_seeds_give_equal_results_and_progress_ends():
    ensemble, calls = gaussian_ensemble(8, 60, 1.0, 0), []
    first = membership(ensemble, seed=3, progress=lambda done, total: calls.append((done, total)))
    second = membership(ensemble, seed=3)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.null_scores, second.null_scores)
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_too_few_models_are_refused():
    with pytest.raises(InputError, match="without enough shadow models"):
        membership(gaussian_ensemble(4, 100, 1.0, 0, balanced=False))
    with pytest.raises(InputError, match="too few for any row"):
        membership(gaussian_ensemble(2, 100, 1.0, 0))
    one_sided = gaussian_ensemble(6, 100, 1.0, 0)
    one_sided.masks[2] = True
    with pytest.raises(InputError, match="models 2 trained on all or none"):
        membership(one_sided)


def test_the_intervals_of_rates_allow_for_shared_shadow_models():
    result = membership(gaussian_ensemble(12, 100, 0.5, 0), options=MembershipOptions(fprs=(0.1,)))
    assert 2 <= result.variance_factor <= 4
    independent = tpr_at_fpr(result.scores, result.members, 0.1)
    (rate,), (control,) = result.rates, result.null_rates
    assert rate == tpr_at_fpr(result.scores, result.members, 0.1, variance_factor=result.variance_factor)
    assert control == tpr_at_fpr(result.null_scores, result.null_members, 0.1, variance_factor=result.variance_factor)
    widened = (rate.high - rate.low) / (independent.high - independent.low)
    assert widened == pytest.approx(math.sqrt(result.variance_factor), rel=0.15)
    assert result.equivalence(fprs=(0.1,)).rates == (
        tpr_at_fpr(result.scores, result.members, 0.1, level=0.9, variance_factor=result.variance_factor),
    )


@pytest.mark.soak
def test_coverage_of_rates_over_targets():
    """Intervals for independent targets cover 82 % here."""
    rates = [membership(gaussian_ensemble(48, 300, 0.0, s), seed=s).rates[0] for s in range(60)]
    misses = sum(not rate.low <= rate.fpr <= rate.high for rate in rates)
    assert misses <= 0.05 * 60 + 3 * math.sqrt(0.05 * 0.95 * 60)


@pytest.mark.soak
@pytest.mark.parametrize("gain", [0.0, 0.36, 1.0])
def test_coverage_of_the_auc_over_targets(gain):
    results = [membership(gaussian_ensemble(16, 150, gain, seed), seed=seed) for seed in range(300)]
    truth = np.mean([result.auc.value for result in results])
    misses = sum(not result.auc.low <= truth <= result.auc.high for result in results)
    assert misses <= 0.05 * 300 + 3 * math.sqrt(0.05 * 0.95 * 300)
    null_misses = sum(not result.null_auc.low <= 0.5 <= result.null_auc.high for result in results)
    assert null_misses <= 0.05 * 300 + 3 * math.sqrt(0.05 * 0.95 * 300)
