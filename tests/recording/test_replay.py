"""kernelmem.recording.replay: the same weights to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.recording.recorder import Recorder
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd decay maximize": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, maximize=True),
    "momentum dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95)),
    "adam amsgrad decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam decoupled": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop centered momentum": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5),
}


def check(run, model, states, **options):
    """Replay gives the initial weights and then ``states``, to the bit."""
    seen = list(replay(run, model, **options))
    assert [t for t, _ in seen] == list(range(len(states) + 1))
    for (_, weights), state in zip(seen[1:], states, strict=True):
        assert all(torch.equal(weights[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_replays_to_the_bit(lab, name, dtype):
    directory, _, states = lab.record(OPTIMIZERS[name], loop=lab.loop(dtype, schedule=True), keep=3)
    run = Run.open(directory)
    run.verify()
    assert run.kept == (0, 3, 6, 7)
    check(run, lab.network(dtype, seed=5), states)


@pytest.mark.parametrize("keep", ["all", "sqrt", 100])
def test_every_keep_policy_replays(lab, keep):
    directory, _, states = lab.record(OPTIMIZERS["adam"], keep=keep, steps=12)
    check(Run.open(directory), lab.network(), states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{"clip": 0.1}, {"clip": 1e9}, {"weighted": True}, {"clip": 0.3, "weighted": True, "schedule": True}]
)
def test_clipping_and_weights_replay_to_the_bit(lab, dtype, options):
    directory, _, states = lab.record(OPTIMIZERS["adamw"], loop=lab.loop(dtype, **options), keep=100, steps=9)
    check(Run.open(directory), lab.network(dtype), states)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"norm": True}, {"dropout": 0.2, "norm": True}])
def test_dropout_and_batch_normalization_replay_to_the_bit(lab, options):
    directory, model, states = lab.record(OPTIMIZERS["momentum dampening"], model=lab.network(**options), keep=3)
    torch.manual_seed(123)
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    model.eval()
    check(Run.open(directory), model, states)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


LOSSES = {
    "mse": lambda f, y: 0.5 * (f - F.one_hot(y, 3)).square().sum(1).mean(),
    "mse_mean": lambda f, y: F.mse_loss(f, F.one_hot(y, 3).to(f.dtype)),
    "cross_entropy": F.cross_entropy,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_replays_to_the_bit(lab, name, dtype):
    model = lab.network(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss=name, keep=100) as recorder:
        for t, size in enumerate((13, 5, 13, 7, 13, 10, 13)):  # of 13, the mean of means rounds otherwise
            index, x, y = lab.batch(4 * t, dtype, size=size)
            optimizer.zero_grad()
            LOSSES[name](model(x), y).backward()
            recorder.step(index, x, y)
    run = Run.open(lab.directory / "run")
    assert {step.scale for step in run.steps} == {1.0}
    *_, (last, weights) = replay(run, lab.network(dtype))
    assert last == 7
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_bfloat16_weights_replay_to_the_bit(lab):
    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = lab.network(torch.bfloat16, norm=True)

        def forward(self, x):
            return self.inner(x.bfloat16()).float()

    directory, _, states = lab.record(OPTIMIZERS["adamw"], model=Coarse(), keep=3)
    Run.open(directory).verify()
    check(Run.open(directory), Coarse(), states)


def test_groups_schedules_frozen_and_unfrozen_parameters(lab):
    model = lab.network(norm=True)
    model[0].bias.requires_grad_(False)
    groups = [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[3].parameters(), "weight_decay": 0.1}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    states = []
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=4) as recorder:
        for t in range(9):
            if t == 2:
                optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.02, "betas": (0.5, 0.9)})
            if t == 3:
                model[0].bias.requires_grad_(True)
            if t == 5:
                model[1].eval()
                model[3].weight.requires_grad_(False)
            index, x, y = lab.batch(t)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            recorder.step(index, x, y)
            if t < 2:
                schedule.step()
            states.append(copy.deepcopy(model.state_dict()))
    run = Run.open(lab.directory / "run")
    assert [len(step.groups) for step in run.steps] == [2, 2] + [3] * 7
    assert run.steps[2].groups[2]["betas"] == [0.5, 0.9]
    assert [sorted(step.skipped) for step in run.steps] == [["0.bias"]] * 3 + [[]] * 2 + [["3.weight"]] * 4
    assert run.steps[0].groups[0]["lr"] != run.steps[2].groups[0]["lr"]
    check(run, lab.network(norm=True), states)


def test_adagrad_starts_late_parameters_as_its_defaults_say(lab):
    model = lab.network()
    optimizer = torch.optim.Adagrad(model[0].parameters(), lr=0.1, initial_accumulator_value=0.5)
    states = []
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=100) as recorder:
        for t in range(4):
            if t == 2:
                optimizer.add_param_group({"params": model[2].parameters()})
            index, x, y = lab.batch(t)
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            recorder.step(index, x, y)
            states.append(copy.deepcopy(model.state_dict()))
    check(Run.open(lab.directory / "run"), lab.network(), states)


def test_unused_parameters_with_zero_gradients_still_step(lab):
    """Gradients zeroed in place, weight decay: the parameter moves though no loss depends on it."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    model = Partly()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    model.idle.weight.grad = torch.zeros(2, 2)
    start = model.idle.weight.clone()
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=100) as recorder:
        for t in range(3):
            index, x, y = lab.batch(t)
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(model(x), y).backward()
            recorder.step(index, x, y)
    run = Run.open(lab.directory / "run")
    assert run.steps[0].skipped == {"idle.bias"}
    *_, (_, weights) = replay(run, Partly())
    assert not torch.equal(weights["idle.weight"], start)


