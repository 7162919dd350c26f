"""km.audit on small real networks: what it says, what it refuses, that it repeats (the report: test_report.py)."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kernelmem as km
from kernelmem.auditing.analysis import analyze
from kernelmem.auditing.audit import AuditOptions
from kernelmem.kernel_machines.equivalence.fidelity import margin
from kernelmem.kernels import reference
from kernelmem.training.classifier import train_classifier
from kernelmem.training.datasets import digits
from kernelmem.training.mlp import standardized_mlp


@pytest.fixture(scope="module")
def trained():
    """300 digits with 15 % of the labels flipped, and a network that fits them all."""
    data = digits(n_train=300, seed=5)
    noisy = km.corrupt_labels(data.y_train, 0.15, seed=11)
    model = standardized_mlp(data.x_train, 10, widths=(64,), seed=0)
    train_classifier(model, data.x_train, noisy.y, epochs=150, batch_size=32, lr=3e-3, seed=0)
    return model, (data.x_train, noisy.y), (data.x_test[:400], data.y_test[:400]), noisy.flipped


@pytest.fixture(scope="module")
def result(trained):
    model, train, test, flipped = trained
    return km.audit(model, train, test, flipped=flipped, options=AuditOptions(image_shape=(8, 8)))


def test_finds_the_flips(result, trained):
    document = result.document
    assert document.verdict.status == "memorized"
    assert document.model.train_accuracy == 1.0
    assert document.flips.n == 45
    assert document.flips.auroc > 0.97
    assert abs(document.flips.permuted_auroc - 0.5) < 3 * document.flips.permuted_sd / 200**0.5 + 1e-12
    assert document.fidelity.agreement > 0.9
    flipped = set(trained[3].nonzero().flatten().tolist())
    assert sum(e.index in flipped for e in document.examples) >= 8


def test_every_number_from_literal_refits(trained, result):
    """The definition: refit both regressions without the row, by plain linear algebra on the reference's kernel."""
    model, (x, y), (x_test, y_test), _ = trained
    document = result.document
    double = standardized_mlp(x, 10, widths=(64,), seed=0).double()
    double.load_state_dict(model.state_dict())
    J, J_test = reference.jacobian(double, x.double()), reference.jacobian(double, x_test[:20].double())
    K, K_test = reference.kernel_of(J, J), reference.kernel_of(J_test, J)
    F = double(x.double()).detach()
    F = F - F.mean(1, keepdim=True)
    Y = torch.eye(10, dtype=torch.float64)[y] - 0.1
    eye = torch.eye(len(x), dtype=torch.float64)
    for i in (0, 17, 299):
        keep = torch.arange(len(x)) != i
        for targets, ridge, which in (
            (Y, document.fidelity.label_regression_ridge, "label"),
            (F, document.fidelity.surrogate_ridge, "network"),
        ):
            inner = (K + ridge * eye)[keep][:, keep]
            without = K[i, keep] @ torch.linalg.solve(inner, targets[keep])
            full = K[i] @ torch.linalg.solve(K + ridge * eye, targets)
            loo_margin = float(margin(without[None], y[i : i + 1]))
            if which == "label":
                assert document.memorization.label_memorization[i] == pytest.approx(
                    float((full - without)[y[i]]), abs=1e-7
                )
                assert document.memorization.loo_margin[i] == pytest.approx(loo_margin, abs=1e-7)
                assert document.memorization.loo_prediction[i] == int(without.argmax())
            else:
                expected = float(margin(F[i : i + 1], y[i : i + 1])) - loo_margin
                assert document.memorization.network_memorization[i] == pytest.approx(expected, abs=1e-5)
    alpha = torch.linalg.solve(K + document.fidelity.surrogate_ridge * eye, F)
    outputs = double(x_test[:20].double()).detach()
    expected = margin(outputs, y_test[:20]) - margin(K_test @ alpha, y_test[:20])
    assert np.allclose(document.memorization.null[:20], expected.numpy(), atol=1e-5)


