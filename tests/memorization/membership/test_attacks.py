"""Attacks compared with slow references, their invariances, and regression tests of defects known from other tools."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernelmem.core import InputError
from kernelmem.memorization.membership import MembershipOptions, attack_scores, membership
from kernelmem.memorization.membership.lira import lira_scores, moments, predictive, separation, variance_prior
from kernelmem.memorization.membership.signals import ATTACKS
from kernelmem.memorization.retraining import feldman_zhang
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import auroc
from tests.memorization.membership.simulated import gaussian_ensemble, logits_of
from tests.profiles import examples

EPS = 2.0**-52


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def split(ensemble, k):
    """The ensemble without model k, and the arguments of an attack on it."""
    others = torch.tensor([j for j in range(ensemble.n_models) if j != k])
    return ensemble.select(others), {"target_logits": ensemble.logits[k], "test_logits": ensemble.test_logits[k]}


@pytest.mark.parametrize("attack", ATTACKS)
def test_members_have_the_larger_scores(attack):
    """An inverted sign of the loss gave AUC 0.12 for 0.88 in another tool."""
    ensemble = gaussian_ensemble(16, 300, 2.5, 0, t=120, spread=0.5)
    shadows, target = split(ensemble, 3)
    assert auroc(attack_scores(shadows, **target, attack=attack), ensemble.masks[3]) > 0.75


def test_loss_is_the_log_likelihood():
    ensemble = gaussian_ensemble(3, 50, 1.0, 0)
    scores = attack_scores(*split(ensemble, 0)[:1], ensemble.logits[0], attack="loss")
    loss = torch.nn.functional.cross_entropy(ensemble.logits[0], ensemble.labels, reduction="none")
    torch.testing.assert_close(scores, -loss, rtol=0, atol=16 * EPS * float(loss.max()))


def test_calibration_uses_every_model_without_the_row_however_many_there_are():
    """Sorting and keeping the k largest values assumes equally many models per row (a defect of another tool)."""
    ensemble = gaussian_ensemble(12, 80, 1.0, 1, balanced=False)
    shadows, target = split(ensemble, 0)
    scores = attack_scores(shadows, target["target_logits"], attack="calibrated")
    log_p = shadows.statistic("log_likelihood")
    own = ensemble.statistic("log_likelihood")[0]
    sizes = set()
    for i in range(80):
        without = [float(log_p[k, i]) for k in range(11) if not shadows.masks[k, i]]
        sizes.add(len(without))
        assert float(scores[i]) == pytest.approx(float(own[i]) - np.mean(without), abs=1e-12)
    assert len(sizes) > 3


@pytest.mark.parametrize("variance", ["per_row", "pooled", "shrunk"])
def test_lira_is_the_ratio_of_densities_of_residuals(variance):
    values, masks, phi = normal(9, 40) + 5 * normal(40, seed=1), normal(9, 40, seed=2) > 0, normal(40, seed=3)
    scores, enough = lira_scores(phi, values, masks, ~masks, variance=variance, offline=False)
    expected = np.zeros(40)
    for used, sign in ((masks.numpy(), 1), (~masks.numpy(), -1)):
        groups = [values.numpy()[used[:, i], i] for i in range(40)]
        squares = np.array([((g - g.mean()) ** 2).sum() if len(g) else 0.0 for g in groups])
        sizes = np.array([len(g) for g in groups])
        dof = np.maximum(sizes - 1, 0)
        means = np.array([g.mean() if len(g) else 0.0 for g in groups])
        x = phi.numpy()
        if variance == "per_row":
            expected += sign * stats.norm.logpdf(x, means, np.sqrt(squares / np.maximum(dof, 1) + 1e-300))
        elif variance == "pooled":
            expected += sign * stats.norm.logpdf(x, means, np.sqrt(squares.sum() / dof.sum()))
        else:
            nu, s2 = variance_prior(torch.tensor(squares), torch.tensor(dof, dtype=torch.float64))
            if np.isinf(nu):
                spread = np.sqrt(s2 * (1 + 1 / np.maximum(sizes, 1)))
                expected += sign * stats.norm.logpdf(x, means, spread)
            else:
                spread = np.sqrt((nu * s2 + squares) / (nu + dof) * (1 + 1 / np.maximum(sizes, 1)))
                expected += sign * stats.t.logpdf(x, nu + dof, means, spread)
    assert int(enough.sum()) > 25
    np.testing.assert_allclose(scores[enough], expected[enough.numpy()], rtol=1e-9, atol=1e-9)


def test_pooled_variance_is_of_residuals_not_of_the_raw_statistic():
    """The standard deviation of the raw statistic mixes easy with difficult rows (a defect of the released LiRA code)."""
    values, masks = normal(20, 300) + 10 * normal(300, seed=1), normal(20, 300, seed=2) > 0
    side, _ = predictive(moments(values, masks), "pooled")
    assert float(side.scale[0]) == pytest.approx(1, abs=0.05)
    assert float(values[masks].std()) > 5


def test_the_offline_score_is_one_sided():
    """A two-sided density calls a row a non-member because the model fits it too well."""
    values, out = normal(8, 200), torch.ones(8, 200, dtype=torch.bool)
    steps = torch.linspace(-30, 30, 200, dtype=torch.float64)
    for variance in ("per_row", "pooled", "shrunk"):
        common = values[:, :1].expand(-1, 200)
        scores, _ = lira_scores(steps, common, ~out, out, variance=variance, offline=True)
        assert bool((scores.diff() > 0).all())  # also where the probability rounds to 1
    scores, _ = lira_scores(values[0] + 1, values, ~out, out, variance="per_row", offline=True)
    probability = stats.norm.cdf(values[0] + 1, values.mean(0), values.std(0))
    np.testing.assert_allclose(stats.norm.cdf(scores), probability, atol=1e-12)


@pytest.mark.parametrize("dof", [4.0, 12.0])
def test_the_prior_of_the_variances_is_recovered(dof):
    rng = np.random.default_rng(0)
    variances = 2.0 * dof / rng.chisquare(dof, 20_000)
    squares = torch.tensor(variances * rng.chisquare(3, 20_000))
    nu, s2 = variance_prior(squares, torch.full((20_000,), 3.0, dtype=torch.float64))
    assert nu == pytest.approx(dof, rel=0.25)
    assert s2 == pytest.approx(2.0, rel=0.05)


def test_equal_variances_are_pooled():
    squares = torch.tensor(np.random.default_rng(1).chisquare(5, 2000))
    nu, s2 = variance_prior(squares, torch.full((2000,), 5.0, dtype=torch.float64))
    assert nu > 100
    assert s2 == pytest.approx(1.0, abs=0.1)


def test_the_student_predictive_covers_with_few_models():
    """Shrunk variances: a further model lies within the predicted 90 % interval in 90 % of the rows, with 3 models each."""
    rng = np.random.default_rng(0)
    sd = np.sqrt(6 / rng.chisquare(6, 20_000))
    values = torch.tensor(sd * rng.normal(size=(3, 20_000)))
    new = torch.tensor(sd * rng.normal(size=20_000))
    all_out = torch.ones(3, 20_000, dtype=torch.bool)
    z, _ = lira_scores(new, values, ~all_out, all_out, variance="shrunk", offline=True)
    assert float((z.abs() < 1.645).double().mean()) == pytest.approx(0.9, abs=0.015)
    plug_in, _ = lira_scores(new, values, ~all_out, all_out, variance="per_row", offline=True)
    assert float((plug_in.abs() < 1.645).double().mean()) < 0.8


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("t", [0, 30])
def test_rmia_is_the_share_of_population_rows_exceeded(offline, t):
    ensemble = gaussian_ensemble(9, 40, 1.0, 2, t=t)
    shadows, target = split(ensemble, 4)
    options = MembershipOptions(offline=offline, offline_a=0.4, gamma=1.5)
    scores = attack_scores(shadows, **target, attack="rmia", options=options)
    p, own = shadows.statistic("probability").numpy(), ensemble.statistic("probability")[4].numpy()
    masks = shadows.masks.numpy()
    ratios = []
    for i in range(40):
        p_out, p_in = p[~masks[:, i], i].mean(), p[masks[:, i], i].mean()
        ratios.append(own[i] / ((1.4 * p_out + 0.6) / 2 if offline else (p_in + p_out) / 2))
    population = ratios
    if t:
        own_test = ensemble.test_statistic("probability")[4].numpy()
        population = own_test / ((1.4 * shadows.test_statistic("probability").numpy().mean(0) + 0.6) / 2)
    expected = [np.mean([ratio > 1.5 * z for z in population]) for ratio in ratios]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@pytest.mark.parametrize("model", ["linear", "boosting"])
def test_quantile_scores_have_the_nominal_rate_above_zero(model):
    ensemble = gaussian_ensemble(16, 800, 2.0, 0, t=800)
    shadows, target = split(ensemble, 0)
    options = MembershipOptions(quantile=0.9, quantile_model=model)
    scores = attack_scores(shadows, **target, attack="quantile", options=options)
    assert float((scores[~ensemble.masks[0]] > 0).double().mean()) == pytest.approx(0.1, abs=0.06)
    assert float((scores[ensemble.masks[0]] > 0).double().mean()) > 0.4


def test_quantile_regression_on_features_of_the_user():
    ensemble = gaussian_ensemble(4, 400, 2.0, 0, t=400, spread=0.0)
    x, x_test = normal(400, 3), normal(400, 3, seed=1)
    shift = 4 * x[:, 0], 4 * x_test[:, 0]
    easy = ShadowEnsemble(
        ensemble.masks,
        logits_of(ensemble.statistic("logit") + shift[0], ensemble.labels),
        ensemble.labels,
        logits_of(ensemble.test_statistic("logit") + shift[1], ensemble.test_labels),
        ensemble.test_labels,
        ensemble.identity,
    )
    shadows, target = split(easy, 0)
    options = MembershipOptions(quantile=0.9, features=(x, x_test))
    known = auroc(attack_scores(shadows, **target, attack="quantile", options=options), easy.masks[0])
    assert known > 0.85 > 0.75 > auroc(attack_scores(shadows, **target, attack="loss"), easy.masks[0])


@pytest.mark.parametrize("attack", ATTACKS)
@examples(0.2)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50), balanced=st.booleans())
def test_shifts_of_logits_names_of_classes_and_order_of_rows_and_models_do_not_matter(attack, seed, shift, balanced):
    ensemble = gaussian_ensemble(10, 30, 1.0, seed, t=110, balanced=balanced)
    shadows, target = split(ensemble, 0)
    options = MembershipOptions(features=(normal(30, 2), normal(110, 2, seed=1)))
    first = attack_scores(shadows, **target, attack=attack, options=options)
    rows, models = torch.randperm(30, generator=torch.Generator().manual_seed(seed)), torch.arange(8, -1, -1)
    changed = ShadowEnsemble(
        shadows.masks[models][:, rows],
        shadows.logits[models][:, rows].flip(-1) + shift,
        1 - shadows.labels[rows],
        shadows.test_logits[models].flip(-1) + shift,
        1 - shadows.test_labels,
        shadows.identity,
    )
    options = MembershipOptions(features=(normal(30, 2)[rows], normal(110, 2, seed=1)))
    second = attack_scores(
        changed,
        target["target_logits"][rows].flip(-1) + shift,
        test_logits=target["test_logits"].flip(-1) + shift,
        attack=attack,
        options=options,
    )
    if attack == "rmia":  # a share: rows within rounding of the bound may change sides
        assert float((first[rows] - second).abs().mean()) < 0.01
    else:
        torch.testing.assert_close(second, first[rows], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("attack", [*ATTACKS, "best"])
@pytest.mark.parametrize("balanced", [True, False])
def test_a_constant_statistic_tells_nothing(attack, balanced):
    """Row order alone made a constant score significant at 1e-115 in another tool."""
    ensemble = gaussian_ensemble(12, 60, 0.0, 0, t=120, balanced=balanced)
    flat = ShadowEnsemble(
        ensemble.masks[:, ensemble.masks[0].sort().indices],  # the members of one model last
        torch.full_like(ensemble.logits, 0.3),
        torch.zeros_like(ensemble.labels),
        torch.full_like(ensemble.test_logits, 0.3),
        torch.zeros_like(ensemble.test_labels),
        ensemble.identity,
    )
    result = membership(flat, attack=attack, options=MembershipOptions(fprs=(0.1,)))
    assert result.auc.value == result.null_auc.value == 0.5
    assert result.rates[0].value == pytest.approx(0.1, abs=1e-12)
    assert result.accuracy.value == 0.5
    assert not result.equivalence().detected


@pytest.mark.parametrize("offline", [True, False])
def test_models_that_agree_on_every_row_tell_nothing_about_each_other_or_a_target(offline):
    """Outputs that are saturated in all models, as those of a kernel machine without any noise."""
    ensemble = gaussian_ensemble(12, 60, 0.0, 0, balanced=False)
    logits = (1e4 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))).expand(12, 60, 2)
    same = ShadowEnsemble(
        ensemble.masks, logits, ensemble.labels, ensemble.test_logits, ensemble.test_labels, ensemble.identity
    )
    options = MembershipOptions(offline=offline)
    assert membership(same, options=options).auc.value == 0.5
    other = membership(same, target=(logits[0] + torch.randn(60, 2), ensemble.masks[0]), options=options)
    assert bool(other.scores.isfinite().all())


def test_outputs_whose_squares_overflow_are_refused():
    ensemble = gaussian_ensemble(6, 40, 1.0, 0)
    large = ShadowEnsemble(
        ensemble.masks, ensemble.logits.double() * 1e200, ensemble.labels, ensemble.test_logits, ensemble.test_labels,
        ensemble.identity,
    )  # fmt: skip
    for function in (membership, feldman_zhang):
        with pytest.raises(InputError, match="beyond 1e140"):
            function(large, **({"statistic": "margin"} if function is feldman_zhang else {}))


def test_float32_outputs_give_nearly_the_same_scores():
    ensemble = gaussian_ensemble(10, 50, 1.0, 0)
    shadows, target = split(ensemble, 0)
    single = ShadowEnsemble(
        shadows.masks,
        shadows.logits.float(),
        shadows.labels,
        shadows.test_logits.float(),
        shadows.test_labels,
        shadows.identity,
    )
    a = attack_scores(shadows, target["target_logits"])
    b = attack_scores(single, target["target_logits"].float().numpy())
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_separation_is_the_distance_in_standard_deviations():
    masks = normal(4000, 3, seed=1) > 0
    values = normal(4000, 3) + torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64) * masks
    d, error = separation(values, masks)
    assert bool(((d - torch.tensor([0.0, 1.0, 3.0])).abs() < 4 * error).all())
    assert bool((error < 0.06).all())
    none, infinite = separation(values[:2], torch.tensor([[True] * 3, [False] * 3]))
    assert bool((none == 0).all() & infinite.isinf().all())


def test_real_targets_are_attacked_by_their_squared_error():
    masks = normal(12, 200, seed=1) > 0
    targets = normal(200, 2, seed=2)
    outputs = targets + normal(12, 200, 2, seed=3) * torch.where(masks, 0.2, 1.0)[..., None]
    empty = torch.zeros(12, 0, 2, dtype=torch.float64)
    ensemble = ShadowEnsemble(masks, outputs, targets, empty, targets[:0], gaussian_ensemble(2, 4, 0.0, 0).identity)
    assert membership(ensemble, attack="lira").auc.low > 0.8
    with pytest.raises(InputError, match="real targets"):
        membership(ensemble, attack="rmia")


def test_messages_name_what_is_missing():
    ensemble = gaussian_ensemble(6, 40, 1.0, 0, t=20)
    shadows, target = split(ensemble, 0)
    with pytest.raises(InputError, match="at least 100 test rows"):
        attack_scores(shadows, **target, attack="quantile")
    with pytest.raises(InputError, match=r"target with logits of shape \(39, 2\)"):
        attack_scores(shadows, target["target_logits"][1:])
    diverged = ensemble.logits.clone()
    diverged[2, 5] = torch.nan
    broken = ShadowEnsemble(
        ensemble.masks, diverged, ensemble.labels, ensemble.test_logits, ensemble.test_labels, ensemble.identity
    )
    with pytest.raises(InputError, match="models 2 that are not finite, or beyond"):
        membership(broken)
    with pytest.raises(InputError, match="offline_a"):
        MembershipOptions(offline_a=2.0)
    with pytest.raises(InputError, match="variance"):
        MembershipOptions(variance="raw")
