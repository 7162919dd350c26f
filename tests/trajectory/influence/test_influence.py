"""Influence equals finite differences of retraining with another weight of an example, for every optimizer and layer."""

import pytest
import torch
from torch import nn

from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.trajectory.influence.influence import InfluenceOptions, influence
from tests.trajectory.recorded import digits, record
from tests.trajectory.retrained import ADAM, SGD, UPDATES, N, finite_difference, run_of, small


def agrees(run, model, x, found, *, h=2e-3, tolerance=1e-6, examples=(0, 22), **options):
    """Influence on all outputs of some rows against finite differences of training again."""

    def outputs(trained):
        trained.eval()
        with torch.no_grad():
            return trained(x[30:33].double())

    size = float(found.influence.abs().max())
    assert size > 1e-4
    for example in examples:
        expected = finite_difference(run, model, N, example, outputs, h=h, **options)
        gap = float((found.influence[:, example] - expected).abs().max())
        assert gap <= tolerance * max(size, float(expected.abs().max())), (example, gap, size)
        assert float(expected.abs().max()) > 1e-3 * size


@pytest.mark.parametrize("update", UPDATES)
def test_influence_is_the_derivative_of_retraining(tmp_path, update):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES[update])
    found = influence(run, model, x[30:33])
    h = 2e-3 if UPDATES[update][0] is SGD else 2e-4
    agrees(run, model, x, found, h=h, tolerance=1e-7)


def test_adam_with_its_own_small_epsilon(tmp_path):
    """Where a gradient is near zero, the step turns within ε of it: there finite differences need small ones."""
    run, model, x, _ = run_of(tmp_path / "run", ADAM, {"lr": 3e-3})
    agrees(run, model, x, influence(run, model, x[30:33]), h=1e-6, tolerance=1e-4)


@pytest.mark.parametrize("update", ["nesterov", "adamw"])
def test_a_clipping_factor_moves_with_the_gradient(tmp_path, update):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES[update], clip=1.0)
    assert 2 <= sum(step.scale < 1 for step in run.steps) < len(run)
    found = influence(run, model, x[30:33])
    agrees(run, model, x, found, h=2e-4, clip=1.0)
    assert torch.equal(
        found.influence, influence(run, model, x[30:33], options=InfluenceOptions(clip="norm")).influence
    )
    fixed = influence(run, model, x[30:33], options=InfluenceOptions(clip="fixed")).influence
    assert float((fixed - found.influence).abs().max()) > 1e-2 * float(found.influence.abs().max())


def test_clipping_far_below_the_gradient(tmp_path):
    """There it matters whose norm torch adds 1e-6 to: that before clipping."""
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 1e4}, clip=1e-5, steps=6)
    agrees(run, model, x, influence(run, model, x[30:33]), h=2e-4, clip=1e-5)


@pytest.mark.parametrize("mode", ["train", "frozen_later"])
def test_batch_norm_moves_with_its_statistics(tmp_path, mode):
    """The rows of a batch are coupled, and the running statistics that act at the end are those of the other training."""
    x, y = digits(40)
    torch.manual_seed(0)
    layers = [
        nn.Linear(64, 6),
        nn.BatchNorm1d(6, momentum=0.3),
        nn.Tanh(),
        nn.Linear(6, 10),
        nn.BatchNorm1d(10, affine=False),
    ]
    model = nn.Sequential(*layers).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, eps=1e-3)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(8):
            if mode == "frozen_later" and t >= 4:
                model[1].eval()
            index = torch.arange(N)[t % 3 :: 3]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
    run = Run.open(tmp_path / "run")
    agrees(run, model, x, influence(run, model, x[30:33]), h=2e-4, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropout_keeps_its_masks(tmp_path, dtype):
    x, y = digits(40, dtype)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 10)).to(dtype)
    run = record(tmp_path / "run", model, ADAM(model.parameters(), lr=0.02, eps=1e-3), x[:N], y[:N], steps=7, batch=5)
    found = influence(run, model, x[30:33])
    agrees(run, model, x, found, h=2e-4, tolerance=1e-7 if dtype == torch.float64 else 1e-4)


