"""Audits with retraining: models trained here, by a function of the user, or elsewhere; verified rows; wrong networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.auditing import conclusions
from kernelmem.auditing.data_checks import read_rows, with_outputs
from kernelmem.auditing.retraining import retraining_scores, verify_rows
from kernelmem.auditing.retraining.budget import subset_outputs
from kernelmem.memorization.shadows import EnsembleTraining, ShadowOptions, shadow_ensemble
from kernelmem.training import Recipe, mlp

N, M, D, WRONG = 60, 60, 6, 8
TRAINING = EnsembleTraining(Recipe(lr=0.05, steps=60), width=32)


def make_data(seed=0):
    """Two Gaussian classes; the first eight training labels are wrong."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (N + M,), generator=generator)
    x = torch.randn(N + M, D, generator=generator) + 1.2 * (2 * y[:, None] - 1)
    y[:WRONG] = 1 - y[:WRONG]
    return (x[:N], y[:N]), (x[N:], y[N:])


def fit(x, y, seed):
    """The training of ``TRAINING`` as a plain loop."""
    model = mlp(D, 32, 2, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def inputs(data):
    (x, y), test = data
    rows, audited, labels = read_rows((x, y), test, None, class_names=None, name="data", image_shape=None)
    return with_outputs(fit(x, y, 5), rows, audited, labels, forward=None, n_classes=None)


@pytest.fixture(scope="module")
def shadows(data):
    train, test = data
    options = ShadowOptions(n_models=96, share=0.7, sampling="balanced")
    return shadow_ensemble(train, TRAINING, test=test, seed=1, options=options, progress=False)


@pytest.fixture(scope="module")
def retrained(data, shadows):
    train, test = data
    return km.audit(fit(*train, seed=5), train, test, options=km.AuditOptions(retrain=shadows))


def test_wrong_labels_that_the_network_fits_are_flagged(retrained):
    document, table = retrained.document, retrained.to_frame()
    assert document.verdict.status == "memorized", document.verdict
    assert document.how_much.method == "retraining"
    assert document.how_much.n_models == 96
    assert table.flagged[:WRONG].sum() >= 6
    assert document.how_much.fraction.low > 0.05
    assert document.how_much.fraction.high >= WRONG / N
    assert document.how_much.fraction.low < 0.7**1.5 * document.how_much.fraction.value  # training on all rows
    assert document.how_much.control.high < 0.05
    assert document.power.smallest_count == 1
    assert 0 < document.power.smallest_effect < 1
    assert table.score.corr(table.memorization, method="spearman") > 0.5
    assert document.rows[0].predicted_effect == table.memorization[document.rows[0].index]
    assert document.rows[0].standard_error is not None
    assert document.agreements[0].name == "negative leave-one-out margin"
    assert all(agreement.spearman <= agreement.ceiling + 0.2 for agreement in document.agreements)
    names = [(attack.name, attack.level) for attack in document.leak.attacks]
    assert names == [
        ("loss", "model"),
        ("calibrated loss", "model"),
        ("likelihood ratio (offline LiRA)", "model"),
        ("likelihood ratio (LiRA)", "algorithm"),
    ]
    for attack in document.leak.attacks:
        assert attack.null_auc.low < 0.6
        assert attack.auc.low <= attack.auc.value <= attack.auc.high
    assert document.leak.attacks[3].auc.value > 0.55


@pytest.mark.usefixtures("without_blind_baseline")
def test_a_network_that_never_saw_the_rows_fails_the_shadow_fidelity(data, shadows):
    train, test = data
    document = km.audit(fit(*test, seed=5), train, test, options=km.AuditOptions(retrain=shadows)).document
    gate = next(gate for gate in document.gates if gate.name == "shadow fidelity")
    assert gate.passed is False
    assert document.verdict.status == "no-claim"


@pytest.mark.usefixtures("without_blind_baseline")
def test_shadow_models_of_other_rows_are_refused(data, shadows):
    train, test = data
    network = fit(*train, seed=5)
    few = shadows.select(torch.arange(3))
    more = [torch.nn.functional.pad(outputs, (0, 1)) for outputs in (shadows.logits, shadows.test_logits)]
    for wrong, words in (
        (replace(shadows, labels=1 - shadows.labels), "other labels"),
        (replace(shadows, logits=more[0], test_logits=more[1]), "3 outputs"),
        (few, "fewer than two"),
    ):
        with pytest.raises(km.InputError, match=words):
            km.audit(network, train, test, options=km.AuditOptions(retrain=wrong))
    with pytest.raises(km.InputError, match="budget"):
        km.audit(network, train, test, options=km.AuditOptions(retrain=TRAINING, budget=1e-6))
    with pytest.raises(km.InputError, match="retrain"):
        km.AuditOptions(retrain=lambda rows: None)


@pytest.mark.parametrize(("control_high", "passed"), [(0.0, True), (0.05, True), (0.0501, False), (0.4, False)])
def test_memorization_with_permuted_memberships_fails_its_gate_and_blanks_the_headline(
    data, shadows, inputs, retrained, control_high, passed
):
    document, correct = retrained.document, retrained.rows.network_correct
    gates = conclusions.retraining_gates(
        retraining_scores(shadows, seed=0), inputs, correct, control_high, torch.arange(M)
    )
    assert [gate.passed for gate in gates] == [True, passed]
    others = tuple(gate for gate in document.gates if gate.name not in {gate.name for gate in gates})
    verdict = conclusions.verdict(
        (*others, *gates), document.how_much, document.power, document.data, inputs.labels.note
    )
    assert verdict.status == ("memorized" if passed else "no-claim")


def test_models_on_subsets_are_trained_for_equal_epochs(data, inputs):
    """Models on half of the rows take half of the steps, so that they see each of their rows as often as the network."""
    subsets = [torch.arange(0, N, 2), torch.arange(1, N, 2)]
    equal, half, all_steps = (
        subset_outputs(inputs, EnsembleTraining(Recipe(lr=0.05, steps=steps, batch_size=8), 5, equal_epochs=e), subsets, [1, 2])
        for steps, e in ((20, True), (10, False), (20, False))
    )  # fmt: skip
    assert torch.equal(equal, half)
    assert not torch.equal(equal, all_steps)


def test_verified_effects_are_those_of_literal_retraining_and_equal_for_a_users_function(data, inputs):
    x, y = data[0]
    together = verify_rows(inputs, TRAINING, [0, 20], seed=0, pairs=3)
    single = verify_rows(inputs, lambda indices, seed: fit(x[indices], y[indices], seed), [0, 20], seed=0, pairs=3)
    seeds = np.random.default_rng(0).integers(2**31 - 2, size=3).tolist()
    for row in (0, 20):
        keep = torch.arange(N) != row
        literal = [
            float(
                (fit(x, y, seed)(x[row]).softmax(0) - fit(x[keep], y[keep], seed)(x[row]).softmax(0))[y[row]].detach()
            )
            for seed in seeds
        ]
        for result in (together, single):
            assert result[row].value == pytest.approx(np.mean(literal), abs=2e-3)
            assert result[row].low <= result[row].value <= result[row].high
    assert together[0].value > together[20].value