def test_augmented_and_repeated_inputs_replay(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states = []
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=100) as recorder:
        for _ in range(4):
            index, x, y = (value[[0, 0, 1, 2]] for value in lab.batch(0))
            x = x + torch.randn(x.shape)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            recorder.step(index, x, y)
            states.append(copy.deepcopy(model.state_dict()))
    run = Run.open(lab.directory / "run")
    assert run.steps[1].versions.tolist() == [2, 3, 1, 1]
    check(run, lab.network(), states)


def test_spectral_normalization_starts_from_the_buffers_before_the_step(lab):
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))

    directory, model, _ = lab.record(model=make(0), keep=100, steps=5)
    run = Run.open(directory)
    assert all(step.buffers_changed for step in run.steps)
    *_, (_, weights) = replay(run, make(1))
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_the_caller_may_change_replayed_states(lab):
    directory, _, states = lab.record(keep=3)
    for t, weights in replay(Run.open(directory), lab.network()):
        if t:
            assert all(torch.equal(weights[name], states[t - 1][name]) for name in weights)
        for value in weights.values():
            value.zero_()
        torch.rand(3)


def test_a_run_that_is_still_recording_and_an_empty_run(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=4) as recorder:
        assert [t for t, _ in replay(Run.open(lab.directory / "run"), model)] == [0]
        states = lab.loop().run(model, optimizer, recorder, steps=6)
        check(Run.open(lab.directory / "run"), lab.network(), states)


@pytest.mark.parametrize(
    ("options", "keep"), [({}, "all"), ({}, "sqrt"), ({}, 5), ({}, 100), ({"dropout": 0.5, "norm": True}, 5)]
)
def test_a_partial_replay_equals_that_part_of_the_full_replay(lab, keep, options):
    directory, model, states = lab.record(OPTIMIZERS["adam"], model=lab.network(**options), keep=keep, steps=9)
    run = Run.open(directory)
    states = [run.weights(0), *states]
    for start in range(10):
        for stop in {start, min(start + 1, 9), (start + 9) // 2, 9, None}:
            seen = list(replay(run, model, start=start, stop=stop))
            last = 9 if stop is None else stop
            assert [t for t, _ in seen] == list(range(start, last + 1))
            for t, weights in seen:
                assert all(torch.equal(weights[name], states[t][name]) for name in states[t])


def test_a_partial_replay_reads_only_from_its_anchor_to_its_end(lab):
    directory, model, states = lab.record(keep=3, steps=9)
    (directory / "weights" / "00000000.safetensors").unlink()
    (directory / "weights" / "00000003.safetensors").unlink()
    (directory / "weights" / "00000009.safetensors").unlink()
    run = Run.open(directory)
    check = [weights["0.weight"] for _, weights in replay(run, model, start=7, stop=8)]
    assert torch.equal(check[0], states[6]["0.weight"])
    assert torch.equal(check[1], states[7]["0.weight"])
    ((_, weights),) = replay(run, model, start=6, stop=6)
    assert torch.equal(weights["0.weight"], states[5]["0.weight"])


def test_forward_replaces_the_call_of_the_model(lab):
    directory, model, states = lab.record(keep=100)
    called = []

    def forward(module, batch):
        called.append(len(batch))
        return module(batch)

    check(Run.open(directory), model, states, forward=forward)
    assert called == [6, 6, 6, 3, 6, 6]  # the last state is read
