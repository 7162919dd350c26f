"""Ledgers as users see them: other data and networks, wrong input, altered files, printed text."""

import dataclasses
import json
import sqlite3

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_breast_cancer, load_wine
from torch import nn

from kernelmem.cli import main
from kernelmem.core.errors import FileCorruptError, InputError, NumericalError, VerificationError
from kernelmem.kernels.ntk import ntk
from kernelmem.kernels.spectrum import spectrum
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.recording.trainers.fit import FitOptions, fit
from kernelmem.recording.verify_model import verify_model
from kernelmem.trajectory.influence.influence import influence
from kernelmem.trajectory.integration.quadrature import Quadrature
from kernelmem.trajectory.ledger.ledger import Ledger, LedgerOptions, ledger
from kernelmem.trajectory.path_kernel.exact_kernel_machine import exact_kernel_machine
from kernelmem.trajectory.path_kernel.path_kernel import path_kernel

WINE = load_wine()
X, Y = (WINE.data - WINE.data.mean(0)) / WINE.data.std(0), WINE.target


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(13, 8), activation(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    """Seven steps of AdamW in float32."""
    model = network()
    return fit(
        model, X, Y, out=tmp_path_factory.mktemp("wine") / "run", epochs=2, seed=0, options=FitOptions(batch_size=48)
    ), model


def refused(call, *words, error=InputError):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("by", ["example", "step"])
def test_steps_of_wide_piecewise_networks_with_momentum_share_a_pass(tmp_path, by):
    """Mean tangents that are formed are cut where the factors of the gradients can be."""
    data = load_breast_cancer()
    x, y = (data.data - data.data.mean(0)) / data.data.std(0), data.target
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 512), nn.ReLU(), nn.Linear(512, 2))
    options = FitOptions(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), batch_size=40)
    run = fit(model, x[:100], y[:100], out=tmp_path / "run", epochs=1, seed=0, options=options)
    found = ledger(run, model, x[:5], by=by)
    assert found.largest_residual < 1e-12
    later = ledger(
        run, model, x[:5], by=by, options=LedgerOptions(steps=(1, 3))
    )  # steps before it are zeros, cut likewise
    assert later.largest_residual < 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"options": {"steps": 3}}, ["steps=3"]),
        ({"options": {"steps": (0.0, 2.0)}}, ["steps=(0.0, 2.0)"]),
        ({"options": {"steps": (5, 2)}}, ["steps=(5, 2)", "<= 8"]),
        ({"options": {"data": X}}, ["data=ndarray", "(x, y)"]),
        ({"options": {"data": (X[:50], Y[:50])}}, ["50 examples", "example 177"]),
        ({"by": 3}, ["by of type int"]),
        ({"by": ["a"] * 17}, ["length 17", "178"]),
        ({"target": ("logit", 3)}, ["3 outputs", "0..2"]),
        ({"target": ("logit", -1)}, ["0..2"]),
        ({"target": "margin", "labels": [0, 1, 3]}, ["label 3", "0..2"]),
        ({"target": "loss", "labels": [0, 1, 3]}, ["label 3", "0..2"]),
        ({"target": lambda f, y: f}, ["a target that gives (", ", 3) for "]),
        ({"target": lambda f, y: f[:, 0].numpy()}, ["ndarray"]),
        ({"target": lambda f, y: f[:, 0].detach()}, ["no derivative"]),
        ({"target": lambda f, y: (f.argmax(1) == 0).double()}, ["no derivative"]),
    ],
)
def test_wrong_arguments_are_named(wine, options, words):
    run, model = wine

    def compute():
        arguments = {name: LedgerOptions(**value) if name == "options" else value for name, value in options.items()}
        ledger(run, model, X[:3], **arguments)

    refused(compute, *words, "expected ", "Hint: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tolerance": -1}, ["tolerance=-1"]),
        ({"tolerance": float("nan")}, ["tolerance=nan"]),
        ({"tolerance": "small"}, ["tolerance='small'"]),
        ({"n_nodes": 0}, ["n_nodes=0", "1..32"]),
        ({"n_nodes": 2.5}, ["n_nodes=2.5"]),
        ({"n_nodes": True}, ["n_nodes=True"]),
    ],
)
def test_wrong_options_are_named(options, words):
    for kind in (Quadrature, LedgerOptions):
        refused(lambda kind=kind: kind(**options), *words, "expected ", "Hint: ")


