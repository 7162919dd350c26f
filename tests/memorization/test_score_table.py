"""The table of all scores, and the direction of every score on planted flips."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.memorization import training_dynamics
from kernelmem.memorization.leave_one_out import leave_one_out_margin
from kernelmem.memorization.retraining import feldman_zhang
from kernelmem.memorization.score_table import ScoreTable, memorization_scores
from kernelmem.memorization.shadows import ShadowIdentity
from kernelmem.statistics import spearman
from kernelmem.training import digits

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 30, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.arange(30) % 4
HISTORY = training_dynamics.TrainingHistory.from_arrays(LOGITS, LABELS)


def as_score(values, name="a", **fields):
    options = {"level": "model", "n_models": 1, "meaning": "", "source": ""} | fields
    return km.Score(torch.as_tensor(values, dtype=torch.float64), None, name, **options)


def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Digits with 15 % flips that two networks fit, one of them recorded."""
    data = digits(n_train=300, seed=1)
    noisy = km.corrupt_labels(data.y_train, 0.15, seed=2)
    model = network(0)
    options = km.FitOptions(batch_size=300, optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
    directory = tmp_path_factory.mktemp("run") / "run"
    run = km.fit(model, data.x_train, noisy.y, out=directory, epochs=60, seed=0, options=options)
    recorded = km.training_history(
        run, model, data.x_train, noisy.y, every=6, gradients=["weights", "inputs"], progress=False
    )
    other = network(1)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.05)
    recorder = km.HistoryRecorder(noisy.y)
    for step in range(61):
        outputs = other(data.x_train)
        if step % 6 == 0:
            recorder.update(step, outputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs, noisy.y).backward()
        optimizer.step()
    return data, noisy, [recorded, recorder.history()], run, model


@pytest.mark.parametrize("n_runs", [1, 2])
def test_every_score_is_larger_on_planted_flips(planted, n_runs):
    data, noisy, histories, _, model = planted
    history = km.TrainingHistory.join(histories[:n_runs])
    assert float(history.is_correct()[:, -1].double().mean()) > 0.97  # flips are fitted
    kernel = km.infinite_ntk(data.x_train.double(), depth=2)
    fit = km.leave_one_out(kernel, noisy.y, km.choose_ridge(kernel, noisy.y).ridge)
    issues = km.find_label_issues(km.to_pred_probs(fit), noisy.y)
    depth = training_dynamics.prediction_depth(model, data.x_train, noisy.y)
    table = km.memorization_scores(history, fit, km.estimate_label_noise(kernel, noisy.y), issues, depth)
    assert len(table.names) == (18 if n_runs == 1 else 15)  # the second history has no gradients
    flipped = noisy.flipped
    for name in table.names:
        values = table.score(name)
        if name != "variance of gradients":  # no larger for wrong labels in networks of two layers
            assert values[flipped].mean() > values[~flipped].mean(), name
    strong = ("EL2N", "GraNd", "cumulative", "area", "kernel leave-one-out margin", "suspicion")
    for name in table.names:
        if name.startswith(strong):
            assert km.detect(table.score(name), flipped, seed=0).auroc > 0.93, name
    assert sum(bool(noisy.flipped[i]) for i, _ in table.top(20)) >= 16


def test_second_split_forgetting_and_self_influence_are_larger_on_planted_flips(planted):
    data, noisy, histories, run, model = planted
    score = training_dynamics.self_influence_score(run, model, data.x_train, noisy.y, method="last", progress=False)
    assert score.values[noisy.flipped].mean() > score.values[~noisy.flipped].mean()
    model = copy.deepcopy(model).train()
    # a second training on other rows: the flips of the first are forgotten first
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    recorder = km.HistoryRecorder(noisy.y)
    for epoch in range(1, 16):
        nn.functional.cross_entropy(model(data.x_test[:300]), data.y_test[:300]).backward()
        optimizer.step()
        optimizer.zero_grad()
        recorder.update(epoch, model(data.x_train))
    score = training_dynamics.second_split_forgetting(histories[0], recorder.history())
    assert score.values[noisy.flipped].mean() > score.values[~noisy.flipped].mean()


def test_agreement_and_correlation_are_spearmans(tmp_path):
    a, b, c = (torch.randn(30, generator=GENERATOR, dtype=torch.float64) for _ in range(3))
    reference = as_score(a + b, "retraining", level="algorithm")
    table = memorization_scores(as_score(a), as_score(b), as_score(c), reference=reference, reliability=0.64)
    assert table.names == ("a", "a (2)", "a (3)")
    for i, values in enumerate((a, b, c)):
        assert table.agreement[i, 0] == spearman(values, a + b)
        assert table.agreement[i, 1] <= table.agreement[i, 0] <= table.agreement[i, 2]
        assert float(table.corrected[i]) == pytest.approx(spearman(values, a + b) / 0.8)
    assert table.ceiling == pytest.approx(0.8)
    assert float(table.correlation[0, 2]) == spearman(a, c)
    assert "ceiling 0.80" in str(table)
    loaded = ScoreTable.load(table.save(tmp_path / "table"))
    assert torch.equal(loaded.values, table.values)
    assert list(table.to_frame()) == ["a", "a (2)", "a (3)", "retraining"]
    ranks = (np.argsort(np.argsort(torch.stack([a, b, c], 1).numpy(), axis=0), axis=0) + 0.5) / 30
    assert np.allclose(table.mean_rank, ranks.mean(1), rtol=0, atol=1e-14)
    order = torch.randperm(30, generator=GENERATOR)
    moved = memorization_scores(*(as_score(v[order]) for v in (a, b, c)))
    assert torch.allclose(moved.correlation, table.correlation, rtol=0, atol=1e-12)
    assert torch.equal(moved.mean_rank, table.mean_rank[order])