def test_two_groups_a_schedule_and_frozen_parameters(tmp_path):
    x, y = digits(40)
    model = small()
    model[0].bias.requires_grad_(False)
    groups = [{"params": [model[0].weight], "lr": 0.05, "momentum": 0.5}, {"params": list(model[2].parameters())}]
    optimizer = SGD(groups, lr=0.2, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    run = record(tmp_path / "run", model, optimizer, x[:N], y[:N], steps=9, batch=5, schedule=schedule)
    agrees(run, model, x, influence(run, model, x[30:33]), tolerance=1e-7)


def test_loss_weights_sums_and_an_example_twice_in_a_batch(tmp_path):
    x, y = digits(40)
    model = small()
    optimizer = ADAM(model.parameters(), lr=0.02, eps=1e-2)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy", reduction="sum") as recorder:
        for t in range(6):
            index = torch.tensor([0, 7, 7, 22, t, t + 8])
            weight = torch.tensor([1.0, 0.5, 0.2, 2.0, 1.0, 0.1], dtype=torch.float64)
            optimizer.zero_grad()
            (weight * nn.functional.cross_entropy(model(x[index]), y[index], reduction="none")).sum().backward()
            recorder.step(index, x[index], y[index], weight)
    run = Run.open(tmp_path / "run")
    agrees(run, model, x, influence(run, model, x[30:33], options=InfluenceOptions(data=(x[:N], y[:N]))), h=2e-4)


@pytest.mark.parametrize("update", ["nesterov", "adamw"])
def test_a_parameter_without_a_gradient_is_unchanged(tmp_path, update):
    """Its momentum and its decay do not act in such a step, and its corrections of bias do not count it."""
    x, y = digits(40)
    model = small()
    kind, options = UPDATES[update]
    optimizer = kind(model.parameters(), **options)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(7):
            index = torch.arange(N)[t % 2 :: 2]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            if t in (2, 5):
                model[0].weight.grad = None
            recorder.step(index, x[index], y[index])
    run = Run.open(tmp_path / "run")
    agrees(run, model, x, influence(run, model, x[30:33]), h=2e-4, tolerance=1e-7)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(27, 10)],
        [nn.Unflatten(1, (8, 8)), nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), nn.Flatten(), nn.Linear(64, 10)],
        [nn.Linear(64, 6), nn.PReLU(), nn.Linear(6, 10)],
        [nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)],
    ],
    ids=["convolution", "attention", "prelu", "relu"],
)  # fmt: skip
def test_other_layers(tmp_path, layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 0.05, "momentum": 0.8}, model=model, steps=5)
    agrees(run, model, x, influence(run, model, x[30:33]), h=1e-5, tolerance=1e-5)


def test_recurrent_networks(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 10)

        def forward(self, x):
            return self.out(self.lstm(x.view(-1, 8, 8))[0][:, -1])

    torch.manual_seed(0)
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 0.5, "momentum": 0.8}, model=Reader().double(), steps=5)
    agrees(run, model, x, influence(run, model, x[30:33]), h=1e-3)


def test_a_constant_factor_is_not_clipping(tmp_path):
    """Half the loss in every step (accumulation): held fixed, as finite differences have it."""
    x, y = digits(40)
    model = small()
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.8)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(6):
            index = torch.arange(N)[t % 3 :: 3]
            optimizer.zero_grad()
            (0.5 * nn.functional.cross_entropy(model(x[index]), y[index])).backward()
            recorder.step(index, x[index], y[index])
    run = Run.open(tmp_path / "run")
    agrees(run, model, x, influence(run, model, x[30:33]), factor=0.5)


def test_batch_norm_that_is_used_twice_in_a_pass(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(64, 6), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 10)

        def forward(self, x):
            return self.b(self.norm(torch.tanh(self.norm(self.a(x)))))

    torch.manual_seed(0)
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 0.1, "momentum": 0.5}, model=Twice().double(), steps=4)
    agrees(run, model, x, influence(run, model, x[30:33]), h=2e-4)


def test_inputs_that_change_and_parameters_that_join_later(tmp_path):
    """Augmented examples are those of their steps; a group that is added begins to move then."""
    x, y = digits(40)
    model = small()
    optimizer = SGD(model[2].parameters(), lr=0.2, momentum=0.8)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(6):
            if t == 3:
                optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.05})
            index = torch.arange(N)[t % 2 :: 2]
            rows = x[index] * (1 + 0.2 * t)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows), y[index]).backward()
            recorder.step(index, rows, y[index])
    run = Run.open(tmp_path / "run")
    agrees(run, model, x, influence(run, model, x[30:33]))
    model.load_state_dict(run.weights(6))
    found = influence(run, model, x[30:33], target=("logit", 2), method="last").influence[:, :, 0]
    parameters = list(model.parameters())
    for example, factor in ((4, 1.8), (5, 2.0)):  # as it was last met
        left = torch.autograd.grad(model(x[31:32])[0, 2], parameters)
        loss = nn.functional.cross_entropy(model(factor * x[example : example + 1]), y[example : example + 1])
        right = torch.autograd.grad(loss, parameters)
        expected = -sum(float((a * b).sum()) for a, b in zip(left, right, strict=True))
        assert abs(float(found[1, example]) - expected) < 1e-12