def test_null_threshold_and_count(result):
    memorization = result.document.memorization
    assert memorization.threshold == np.quantile(memorization.null, 0.99, method="higher")
    assert set(memorization.memorized) == set(
        np.flatnonzero(np.array(memorization.network_memorization) > memorization.threshold).tolist()
    )
    statistics = [memorization.network_memorization[i] for i in memorization.memorized]
    assert statistics == sorted(statistics, reverse=True)
    assert memorization.null_mean == pytest.approx(np.mean(memorization.null))
    assert memorization.null_se == pytest.approx(np.std(memorization.null, ddof=1) / len(memorization.null) ** 0.5)


def test_a_network_that_never_saw_the_rows_has_memorized_none_of_them(trained):
    """Negative control: neither the audited rows nor the null rows are training rows of this network."""
    model, _, (x, y), _ = trained
    data = digits(n_train=300, seed=5)
    rest, labels = data.x_test[400:], data.y_test[400:]
    result = km.audit(model, (rest[:200], labels[:200]), (x, y))
    document = result.document
    assert document.verdict.status in ("nothing-found", "no-claim")
    assert document.memorization.p_value > 0.01


def test_the_count_has_its_exact_law_under_exchangeability():
    """p-values of the memorized count, over random kernels where train and test rows are alike, are not too small."""
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for _ in range(60):
        features = torch.randn(130, 6, generator=generator, dtype=torch.float64)
        outputs = features @ torch.randn(6, 3, generator=generator, dtype=torch.float64)
        outputs += 0.3 * torch.randn(130, 3, generator=generator, dtype=torch.float64)
        K = features @ features.T + 1
        labels = outputs.argmax(1)
        # leave-one-out on both sides: the surrogate is fitted to rows of neither half
        memorization = analyze(
            K[:50, :50] + 0.0,
            K[50:, :50],
            outputs[:50],
            outputs[50:],
            labels[:50],
            labels[50:],
            unseen=torch.ones(80, dtype=torch.bool),
        ).memorization
        p_values.append(memorization.p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.15


def test_same_seed_same_bytes_apart_from_seconds(trained, result, tmp_path):
    model, train, test, flipped = trained
    torch.manual_seed(123)
    options = AuditOptions(image_shape=(8, 8))
    km.audit(model, train, test, flipped=flipped, out=tmp_path / "o", options=options)
    again = km.Audit.load(tmp_path / "o").to_dict()
    first = result.to_dict()
    assert first.pop("seconds") > 0
    again.pop("seconds")
    assert json.dumps(first) == json.dumps(again)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["audit.html", "audit.json"]


def test_flips_do_not_enter_the_analysis(trained, result):
    model, train, test, _ = trained
    blind = km.audit(model, train, test, options=AuditOptions(image_shape=(8, 8))).document
    assert blind.memorization == result.document.memorization
    assert blind.fidelity == result.document.fidelity
    assert blind.flips.auroc is None
    assert blind.flips.n is None


def test_json_has_what_is_promised(result):
    content = result.to_dict()
    assert content["schema_version"] == 2
    assert set(content["data"]) >= {"n_train", "n_test", "n_classes", "sha256"}
    assert set(content["model"]) >= {"n_parameters", "train_accuracy", "test_accuracy", "sha256"}
    promised = {
        "agreement",
        "relative_error",
        "label_regression_agreement",
        "label_regression_ridge",
        "surrogate_ridge",
    }
    assert set(content["fidelity"]) >= promised
    assert [
        len(content["memorization"][k]) for k in ("label_memorization", "loo_margin", "network_memorization", "null")
    ] == [
        300,
        300,
        300,
        400,
    ]
    assert set(content["flips"]) >= {"auroc", "n"}
    assert {"seed", "versions", "seconds"} <= set(content)


def test_save_load_frame_plot(result, tmp_path):
    result.save(tmp_path)
    loaded = km.Audit.load(tmp_path)
    assert loaded.document == result.document
    assert loaded.to_html() == result.to_html()
    frame = result.to_frame()
    assert list(frame.columns) == [
        "label_memorization",
        "loo_margin",
        "network_memorization",
        "loo_prediction",
        "memorized",
    ]
    assert int(frame.memorized.sum()) == len(result.document.memorization.memorized)
    assert result.plot().axes
    text = repr(result)
    assert "memorized" in text
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 120
    assert "<table" in result._repr_html_()


def test_the_numbers_are_on_disk_before_the_report_is_drawn(result, tmp_path, monkeypatch):
    (tmp_path / "audit.html").write_text("an older report")

    def fail(_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("kernelmem.auditing.report.render", fail)
    with pytest.raises(RuntimeError, match="no fonts"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]
    assert km.Audit.load(tmp_path).document == result.document


def test_progress_counts_stages(trained):
    model, train, test, _ = trained
    calls = []
    km.audit(model, train, test, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 4) for k in range(5)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.replace('"schema_version": 2', '"schema_version": 1'), km.InputError),
        (lambda t: t[: len(t) // 2], km.FileCorruptError),
        (lambda t: t.replace('"n_train": 300', '"n_train": "many"'), km.FileCorruptError),
        (lambda t: t.replace('"verdict"', '"verdikt"'), km.FileCorruptError),
        (lambda t: t.replace('"n_train": 300', '"n_train": 301'), km.FileCorruptError),
        (lambda t: "[1]", km.FileCorruptError),
    ],
)
def test_altered_audit_files(result, tmp_path, change, error):
    (tmp_path / "audit.json").write_text(change(result.to_json()), encoding="utf-8")
    with pytest.raises(error):
        km.Audit.load(tmp_path)


def test_the_model_is_left_in_training_mode(trained):
    model, train, test, _ = trained
    model.train()
    km.audit(model, train, test)
    assert model.training
    assert all(m.training for m in model.modules())
    model.eval()


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
    assert "No claim" in document.verdict.headline


def test_rows_that_are_not_images(trained):
    model, train, test, _ = trained
    document = km.audit(model, train, test).document
    assert document.images == {}
    assert {str(e.index) for e in document.examples} <= set(document.features)


def test_duplicates_are_counted_and_kept_out_of_the_null(trained):
    model, (x, y), (x_test, y_test), _ = trained
    doubled = (torch.cat([x, x[:3]]), torch.cat([y, (y[:3] + torch.tensor([0, 1, 1])) % 10]))
    leaked = (torch.cat([x_test, x[:5]]), torch.cat([y_test, y[:5]]))
    document = km.audit(model, doubled, leaked).document
    assert document.data.duplicates_train == 3
    assert document.data.duplicates_conflicting == 2
    assert document.data.duplicates_train_test == 5
    assert document.memorization.threshold == np.quantile(document.memorization.null[:400], 0.99, method="higher")
    with pytest.raises(km.InputError, match="also a training row"):
        km.audit(model, (x, y), (x[:9], y[:9]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": lambda x, y: (x, y[:-1])}, r"y_train of shape \(299,\)"),
        ({"train": lambda x, y: (x * torch.nan, y)}, "x_train .*NaN"),
        ({"train": lambda x, y: (x, torch.zeros_like(y))}, "one class"),
        ({"train": lambda x, y: (x, y + 1)}, "10 outputs for labels up to 10"),
        ({"train": lambda x, y: (x[:0], y[:0])}, r"x_train of shape \(0, 64\)"),
        ({"train": lambda x, y: x}, "train"),
        ({"test": lambda x, y: (x[:, :9], y)}, "same shape"),
        ({"n_classes": 12}, "12 outputs"),
        ({"model": standardized_mlp(torch.zeros(2, 64), 7, seed=0)}, "7 outputs"),
        ({"model": standardized_mlp(torch.zeros(2, 64), 12, seed=0)}, "n_classes=12"),
        ({"seed": -1}, "seed"),
        ({"flipped": [True]}, "flipped"),
        ({"image_shape": (9, 9)}, "image_shape"),
    ],
)
def test_bad_input_writes_nothing(trained, tmp_path, change, words):
    model, train, test, _ = trained
    arguments = {"model": model, "train": train, "test": test}
    options = AuditOptions(image_shape=change.pop("image_shape", None), n_classes=change.pop("n_classes", None))
    for key, value in change.items():
        arguments[key] = value(*arguments[key]) if key in ("train", "test") else value
    with pytest.raises(km.InputError, match=words):
        km.audit(**arguments, out=tmp_path / "o", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def binary():
    """A binary classifier with one logit, its training and test data."""
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(160, 5, generator=rng), torch.randn(160, generator=rng)
    y = (x[:, 0] + 0.5 * noise > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    train_classifier(model, x[:90], y[:90], epochs=60, lr=1e-2, seed=0)
    return model, (x[:90], y[:90]), (x[90:], y[90:])


def test_one_logit_counts_as_two_outputs(binary):
    model, train, test = binary
    forwards = (
        lambda m, b: nn.functional.pad(m(b), (1, 0)),
        None,
        lambda m, b: m(b)[:, 0],
    )
    documents = [km.audit(model, train, test, forward=forward).document for forward in forwards]
    assert documents[0].data.n_classes == 2
    logit = model(train[0])[:, 0]
    assert documents[0].model.train_accuracy == float(((logit > 0) == train[1].bool()).double().mean())
    for document in documents[1:]:
        assert document.memorization == documents[0].memorization
        assert document.fidelity == documents[0].fidelity


def test_rounding_errors_of_a_network_that_is_its_own_surrogate_are_no_finding(binary):
    _, (x, y), test = binary
    for outputs in (1, 2):
        model = nn.Linear(5, outputs)
        train_classifier(model, x, y, epochs=5, seed=0)
        document = km.audit(model, (x, y), test).document
        assert document.fidelity.agreement == 1
        assert document.verdict.status == "nothing-found"
        assert set(document.memorization.network_memorization) == set(document.memorization.null) == {0.0}


def test_datasets_loaders_and_dicts_are_read(binary):
    model, (x, y), (x_test, y_test) = binary
    arrays = km.audit(model, (x, y), (x_test, y_test)).document
    train, test = TensorDataset(x, y), TensorDataset(x_test, y_test)
    as_dict = {"a": x_test[:, :2], "b": (x_test[:, 2:],)}
    for given, forward in (
        ((train, DataLoader(test, batch_size=7)), None),
        (((train, y), (test, y_test[:, None])), None),
        (
            (({"a": x[:, :2], "b": (x[:, 2:],)}, y), (as_dict, y_test)),
            lambda m, b: m(torch.cat([b["a"], b["b"][0]], 1)),
        ),
        (((x.numpy(), y.numpy()), (x_test.tolist(), y_test.tolist())), None),
    ):
        document = km.audit(model, *given, forward=forward).document
        assert document.memorization == arrays.memorization
        assert document.data.n_train == 90
        assert document.data.input_shape == (5,)
        assert document.features.keys() == arrays.features.keys()
    with pytest.raises(km.InputError, match="RandomSampler"):
        km.audit(model, DataLoader(train, shuffle=True), test)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda y: y + 1, "pass y - 1"),
        (lambda y: 3 * y, "numpy.unique"),
        (lambda y: torch.arange(len(y)) % 3, "3 outputs"),
    ],
)
def test_hints_about_labels_of_a_binary_model(binary, change, hint):
    model, (x, y), (x_test, y_test) = binary
    with pytest.raises(km.InputError, match=hint):
        km.audit(model, (x, change(y)), (x_test, change(y_test)))


def test_weights_that_give_nan_are_refused(trained, tmp_path):
    _, train, test, _ = trained
    model = standardized_mlp(train[0], 10, seed=0)
    with torch.no_grad():
        model[1].weight.fill_(3e38)
        model[3].weight.fill_(torch.inf)
    with pytest.raises(km.NumericalError, match="outputs"):
        km.audit(model, train, test, out=tmp_path / "o")
    assert list(tmp_path.iterdir()) == []
