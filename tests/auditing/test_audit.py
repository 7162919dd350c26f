"""km.audit on small real networks: what it says, what it refuses, that it repeats (the page: report/)."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kernelmem as km
from kernelmem.auditing import AuditOptions
from kernelmem.training.classifier import train_classifier
from kernelmem.training.datasets import digits
from kernelmem.training.mlp import standardized_mlp


def same_rows(a, b):
    return a.to_frame().equals(b.to_frame())


def test_finds_the_flips(result, trained):
    document = result.document
    assert document.verdict.status == "memorized", document.verdict
    assert document.how_much.method == "kernel"
    assert document.model.train_accuracy == 1.0
    assert document.how_much.fraction.low < 0.15 + 0.1 < document.how_much.fraction.high + 0.1
    assert document.how_much.p_value < 0.001
    assert document.how_much.control.low < 0 < document.how_much.control.high
    assert document.flips.n == 22
    assert document.flips.auroc.value > 0.97
    assert abs(document.flips.permuted_auroc - 0.5) < 3 * document.flips.permuted_sd / 200**0.5 + 1e-12
    assert all(gate.passed for gate in document.gates)
    flipped = trained[3].numpy()
    rows = result.to_frame()
    assert (rows.flagged & flipped).sum() >= 18
    assert document.suspected.known_flips == 22
    assert document.suspected.known_flips_suspected >= 18
    assert sum(row.reason == "mislabelled" for row in document.rows) >= 8


def test_rows_and_document_agree(result):
    document, table = result.document, result.to_frame()
    assert document.how_much.n_flagged == int(table.flagged.sum())
    assert sum(s.n_flagged for s in document.slices if s.kind == "class") == document.how_much.n_flagged
    assert [row.score for row in document.rows] == [float(table.score[row.index]) for row in document.rows]
    flags = [row.flagged for row in document.rows]
    assert flags == sorted(flags, reverse=True)
    assert (table.flagged == (table.network_correct & (table.loo_margin < 0))).all()


def test_a_network_that_never_saw_the_rows_has_memorized_none_of_them(trained):
    """Negative control: neither the audited rows nor the control rows are training rows of this network."""
    model, _, (x, y), _ = trained
    data = digits(n_train=150, seed=5)
    rest = data.x_test[200:350], data.y_test[200:350]
    document = km.audit(model, rest, (x, y)).document
    assert document.verdict.status in ("nothing-found", "no-claim")
    assert document.how_much.p_value > 0.01
    assert document.how_much.fraction.low < 0


def test_same_seed_same_bytes_apart_from_seconds(trained, result, tmp_path):
    model, train, test, flipped = trained
    torch.manual_seed(123)
    options = AuditOptions(image_shape=(8, 8), date="2026-01-02", show_rows=True)
    km.audit(model, train, test, flipped=flipped, out=tmp_path / "o", options=options)
    loaded = km.Audit.load(tmp_path / "o")
    again, first = loaded.to_dict(), result.to_dict()
    assert first.pop("seconds") > 0
    again.pop("seconds")
    assert json.dumps(first) == json.dumps(again)
    assert same_rows(loaded, result)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["audit.html", "audit.json", "rows.csv", "rows.npz"]
    with pytest.raises(km.InputError, match="older report"):
        km.audit(model, train, test, out=tmp_path / "o")


def test_flips_do_not_enter_the_analysis_and_no_row_leaves_the_data_by_default(trained, result):
    model, (x, y), test, _ = trained
    blind = km.audit(model, (x, y), test, options=AuditOptions(image_shape=(8, 8), auditor="A", purpose="B"))
    assert same_rows(blind, result)
    assert blind.document.flips.auroc is None
    assert blind.document.images == blind.document.features == {}
    assert not blind.document.context.rows_shown
    assert blind.document.context.auditor == "A"
    assert result.document.images
    assert "data:image" not in blind.to_json()


@pytest.mark.usefixtures("without_blind_baseline")
def test_a_redacted_audit_has_row_indices_only(trained, result):
    model, train, test, _ = trained
    redacted = km.audit(model, train, test, options=AuditOptions(redact=True))
    document = redacted.document
    assert document.context.redacted
    assert {row.label for row in document.rows} == {row.predicted_without for row in document.rows} == {None}
    assert {other.label for row in document.rows for other in row.influential} == {None}
    assert {row.label for row in document.suspected.rows} == {record.label for record in document.leak.worst} == {None}
    assert (redacted.to_frame().label == -1).all()
    assert (redacted.to_frame().score == result.to_frame().score).all()
    with pytest.raises(km.InputError, match="redact"):
        AuditOptions(redact=True, show_rows=True)


def test_save_load_frame_plot(result, tmp_path):
    result.save(tmp_path)
    loaded = km.Audit.load(tmp_path)
    assert loaded.document == result.document
    assert same_rows(loaded, result)
    assert result.plot().axes
    text = repr(result)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 130
    assert "NaN" not in result.to_json()


def test_the_numbers_are_on_disk_before_the_report_is_drawn(result, tmp_path, monkeypatch):
    (tmp_path / "audit.html").write_text("an older report")

    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("kernelmem.auditing.report.render_page", fail)
    with pytest.raises(RuntimeError, match="no fonts"):
        result.save(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "rows.csv", "rows.npz"]
    assert km.Audit.load(tmp_path).document == result.document


@pytest.mark.usefixtures("without_blind_baseline")
def test_progress_counts_stages_and_the_model_stays_in_training_mode(trained):
    model, train, test, _ = trained
    calls = []
    model.train()
    km.audit(model, train, test, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 6) for k in range(7)]
    assert all(m.training for m in model.modules())
    model.eval()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.replace('"schema_version": 4', '"schema_version": 2'), km.InputError),
        (lambda t: t[: len(t) // 2], km.FileCorruptError),
        (lambda t: t.replace('"n_train": 150', '"n_train": "many"'), km.FileCorruptError),
        (lambda t: t.replace('"verdict"', '"verdikt"'), km.FileCorruptError),
        (lambda t: t.replace('"n_train": 150', '"n_train": 301'), km.FileCorruptError),
        (lambda t: "[1]", km.FileCorruptError),
    ],
)
def test_altered_audit_files(result, tmp_path, change, error):
    (tmp_path / "audit.json").write_text(change(result.to_json()), encoding="utf-8")
    with pytest.raises(error):
        km.Audit.load(tmp_path)


@pytest.mark.usefixtures("without_blind_baseline")
def test_low_fidelity_blanks_the_headline(trained):
    """A network whose outputs its tangents cannot follow: a rough function of the input is added, free of parameters."""

    class Scrambled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + 30 * torch.sin(1e3 * x[:, 20:30])

    model, train, test, _ = trained
    document = km.audit(Scrambled(model), train, test).document
    assert document.fidelity.agreement < document.fidelity.agreement_required
    assert document.verdict.status == "no-claim"
    assert "surrogate fidelity" in document.verdict.headline


def test_rows_that_differ_without_the_network_blank_the_headline(trained):
    model, (x, y), (x_test, y_test), _ = trained
    document = km.audit(model, (x, y), (x_test + 0.2, y_test)).document
    assert next(gate.name for gate in document.gates if gate.passed is False) == "blind baseline"
    assert document.verdict.status == "no-claim"


@pytest.mark.usefixtures("without_blind_baseline")
def test_duplicates_and_near_duplicates_are_counted_and_grouped(trained):
    model, (x, y), (x_test, y_test), _ = trained
    doubled = (torch.cat([x, x[:3]]), torch.cat([y, (y[:3] + torch.tensor([0, 1, 1])) % 10]))
    leaked = (torch.cat([x_test, x[:5], x_test[:4] + 1e-4]), torch.cat([y_test, y[:5], y_test[:4]]))
    result = km.audit(model, doubled, leaked)
    duplicates = result.document.data.duplicates
    assert (duplicates.train, duplicates.conflicting, duplicates.across) == (3, 2, 5)
    assert duplicates.near_train >= 6
    assert duplicates.near_across >= 5
    assert duplicates.near_test >= 8
    assert (result.rows.group[:3] == result.rows.group[150:]).all()
    assert not set(range(150, 155)) & set(result.rows.control_index.tolist())
    assert len(result.rows.control_index) <= 150
    with pytest.raises(km.InputError, match="also a training row"):
        km.audit(model, (x, y), (x[:9], y[:9]))
    with pytest.raises(km.InputError, match="near-copies"):
        km.audit(model, (x, y), (x[:9] + 1e-5, y[:9]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": lambda x, y: (x, y[:-1])}, r"y_train of shape \(149,\)"),
        ({"train": lambda x, y: (x * torch.nan, y)}, "x_train .*NaN"),
        ({"train": lambda x, y: (x, torch.zeros_like(y))}, "one class"),
        ({"train": lambda x, y: (x, y + 1)}, "10 outputs for labels up to 10"),
        ({"train": lambda x, y: (x[:0], y[:0])}, r"x_train of shape \(0, 64\)"),
        ({"train": lambda x, y: x}, "train"),
        ({"test": lambda x, y: (x[:, :9], y)}, "same shape"),
        ({"test": lambda x, y: (x, [str(label) for label in y])}, "text in y_test only"),
        ({"options": {"n_classes": 12}}, "12 outputs"),
        ({"options": {"groups": [1, 2]}}, "groups"),
        ({"options": {"class_names": ["a", "b"]}}, "class_names with 2 entries"),
        ({"model": standardized_mlp(torch.zeros(2, 64), 7, seed=0)}, "7 outputs"),
        ({"seed": -1}, "seed"),
        ({"flipped": [True]}, "flipped"),
        ({"options": {"image_shape": (9, 9)}}, "image_shape"),
    ],
)
def test_bad_input_writes_nothing(trained, tmp_path, change, words):
    model, train, test, _ = trained
    arguments = {"model": model, "train": train, "test": test}
    options = AuditOptions(**change.pop("options", {}))
    for key, value in change.items():
        arguments[key] = value(*arguments[key]) if key in ("train", "test") else value
    with pytest.raises(km.InputError, match=words):
        km.audit(**arguments, out=tmp_path / "o", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_blind_baseline")
def test_one_logit_counts_as_two_outputs(binary):
    model, train, test = binary
    audits = [
        km.audit(model, train, test, forward=forward)
        for forward in (lambda m, b: nn.functional.pad(m(b), (1, 0)), None)
    ]
    logit = model(train[0])[:, 0]
    assert audits[0].document.model.train_accuracy == float(((logit > 0) == train[1].bool()).double().mean())
    assert all(same_rows(other, audits[0]) for other in audits[1:])


@pytest.mark.usefixtures("without_blind_baseline")
def test_labels_as_people_have_them(binary):
    model, (x, y), (x_test, y_test) = binary
    plain = km.audit(model, (x, y), (x_test, y_test))
    words = np.array(["no", "yes"])
    for names, encode in (
        (("1", "2"), lambda labels: labels + 1),
        (("-1", "1"), lambda labels: 2 * labels - 1),
        (("no", "yes"), lambda labels: words[labels.numpy()]),
        (("no", "yes"), lambda labels: words[labels.numpy()].tolist()),
    ):
        other = km.audit(model, (x, encode(y)), (x_test, encode(y_test)))
        assert other.document.data.class_names == names
        assert same_rows(other, plain)
    named = AuditOptions(class_names=["healthy", "ill"], groups={"site": ["a"] * 45 + ["b"] * 45})
    document = km.audit(model, (x, y), (x_test, y_test), options=named).document
    assert [(s.kind, s.name) for s in document.slices] == [
        ("class", "healthy"),
        ("class", "ill"),
        ("group", "a"),
        ("group", "b"),
    ]
    assert all(s.adjusted_p is not None and s.fraction is not None for s in document.slices)


@pytest.mark.usefixtures("without_blind_baseline")
def test_datasets_loaders_and_dicts_are_read(binary):
    model, (x, y), (x_test, y_test) = binary
    arrays = km.audit(model, (x, y), (x_test, y_test))
    assert arrays.document.compression.status == "estimated"
    train, test = TensorDataset(x, y), TensorDataset(x_test, y_test)
    as_dict = {"a": x_test[:, :2], "b": (x_test[:, 2:],)}
    for given, forward in (
        ((train, DataLoader(test, batch_size=7)), None),
        (
            (({"a": x[:, :2], "b": (x[:, 2:],)}, y), (as_dict, y_test)),
            lambda m, b: m(torch.cat([b["a"], b["b"][0]], 1)),
        ),
    ):
        other = km.audit(model, *given, forward=forward)
        assert same_rows(other, arrays)
        assert other.document.compression == arrays.document.compression
        assert other.document.data.input_shape == (5,)
    with pytest.raises(km.InputError, match="RandomSampler"):
        km.audit(model, DataLoader(train, shuffle=True), test)


@pytest.mark.usefixtures("without_blind_baseline")
def test_rounding_errors_of_a_network_that_is_its_own_surrogate_are_no_finding(binary):
    _, (x, y), test = binary
    model = nn.Linear(5, 2)
    train_classifier(model, x, y, epochs=5, seed=0)
    result = km.audit(model, (x, y), test)
    assert result.document.fidelity.agreement == 1
    assert result.document.verdict.status in ("nothing-found", "no-claim")
    assert result.document.how_much.p_value > 0.01
    assert set(result.to_frame().surrogate_difference) == {0.0}


@pytest.mark.usefixtures("without_blind_baseline")
def test_classes_may_be_missing(trained):
    model, (x, y), (x_test, y_test), _ = trained
    keep, keep_test = (labels < 8 for labels in (y, y_test))
    document = km.audit(model, (x[keep], y[keep]), (x_test[keep_test], y_test[keep_test])).document
    assert document.data.n_classes == 10
    assert document.slices[9].fraction is None


def test_weights_that_give_nan_are_refused(trained, tmp_path):
    _, train, test, _ = trained
    model = standardized_mlp(train[0], 10, seed=0)
    with torch.no_grad():
        model[1].weight.fill_(3e38)
        model[3].weight.fill_(torch.inf)
    with pytest.raises(km.NumericalError, match="outputs"):
        km.audit(model, train, test, out=tmp_path / "o")
    assert list(tmp_path.iterdir()) == []