def test_retraining_is_a_reference_with_its_own_reliability():
    masks = torch.rand(40, 30, generator=GENERATOR) < 0.5
    memorized = torch.arange(30) % 3 == 0
    margins = torch.where(memorized & ~masks, -1.0, 1.0) + 0.7 * torch.randn(40, 30, generator=GENERATOR)
    logits = torch.stack([margins, torch.zeros(40, 30)], 2)
    nothing = torch.zeros(40, 0, 2)
    identity = ShadowIdentity()
    shadows = km.ShadowEnsemble(
        masks, logits, torch.zeros(30, dtype=torch.int64), nothing, torch.zeros(0, dtype=torch.int64), identity
    )
    cheap = as_score(memorized.double() + 0.1 * torch.randn(30, generator=GENERATOR))
    table = memorization_scores(cheap, reference=shadows)
    retraining = feldman_zhang(shadows)
    expected = retraining.agreement(cheap)
    assert float(table.agreement[0, 0]) == expected.spearman
    assert table.reliability == expected.reliability
    assert float(table.corrected[0]) == pytest.approx(expected.corrected)
    assert torch.equal(memorization_scores(cheap, reference=retraining).agreement, table.agreement)
    with pytest.raises(km.InputError, match="leave reliability out"):
        memorization_scores(cheap, reference=shadows, reliability=0.5)


def test_constant_scores_have_no_agreement():
    table = memorization_scores(
        as_score(range(30)), as_score([2.0] * 30, "constant"), reference=as_score(range(30), "retraining")
    )
    assert table.correlation.tolist() == [[1, 0], [0, 1]]
    assert table.agreement[1].tolist() == [0, -1, 1]
    assert "reliability not known" in str(table)
    with pytest.raises(km.InputError, match="one of a, constant"):
        table.score("b")


def test_a_history_gives_the_scores_that_its_contents_allow():
    names = memorization_scores(HISTORY).names
    assert len(names) == 8
    one = training_dynamics.TrainingHistory.from_arrays(LOGITS[:1], LABELS, steps=[0])
    assert "variability" not in memorization_scores(one).names
    assert not any("EL2N" in name for name in memorization_scores(one).names)
    real = training_dynamics.TrainingHistory.from_arrays(LOGITS, torch.zeros(30, 4))
    assert memorization_scores(real).names == ("cumulative loss", "EL2N at step 1")


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([], {}, "no source"),
        ([[HISTORY]], {}, "one by one"),
        ([3], {}, "training_history"),
        ([HISTORY, as_score(range(29))], {}, "of the same examples"),
        ([as_score([1.0, float("nan")] * 15)], {}, "not finite"),
        ([as_score([1.0, 2.0])], {}, "4 rows or more"),
        ([HISTORY], {"reference": LOGITS}, "Score"),
        ([HISTORY], {"reliability": 0.5}, "reference="),
        ([HISTORY], {"reference": as_score(range(30)), "reliability": 0}, "reliability"),
    ],
)
def test_what_does_not_fit_is_refused(sources, options, message):
    with pytest.raises(km.InputError, match=message):
        memorization_scores(*sources, **options)


def test_the_figure_has_a_row_per_score():
    fit = km.leave_one_out(LOGITS[0] @ LOGITS[0].T, LABELS, 0.1)
    table = memorization_scores(HISTORY, fit, reference=leave_one_out_margin(fit), reliability=0.9)
    left, right = table.plot().axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        f"{n}  {i + 1}" for i, n in enumerate(table.names)
    ]
    assert left.get_ylim() == right.get_ylim()
    assert "ceiling 0.95" in right.get_xlabel()
    assert len(memorization_scores(fit).plot().axes) == 1


def test_sources_with_other_labels_are_refused():
    other = LABELS.clone()
    other[:2] = (LABELS[:2] + 1) % 4
    fit = km.leave_one_out(LOGITS[0] @ LOGITS[0].T, other, 0.1)
    with pytest.raises(km.InputError, match="TrainingHistory and LeaveOneOut with 2 different labels"):
        memorization_scores(HISTORY, fit)
    shadows = km.ShadowEnsemble.from_logits(torch.rand(9, 30) < 0.5, torch.randn(9, 30, 4), other)
    with pytest.raises(km.InputError, match="TrainingHistory and ShadowEnsemble with 2 different labels"):
        memorization_scores(HISTORY, reference=shadows)
