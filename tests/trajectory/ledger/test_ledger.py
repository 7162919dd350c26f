"""The ledger is complete to rounding for every optimizer, and obeys its laws."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.trajectory.ledger.ledger import Ledger, LedgerOptions, ledger
from tests.trajectory.recorded import OPTIMIZERS, digits, mlp, record


def run_of(path, optimizer, *, activation=nn.Tanh, dtype=torch.float64, **options):
    x, y = digits(dtype=dtype)
    model = mlp(activation, dtype)
    batch = len(x) if optimizer == "gd" else 16
    run = record(path, model, OPTIMIZERS[optimizer](model.parameters()), x, y, batch=batch, **options)
    return run, model, x, y


def complete(own, tolerance):
    """The lines add up to the change."""
    lines = own.contributions.sum(1) + own.decay + own.rounding + own.buffers
    assert float((own.initial + lines + own.residual - own.final).abs().max()) < 1e-13
    assert own.largest_residual <= tolerance, own
    assert float((own.final - own.initial).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [*((optimizer, "cross_entropy") for optimizer in OPTIMIZERS), ("momentum", "mse"), ("adamw", "mse")],
)
def test_smooth_networks_are_explained_to_rounding(tmp_path, optimizer, loss):
    run, model, x, _ = run_of(tmp_path / "run", optimizer, loss=loss)
    own = ledger(run, model, x[:6])
    complete(own, 1e-12)
    assert float(own.rounding.abs().max()) < 1e-12


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_relu_networks_are_explained(tmp_path, optimizer):
    run, model, x, _ = run_of(tmp_path / "run", optimizer, activation=nn.ReLU)
    complete(ledger(run, model, x[:6]), 1e-10)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_rounding_of_float32_training_is_a_separate_term(tmp_path, optimizer):
    run, model, x, _ = run_of(tmp_path / "run", optimizer, dtype=torch.float32)
    own = ledger(run, model, x[:6])
    complete(own, 1e-10)
    assert 1e-9 < float(own.rounding.abs().max()) < 1e-2


def test_clipping_and_a_schedule(tmp_path):
    x, y = digits()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    run = record(tmp_path / "run", model, optimizer, x, y, clip=0.5, schedule=schedule)
    assert any(step.scale < 0.999 for step in run.steps)
    complete(ledger(run, model, x[:6]), 1e-12)


def test_a_linear_model_has_the_closed_form(tmp_path):
    """Gradient descent on a linear model: c_i = −h Σ_t (x·x_i + 1) (f_t(x_i) − y_i) / n."""
    x, y = digits(20)
    model = nn.Linear(64, 10).double()
    run = record(
        tmp_path / "run",
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        x,
        y,
        loss="mse",
        batch=20,
        steps=7,
        seed=0,
    )
    own = ledger(run, model, x[:5])
    one_hot = nn.functional.one_hot(y, 10).double()
    expected = torch.zeros(5, 20, 10, dtype=torch.float64)
    for t in range(7):
        state = run.weights(t)
        slope = x @ state["weight"].T + state["bias"] - one_hot
        expected -= 0.05 / 20 * (x[:5] @ x.T + 1)[:, :, None] * slope
    assert float((own.contributions - expected).abs().max()) < 1e-14


def test_targets_are_explained_like_outputs(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", "adam")
    whole = ledger(run, model, x[:4])
    one = ledger(run, model, x[:4], target=("logit", 3))
    assert float((one.contributions[..., 0] - whole.contributions[..., 3]).abs().max()) < 1e-12
    for target in ("margin", "loss", "log_probability"):
        own = ledger(run, model, x[:4], labels=y[:4], target=target)
        complete(own, 1e-11)
    assert own.names == ("log_probability",)


def test_unused_examples_contribute_nothing(tmp_path):
    x, y = digits(40)
    model = mlp()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, batch=8, steps=2)
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
    met = torch.cat([step.examples for step in run.steps])
    assert own.contributions.shape == (3, 40, 10)
    never = [i for i in range(40) if i not in set(met.tolist())]
    assert float(own.contributions[:, never].abs().max()) == 0.0


def test_wrong_learning_rate_in_the_tape_shows_in_the_rounding_term(tmp_path):
    import dataclasses

    run, model, x, _ = run_of(tmp_path / "run", "sgd")
    true = ledger(run, model, x[:3])

    class Altered:
        def __init__(self, run):
            self.run, self.steps = run, list(run.steps)
            group = dict(self.steps[3].groups[0], lr=0.2)
            self.steps[3] = dataclasses.replace(self.steps[3], groups=(group,))

        def __len__(self):
            return len(self.steps)

        def __getattr__(self, name):
            return getattr(self.run, name)

    altered = ledger(Altered(run), model, x[:3])
    assert float(altered.rounding.abs().max()) > 1e6 * float(true.rounding.abs().max())


def test_batch_norm_buffers_are_a_separate_term(tmp_path):
    """Contributions are those of the activation rows; running statistics move what is tested in eval mode."""
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10)).double()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y)
    own = ledger(run, model, x[:6])
    complete(own, 1e-10)
    assert float(own.buffers.abs().max()) > 1e-2


def test_dropout_is_replayed_with_its_masks(tmp_path):
    x, y = digits(64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 10)).double()
    run = record(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=3e-3), x, y)
    own = ledger(run, model, x[:6])
    complete(own, 1e-10)
    assert float(own.rounding.abs().max()) < 1e-11


def test_small_convolutional_networks_with_relu_are_explained(tmp_path):
    x, y = digits(96)
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10)).double()
    run = record(tmp_path / "run", model, torch.optim.AdamW(model.parameters(), lr=3e-3), x, y, steps=15)
    complete(ledger(run, model, x[:4]), 1e-10)


def test_parameter_groups_and_frozen_parameters(tmp_path):
    x, y = digits(64)
    model = mlp()
    model[0].bias.requires_grad_(False)
    groups = [{"params": model[0].weight, "lr": 0.02}, {"params": list(model[2:].parameters()), "weight_decay": 0.01}]
    run = record(tmp_path / "run", model, torch.optim.SGD(groups, lr=0.1, momentum=0.8, dampening=0.2), x, y)
    complete(ledger(run, model, x[:4]), 1e-12)


def test_groups_are_sums_of_examples(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", "adam", steps=4)
    own = ledger(run, model, x[:3])
    found = own.by_group(y[: own.contributions.shape[1]])
    for digit in range(10):
        expected = own.contributions[:, y[: own.contributions.shape[1]] == digit].sum(1)
        assert float((found[:, digit] - expected).abs().max()) < 1e-14


def test_a_ledger_is_saved_and_checked_from_its_file(tmp_path, capsys):
    from kernelmem.cli import main

    run, model, x, _ = run_of(tmp_path / "run", "sgd", steps=4)
    own = ledger(run, model, x[:3])
    path = own.save(run.path / "ledger.safetensors")
    again = Ledger.load(path)
    assert torch.equal(again.contributions, own.contributions)
    assert main(["ledger", "verify", str(run.path)]) == 0
    assert "Residual: largest" in capsys.readouterr().out
    altered = Ledger(**{**vars(own), "contributions": own.contributions + 1e-6})
    altered.save(path)
    assert main(["ledger", "verify", str(run.path)]) == 2
    path.write_bytes(path.read_bytes()[:100])
    assert main(["ledger", "verify", str(run.path)]) == 2


def test_order_of_a_batch_does_not_matter(tmp_path):
    x, y = digits(32)
    found = []
    for name, order in (("a", slice(None)), ("b", torch.arange(31, -1, -1))):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        with Recorder(model, optimizer, tmp_path / name, loss="cross_entropy") as recorder:
            index = torch.arange(32)[order]
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                recorder.step(index, x[index], y[index])
        found.append(ledger(Run.open(tmp_path / name), model, x[:3]).contributions)
    assert float((found[0] - found[1]).abs().max()) < 1e-13


def test_masks_of_training_in_float32_are_those_of_the_analysis(tmp_path):
    """Other masks would show as a large rounding line, with the residual as small as ever."""
    x, y = digits(64, dtype=torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 10))
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y)
    own = ledger(run, model, x[:6])
    complete(own, 1e-10)
    assert float(own.rounding.abs().max()) < 1e-4


def test_rows_that_the_model_does_not_take_are_refused(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", "sgd", steps=2)
    with pytest.raises(InputError, match="rows of shape"):
        ledger(run, model, x[:3, :10])
    with pytest.raises(InputError, match="without labels"):
        ledger(run, model, x[:3], target="margin")


def test_networks_that_mix_rows_are_refused(tmp_path):
    x, y = digits(32)
    torch.manual_seed(0)
    layers = [nn.Linear(64, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh(), nn.Linear(8, 10)]
    model = nn.Sequential(*layers).double()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, steps=2)
    with pytest.raises(UnsupportedModelError, match="without running statistics"):
        ledger(run, model, x[:3])


class TwoHeads(nn.Module):
    """In train mode a second head sees the hidden units as two halves of a row each."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head, self.halves = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(4, 10)

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        if not self.training:
            return self.head(h)
        return self.head(h) + self.halves(h.reshape(-1, 4)).reshape(len(x), 2, 10).sum(1)


def test_every_combination_of_modes_is_surveyed(tmp_path):
    x, y = digits(32)
    torch.manual_seed(0)
    model = TwoHeads().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(8):
            model.train(t % 3 != 0)
            index = torch.arange(16) + 16 * (t % 2)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
    own = ledger(Run.open(tmp_path / "run"), model, x[:3])
    complete(own, 1e-12)
    assert float(own.rounding.abs().max()) < 1e-12