def test_wrong_types_of_run_and_model_are_refused(wine):
    run, model = wine
    for call in (ledger, influence, exact_kernel_machine):
        refused(lambda call=call: call(str(run.path), model, x=X[:2]), "of type str", "km.Run.open")
        refused(lambda call=call: call(run, torch.tanh, x=X[:2]), "torch.nn.Module")
    refused(lambda: path_kernel(str(run.path), model, X[:2]), "of type str")
    for call in (lambda: path_kernel(run, model, X[:3], X[:2, :4]), lambda: ntk(model, X[:3], X[:2, :4])):
        refused(call, "(2, 4)", "does not accept")


def test_quadrature_stops_on_targets_with_wrong_derivatives(wine):
    run, model = wine
    refused(
        lambda: ledger(run, model, X[:3], target=lambda f, y: f[:, 0] * f[:, 1].detach()),
        "the integral of their derivatives",
        "detach()",
        error=VerificationError,
    )
    refused(lambda: ledger(run, model, X[:3], target=lambda f, y: f[:, 0] / 0), "NaN", error=NumericalError)


@pytest.mark.parametrize("options", [{}, {"by": "layer"}], ids=["examples", "layers"])
def test_custom_gradients_are_refused(tmp_path, options):
    class StraightThrough(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(13, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = self.first(x)
            return self.last(hidden + (torch.tanh(hidden) - hidden).detach())

    model = StraightThrough()
    run = fit(model, X, Y, out=tmp_path / "run", epochs=1, seed=0)
    refused(lambda: ledger(run, model, X[:2], **options), "straight-through", error=VerificationError)


def test_kinks_and_jumps_do_not_look_like_wrong_derivatives(tmp_path):
    """Where panels shrink around single places, it goes on to the end; what a jump leaves is stated."""

    class Jump(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(13, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = self.first(x)
            return self.last(hidden + (hidden > 0).to(hidden))

    torch.manual_seed(0)
    model = Jump()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = fit(model, X, Y, out=tmp_path / "run", epochs=2, seed=0, options=FitOptions(optimizer=optimizer))
    found = ledger(run, model, X[:4])
    assert found.largest_residual > 1e-3
    assert torch.allclose(found.residuals.sum(0), found.residual, atol=1e-10)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-2),
        lambda p: torch.optim.RMSprop(p, lr=1e-3),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
    ],
    ids=["sgd", "momentum", "adamw", "rmsprop", "adagrad"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_another_network_of_the_same_shapes_is_refused(tmp_path, optimizer, dtype):
    model = network().to(dtype)
    run = fit(model, X, Y, out=tmp_path / "run", epochs=1, seed=0, options=FitOptions(optimizer=optimizer))
    verify_model(run, model)
    other = network(nn.ReLU).to(dtype)
    refused(lambda: verify_model(run, other), "does not reproduce the first recorded step")
    for call in (ledger, influence, exact_kernel_machine):
        refused(lambda call=call: call(run, other, x=X[:2]), "does not reproduce the first recorded step")
    refused(lambda: path_kernel(run, other, X[:2]), "does not reproduce the first recorded step")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_rounding_of_half_precision_and_micro_batches_is_accepted(tmp_path, kind):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network().bfloat16()

        def forward(self, x):
            return self.layers(x.bfloat16())

    x, y = torch.tensor(X[:60], dtype=torch.float32), torch.tensor(Y[:60])
    for name, model, micro in (("half", Half(), 60), ("micro", network(), 7)):
        optimizer = kind(model.parameters(), lr=1e-3)
        with Recorder(model, optimizer, tmp_path / name, loss="cross_entropy") as recorder:
            for _ in range(2):
                optimizer.zero_grad()
                for i in range(0, 60, micro):
                    nn.functional.cross_entropy(model(x[i : i + micro]), y[i : i + micro], reduction="sum").backward()
                recorder.step(torch.arange(60), x, y)
        verify_model(Run.open(tmp_path / name), model)


def test_another_loss_or_none_is_refused(tmp_path):
    def smoothed(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")

    model = network()
    run = fit(model, X, Y, out=tmp_path / "run", epochs=1, seed=0, options=FitOptions(loss=smoothed))
    assert ledger(run, model, X[:2], loss=smoothed).largest_residual < 1e-12
    refused(lambda: ledger(run, model, X[:2]), "smoothed", "pass loss=")
    refused(lambda: ledger(run, model, X[:2], loss=lambda f, y: f[:, 0] ** 2), "same loss")


def test_one_logit_is_a_binary_classifier(tmp_path):
    model = nn.Sequential(nn.Linear(13, 4), nn.Tanh(), nn.Linear(4, 1))
    run = fit(model, X, Y % 2, out=tmp_path / "run", epochs=1, seed=0)
    assert ledger(run, model, X[:1]).contributions.shape == (1, 178, 1)
    sources = ledger(run, model, X[:1]).contributions.sum(1)
    margin = ledger(run, model, X[:1], target="margin", labels=[0])
    assert margin.largest_residual < 1e-12
    assert torch.allclose(margin.contributions.sum(1), -sources, rtol=1e-9, atol=1e-12)
    for target in ("loss", "log_probability"):
        assert ledger(run, model, X[:1], target=target, labels=[1]).largest_residual < 1e-9
    refused(lambda: ledger(run, model, X[:1], target="margin", labels=[2]), "label 2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": Y + 1}, ["labels 0..2 (here 1..3)"]),
        ({"y": Y - 1}, ["labels 0..2 (here -1..1)"]),
        ({"x": X[:, :5]}, ["[(5,)]", "does not accept"]),
    ],
    ids=["beyond", "negative", "width"],
)
def test_wrong_data_of_a_fit(tmp_path, changes, words):
    given = {"x": X, "y": Y, **changes}
    options = {"out": tmp_path / "run", "epochs": 1, "seed": 0, **given}
    refused(lambda: fit(network(), options.pop("x"), options.pop("y"), **options), *words)


def test_an_optimizer_by_name_is_refused():
    refused(lambda: FitOptions(optimizer="adam"), "optimizer='adam'")


def test_ignored_labels_have_no_loss_as_in_torch(tmp_path):
    y = Y.copy()
    y[:40] = -100
    model = network()
    run = fit(model, X, y, out=tmp_path / "run", epochs=2, seed=0)
    found = ledger(run, model, X[:2])
    assert found.largest_residual < 1e-12
    assert float(found.contributions[:, :40].abs().max()) == 0


def test_rows_and_outputs_out_of_range_are_refused(wine):
    run, model = wine
    own, other = ledger(run, model, X[:2]), influence(run, model, X[:2])
    for result in (own, other):
        assert result.top(-1, 3) == result.top(1, 3)
        refused(lambda result=result: result.top(2), "row=2", "0..1")
        refused(lambda result=result: result.top(0, output=3), "output=3", "0..2")


def test_text_has_80_columns_and_the_groups(wine):
    run, model = wine
    names = [f"{WINE.target_names[label]} of a long name, really" for label in Y]
    for options in ({}, {"by": "step"}, {"by": names}, {"options": LedgerOptions(steps=(2, 2))}):
        text = str(ledger(run, model, X[:2], **options))
        assert max(map(len, text.splitlines())) <= 80
        assert "nan" not in text
        assert ("class_1 of a long na" in text) == (options.get("by") is names)


@pytest.mark.parametrize("by", ["example", "group", "step"])
def test_tables_of_outputs_and_of_sources(wine, by):
    run, model = wine
    own = ledger(run, model, X[:2], by=WINE.target_names[Y] if by == "group" else by)
    lines = own.to_frame()
    assert len(lines) == 2 * 3
    parts = lines[["contributions", "decay", "rounding", "buffers", "residual"]].sum(axis=1)
    assert np.allclose(parts, lines["change"], atol=1e-12)
    sources = own.to_frame("sources")
    assert list(sources.columns) == ["row", by, "output", "contribution"]
    assert np.allclose(sources.groupby(["row", "output"])["contribution"].sum(), lines["contributions"], atol=1e-12)
    if by == "group":
        assert set(sources["group"]) == set(WINE.target_names)
    refused(lambda: own.to_frame("examples"), "rows='examples'")


@pytest.mark.parametrize(("by", "word"), [("group", "class_1"), ("step", "step 0")])
def test_figures_name_groups_and_steps(wine, by, word):
    run, model = wine
    own = ledger(run, model, X[:2], by=WINE.target_names[Y] if by == "group" else by)
    figure = own.plot(0)
    assert figure.axes[0].get_title(loc="left") == f"largest contributions of {by}s"
    assert word in [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert f"{by}s, positive" in [tick.get_text() for tick in figure.axes[1].get_yticklabels()]


def verify(*arguments):
    return main(["ledger", "verify", *map(str, arguments)])


@pytest.fixture
def saved(tmp_path):
    """A run with two ledgers and influences in its directory."""
    model = network()
    run = fit(model, X, Y, out=tmp_path / "run", epochs=1, seed=0)
    ledger(run, model, X[:2]).save(run.path / "a.safetensors")
    ledger(run, model, X[:2], by="step").save(run.path / "b.safetensors")
    influence(run, model, X[:2]).save(run.path / "c.safetensors")
    run.tape.close()
    return run.path


def test_verify_lists_all_ledgers_of_a_run(saved, capsys, tmp_path):
    assert verify(saved) == 0
    text = capsys.readouterr().out
    assert "3 steps, 4 checkpoints" in text
    assert all(f"{name}.safetensors" in text for name in "abc")
    assert "c.safetensors  influences: hash and run match" in text
    assert "3 of 3 files pass" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    outside = tmp_path / "elsewhere.safetensors"
    outside.write_bytes((saved / "a.safetensors").read_bytes())
    assert verify(saved, "--ledgers", outside) == 0
    assert "elsewhere" in capsys.readouterr().out
    assert verify(saved, "--tolerance", "0.1") == 0
    assert verify(saved, "--tolerance", "1e-30") == 2
    for name in "abc":
        (saved / f"{name}.safetensors").unlink()
    capsys.readouterr()
    assert verify(saved) == 0
    assert "no ledger" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_one_flipped_bit_of_a_ledger_is_found(saved, capsys, place):
    path = saved / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileCorruptError):
        Ledger.load(path)
    assert verify(saved) == 2
    found = capsys.readouterr()
    assert "REFUSED" in found.out
    assert "b.safetensors" in found.out  # the others are told of all the same
    assert "a.safetensors" in found.err


@pytest.mark.parametrize("place", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_one_flipped_bit_of_influences_is_found(saved, capsys, place):
    path = saved / "c.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert verify(saved) == 2
    found = capsys.readouterr()
    assert "c.safetensors  REFUSED" in found.out
    assert "2 of 3 files pass" in found.out
    assert "c.safetensors" in found.err


def test_verify_says_what_it_did_not_compare(saved, capsys, tmp_path):
    spectrum(torch.eye(3)).save(saved / "d.safetensors")
    save_file({"w": torch.zeros(2)}, saved / "e.safetensors")
    assert verify(saved) == 0
    text = capsys.readouterr().out
    assert "d.safetensors  Spectrum: hash matches, run not compared" in text
    assert "e.safetensors  NOT CHECKED" in text
    for name in "de":
        assert verify(saved, "--ledgers", saved / f"{name}.safetensors") == 2
    (saved / "d.safetensors").unlink()
    other = fit(network(), X, Y, out=tmp_path / "other", epochs=1, seed=1)
    capsys.readouterr()
    assert verify(other.path, "--ledgers", saved / "c.safetensors") == 2
    assert "of another run" in capsys.readouterr().err


def test_ledgers_whose_sizes_do_not_fit_are_refused(saved):
    good = Ledger.load(saved / "a.safetensors")
    for change in ({"decay": good.decay[:1]}, {"names": good.names[1:]}, {"evaluations": good.evaluations[:, None]}):
        path = dataclasses.replace(good, **change).save(saved / "x.safetensors")
        with pytest.raises(FileCorruptError, match="does not fit"):
            Ledger.load(path)


def test_verify_finds_altered_rates_weights_steps_and_other_runs(saved, capsys, tmp_path):
    def altered(change):
        content = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
        change()
        code = verify(saved)
        for path, old in content.items():
            path.write_bytes(old)
        return code, capsys.readouterr().err

    def execute(*statements):
        connection = sqlite3.connect(saved / "tape.sqlite")
        for statement in statements:
            connection.execute(*statement)
        connection.commit()
        connection.close()

    connection = sqlite3.connect(saved / "tape.sqlite")
    facts = json.loads(connection.execute("SELECT facts FROM steps WHERE step = 1").fetchone()[0])
    connection.close()
    facts["groups"][0]["lr"] *= 2
    code, said = altered(lambda: execute(("UPDATE steps SET facts = ? WHERE step = 1", (json.dumps(facts),))))
    assert (code, "step 1" in said) == (2, True)

    def weight():
        path = saved / "weights" / "00000002.safetensors"
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)

    code, said = altered(weight)
    assert (code, "step 2" in said) == (2, True)
    last = ("DELETE FROM steps WHERE step = 2",), ("DELETE FROM examples WHERE step = 2",)
    code, said = altered(lambda: execute(*last, ("DELETE FROM checkpoints WHERE step = 3",)))
    assert (code, "of another run" in said) == (2, True)
    model = network()
    other = fit(model, X, Y, out=tmp_path / "other", epochs=1, seed=1)
    assert verify(other.path, "--ledgers", saved / "a.safetensors") == 2
    assert verify(saved) == 0


def test_damaged_indexes_of_the_tape_are_found(saved):
    content = (saved / "tape.sqlite").read_bytes()
    connection = sqlite3.connect(saved / "tape.sqlite")
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'examples_of_step'").fetchone()[0]
    connection.close()
    altered = bytearray(content)
    altered[root * size - 3] ^= 1  # in the last cell of that page
    (saved / "tape.sqlite").write_bytes(altered)
    with pytest.raises(FileCorruptError):
        Run.open(saved).verify()
