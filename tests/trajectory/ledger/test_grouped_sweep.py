"""Ledgers by group, by layer and by step: the same contributions, summed differently."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.trajectory.ledger.grouped_sweep import layer_groups
from kernelmem.trajectory.ledger.ledger import Ledger, LedgerOptions, ledger
from tests.trajectory.recorded import OPTIMIZERS, digits, mlp, record


def run_of(path, optimizer, *, activation=nn.Tanh, steps=8, **options):
    x, y = digits(64)
    model = mlp(activation)
    run = record(path, model, OPTIMIZERS[optimizer](model.parameters()), x, y, steps=steps, **options)
    return run, model, x, y


def lines_agree(one, other, tolerance):
    for name in ("initial", "final", "decay", "rounding", "buffers"):
        assert float((getattr(one, name) - getattr(other, name)).abs().max()) <= tolerance, name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_groups_are_the_sums_of_their_examples(tmp_path, optimizer):
    run, model, x, y = run_of(tmp_path / "run", optimizer)
    whole = ledger(run, model, x[:4])
    own = ledger(run, model, x[:4], by=y)
    assert own.contributions.shape == (4, 10, 10)
    assert own.by == "group"
    assert own.sources == tuple("0123456789")
    assert float((own.contributions - whole.by_group(y)).abs().max()) <= 1e-12
    lines_agree(own, whole, 1e-12)
    assert own.largest_residual <= 1e-12


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_groups_of_networks_with_kinks(tmp_path, optimizer):
    run, model, x, y = run_of(tmp_path / "run", optimizer, activation=nn.ReLU)
    whole = ledger(run, model, x[:4])
    own = ledger(run, model, x[:4], by=y)
    assert float((own.contributions - whole.by_group(y)).abs().max()) <= 1e-11
    lines_agree(own, whole, 1e-11)
    assert own.largest_residual <= 1e-10


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "adagrad"])
def test_steps_and_layers_add_up_to_the_examples(tmp_path, optimizer):
    run, model, x, _ = run_of(tmp_path / "run", optimizer)
    whole = ledger(run, model, x[:4])
    steps = ledger(run, model, x[:4], by="step")
    layers = ledger(run, model, x[:4], by="layer")
    assert steps.contributions.shape == (4, 8, 10)
    assert layers.sources == ("0", "2", "4")
    for own in (steps, layers):
        assert float((own.contributions.sum(1) - whole.contributions.sum(1)).abs().max()) <= 1e-12
        lines_agree(own, whole, 1e-12)
        assert own.largest_residual <= 1e-12


def test_frozen_layers_contribute_nothing(tmp_path):
    x, y = digits(64)
    model = mlp()
    model[2].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    run = record(tmp_path / "run", model, optimizer, x, y, steps=5)
    own = ledger(run, model, x[:3], by="layer")
    assert own.sources == ("0", "4")
    assert own.largest_residual <= 1e-12


def test_the_first_of_two_steps_keeps_acting_under_momentum(tmp_path):
    """By hand: with momentum μ the first gradient makes −h g of the first step and −h μ g of the second."""
    x, y = digits(16)
    model = nn.Linear(64, 10).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    run = record(tmp_path / "run", model, optimizer, x, y, steps=2, batch=16, loss="mse")
    own = ledger(run, model, x[:3], by="step")
    state, one_hot = run.weights(0), nn.functional.one_hot(y, 10).double()
    slope = (x @ state["weight"].T + state["bias"] - one_hot) / 16
    # The batches of one epoch hold the same rows in another order.
    expected = -0.1 * (1 + 0.5) * ((x[:3] @ x.T + 1) @ slope)
    assert float((own.contributions[:, 0] - expected).abs().max()) < 1e-14


def test_groups_with_names_targets_and_buffers(tmp_path):
    x, y = digits(32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10)).double()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y, steps=3)
    names = ["even" if int(label) % 2 == 0 else "odd" for label in y]
    own = ledger(run, model, x[:2], labels=y[:2], target="margin", by=names)
    whole = ledger(run, model, x[:2], labels=y[:2], target="margin")
    assert set(own.sources) == {"even", "odd"}
    index = torch.tensor([own.sources.index(name) for name in names])
    assert float((own.contributions - whole.by_group(index)).abs().max()) <= 1e-11
    lines_agree(own, whole, 1e-11)
    assert float(own.buffers.abs().max()) > 1e-3


def test_networks_with_one_pass_per_place(tmp_path):
    """Weight norm: weights are no affine function of the parameters."""
    x, y = digits(32)
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, 8))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 10)).double()
    run = record(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=3e-3), x, y, steps=4)
    whole = ledger(run, model, x[:3])
    own = ledger(run, model, x[:3], by=y)
    assert whole.largest_residual <= 1e-12
    assert float((own.contributions - whole.by_group(y)).abs().max()) <= 1e-12


def test_ledgers_by_group_are_saved_with_their_names(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", "sgd", steps=3)
    own = ledger(run, model, x[:2], by=y)
    again = Ledger.load(own.save(tmp_path / "ledger.safetensors"))
    assert (again.by, again.sources) == (own.by, own.sources)
    assert torch.equal(again.contributions, own.contributions)
    assert "by group (10)" in str(again)
    with pytest.raises(InputError, match="by group"):
        own.by_group(y)


def test_wrong_groups_are_refused(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", "sgd", steps=4)
    with pytest.raises(InputError, match="by='group'"):
        ledger(run, model, x[:2], by="group")
    with pytest.raises(InputError, match="length 10"):
        ledger(run, model, x[:2], by=y[:10])
    with pytest.raises(InputError, match="by='class'"):
        ledger(run, model, x[:2], by="class")
    with pytest.raises(InputError, match="by='row'"):
        ledger(run, model, x[:2], by="row")


def test_long_runs_are_traced_part_by_part(tmp_path, monkeypatch):
    """Where a run does not fit into memory as a whole, its stretches give the same lines."""
    import kernelmem.trajectory.trace as forward

    run, model, x, y = run_of(tmp_path / "run", "adam", steps=11, keep="sqrt")
    whole = ledger(run, model, x[:3])
    monkeypatch.setattr(forward, "MAX_BYTES", 8 * 4 * 3466 * 4)  # four steps
    calls = []
    parts = ledger(run, model, x[:3], progress=lambda done, total: calls.append((done, total)))
    assert float((parts.contributions - whole.contributions).abs().max()) <= 1e-13
    assert calls[-1] == (22, 22)
    lines_agree(parts, whole, 1e-13)
    groups = ledger(run, model, x[:3], by=y)
    assert float((groups.contributions - whole.by_group(y)).abs().max()) <= 1e-12


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "rmsprop"])
def test_ledgers_of_parts_of_the_run_add_up(tmp_path, optimizer):
    run, model, x, y = run_of(tmp_path / "run", optimizer)
    whole = ledger(run, model, x[:3])
    for by in ("example", y):
        parts = [
            ledger(run, model, x[:3], by=by, options=LedgerOptions(steps=pair)) for pair in ((0, 3), (3, 4), (4, 8))
        ]
        together = sum(own.contributions for own in parts)
        expected = whole.contributions if by is not y else whole.by_group(y)
        assert float((together - expected).abs().max()) <= 1e-12
        for name in ("decay", "rounding"):
            total = sum(getattr(own, name) for own in parts)
            assert float((total - getattr(whole, name)).abs().max()) <= 1e-12, name
        assert all(own.largest_residual <= 1e-12 for own in parts)
        assert torch.equal(parts[0].final, parts[1].initial)


def test_a_part_without_steps_has_no_change(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", "momentum", steps=4)
    for by in ("example", "step", y):
        own = ledger(run, model, x[:3], by=by, options=LedgerOptions(steps=(2, 2)))
        assert float(own.contributions.abs().max()) == 0.0
        assert torch.equal(own.initial, own.final)
        assert own.largest_residual == 0.0
    with pytest.raises(InputError, match=r"steps=\(3, 2\)"):
        ledger(run, model, x[:3], options=LedgerOptions(steps=(3, 2)))


def averaged_run(path, average, *, optimizer="momentum", norm=False):
    """A run whose weights were averaged from the fourth step on."""
    from kernelmem.recording.recorder import Recorder
    from kernelmem.recording.run import Run

    x, y = digits(64)
    torch.manual_seed(0)
    layers = [nn.Linear(64, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.Tanh(), nn.Linear(16, 10)]
    model = nn.Sequential(*layers).double()
    made = OPTIMIZERS[optimizer](model.parameters())
    options = {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)} if average == "ema" else {}
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=norm and average == "ema", **options)
    generator = torch.Generator().manual_seed(1)
    with Recorder(model, made, path, loss="cross_entropy") as recorder:
        for t in range(12):
            index = torch.randperm(64, generator=generator)[:16]
            made.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
            if t >= 3:
                recorder.average(averaged)
    return Run.open(path), model, averaged.module, x, y


@pytest.mark.parametrize(
    ("average", "optimizer"), [("ema", "sgd"), ("swa", "sgd"), ("ema", "momentum"), ("swa", "adamw")]
)
def test_averaged_weights_are_explained(tmp_path, average, optimizer):
    run, model, averaged, x, y = averaged_run(tmp_path / "run", average, optimizer=optimizer)
    own = ledger(run, model, x[:4], options=LedgerOptions(final_weights="average"))
    with torch.no_grad():
        assert float((own.final - averaged.eval()(x[:4])).abs().max()) < 1e-12
    last = ledger(run, model, x[:4])
    assert float((own.final - last.final).abs().max()) > 1e-2
    assert own.largest_residual <= 1e-12
    assert float(own.rounding.abs().max()) < 1e-12
    groups = ledger(run, model, x[:4], by=y, options=LedgerOptions(final_weights="average"))
    assert float((groups.contributions - own.by_group(y)).abs().max()) <= 1e-12
    lines_agree(groups, own, 1e-12)
    assert groups.largest_residual <= 1e-12
    with pytest.raises(InputError, match="for the whole run"):
        ledger(run, model, x[:4], options=LedgerOptions(final_weights="average", steps=(0, 3)))


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averages_of_networks_with_buffers(tmp_path, average):
    run, model, averaged, x, y = averaged_run(tmp_path / "run", average, norm=True)
    own = ledger(run, model, x[:4], options=LedgerOptions(final_weights="average"))
    with torch.no_grad():
        assert float((own.final - averaged.eval()(x[:4])).abs().max()) < 1e-12
    assert own.largest_residual <= 1e-11
    groups = ledger(run, model, x[:4], by=y, options=LedgerOptions(final_weights="average"))
    lines_agree(groups, own, 1e-11)


def test_runs_without_averages_are_refused(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", "sgd", steps=3)
    with pytest.raises(InputError, match="no averaged weights"):
        ledger(run, model, x[:2], options=LedgerOptions(final_weights="average"))


def test_a_history_adds_up_to_the_ledger(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", "adam", steps=6)
    own = ledger(run, model, x[:2], options=LedgerOptions(history=True, data=(x, y)))
    assert own.history.shape == (2, 6, 64, 10)
    assert float((own.history.sum(1) - own.contributions).abs().max()) < 1e-14
    steps = ledger(run, model, x[:2], by="step")
    assert float((own.history.sum(2) - steps.contributions).abs().max()) < 1e-13
    figure = own.plot(0, images=x.view(-1, 8, 8), image=x[0].view(8, 8), labels=y, n=3)
    assert len(figure.axes) >= 3
    with pytest.raises(InputError, match="history=True"):
        ledger(run, model, x[:2], by="step", options=LedgerOptions(history=True))


def test_a_layer_is_the_module_that_holds_the_parameter():
    own = layer_groups(["block.first.weight", "block.second.weight", "block.first.bias", "scale"])
    assert own.names == ("block.first", "block.second", "scale")
    assert own.parameter_layers == {
        "block.first.weight": 0,
        "block.second.weight": 1,
        "block.first.bias": 0,
        "scale": 2,
    }
