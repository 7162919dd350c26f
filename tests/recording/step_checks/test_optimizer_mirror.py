"""kernelmem.recording.step_checks.optimizer_mirror: weights that the optimizer's formula does not give are refused."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1, initial_accumulator_value=0.1),
}


def train(lab, make, *, between=None, after_step=None, dtype=torch.float32, steps=4, prepare=None):
    """Four steps; ``between(t, model, optimizer)`` comes before backward of step t, ``after_step`` after it."""
    model = lab.network(dtype)
    optimizer = make(model.parameters())
    if prepare is not None:
        prepare(model, optimizer)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for t in range(steps):
            index, x, y = lab.batch(t, dtype)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if between is not None:
                between(t, model, optimizer)
            recorder.step(index, x, y)
            if after_step is not None:
                after_step(t, model, optimizer)
    return Run.open(lab.directory / "run")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_and_implementation_follows_its_formula(lab, name, dtype):
    seen = []

    def log(optimizer, *_):
        seen.append(optimizer.param_groups[0]["lr"])

    def add_hook(_, optimizer):
        optimizer.register_step_pre_hook(log)

    run = train(lab, OPTIMIZERS[name], dtype=dtype, prepare=add_hook)
    assert len(run) == len(seen) == 4


def test_weights_in_other_memory_layouts(lab):
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(80, 3)).to(memory_format=torch.channels_last)
    model[2].weight = nn.Parameter(torch.randn(80, 3).T)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(4, 2, 6, 6), torch.arange(4) % 3
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            recorder.step(torch.arange(4), x, y)
    Run.open(lab.directory / "run").verify()


def clip_values(optimizer, *_):
    nn.utils.clip_grad_value_([p for group in optimizer.param_groups for p in group["params"]], 1e-3)


def clamp_weights(optimizer, *_):
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("name", ["sgd", "foreach", "fused", "rmsprop"])
@pytest.mark.parametrize(("register", "hook"), [("pre", clip_values), ("post", clamp_weights)])
def test_a_step_hook_is_refused_when_it_acts(lab, name, register, hook, start):
    def add_hook(_, optimizer):
        steps = [0]

        def act(*args):
            steps[0] += 1
            if steps[0] > start:
                hook(*args)

        getattr(optimizer, f"register_step_{register}_hook")(act)

    with pytest.raises(
        InputError, match=rf"step {start} that differ from the formula .*most in [02]\..*step hooks .*act"
    ):
        train(lab, OPTIMIZERS[name], prepare=add_hook)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert len(run) == start


def test_a_global_step_hook_is_refused_when_it_acts(lab):
    handle = register_optimizer_step_post_hook(clamp_weights)
    with contextlib.ExitStack() as stack:
        stack.callback(handle.remove)
        with pytest.raises(InputError, match=r"the step hooks clamp_weights"):
            train(lab, OPTIMIZERS["adam"])


@pytest.mark.parametrize("name", ["momentum", "adam", "rmsprop"])
def test_a_state_that_was_reset_is_refused(lab, name):
    def reset(t, _, optimizer):
        if t == 1:
            optimizer.state.clear()

    with pytest.raises(InputError, match=r"after step 2 that differ.*the state of the optimizer was changed"):
        train(lab, OPTIMIZERS[name], after_step=reset)


@pytest.mark.parametrize("name", ["momentum", "adam", "adagrad"])
def test_an_optimizer_with_a_past_is_refused(lab, name):
    def step(model, optimizer):
        model(lab.batch(0)[1]).sum().backward()
        optimizer.step()

    with pytest.raises(InputError, match=r"has already taken steps .*Hint: make a new optimizer"):
        train(lab, OPTIMIZERS[name], prepare=step)
    assert not (lab.directory / "run").exists() or not list((lab.directory / "run").iterdir())


def test_plain_descent_has_no_past(lab):
    assert len(train(lab, OPTIMIZERS["sgd"], prepare=lambda model, optimizer: optimizer.step())) == 4


def test_optimizer_step_instead_of_recorder_step_is_refused(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy"):
        F.cross_entropy(model(lab.batch(0)[1]), lab.batch(0)[2]).backward()
        with pytest.raises(InputError, match=r"SGD.step in the with block.*Hint: call recorder.step"):
            optimizer.step()
    assert lab.same([model.state_dict()], [before])
    optimizer.step()  # after the block it is the user's again


def test_weights_changed_after_the_last_step_are_noticed_on_leaving(lab):
    def load(t, model, _):
        if t == 3:
            model.load_state_dict(lab.network(seed=9).state_dict())

    with pytest.raises(
        InputError, match=r"parameter 0.weight, which has changed since the last recorded step \(step 4\)"
    ):
        train(lab, OPTIMIZERS["sgd"], after_step=load)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert run.kept[-1] == 4


def test_a_group_that_is_added_later(lab):
    model = nn.Sequential(lab.network(), nn.Linear(3, 3))
    for make in (OPTIMIZERS["momentum"], OPTIMIZERS["adagrad"]):
        optimizer = make(model[0].parameters())
        directory = lab.directory / type(optimizer).__name__
        with Recorder(model, optimizer, directory, loss="cross_entropy") as recorder:
            for t in range(4):
                if t == 2:
                    optimizer.add_param_group({"params": list(model[1].parameters()), "lr": 0.01})
                index, x, y = lab.batch(t)
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
                recorder.step(index, x, y)
        assert len(Run.open(directory)) == 4


def test_a_gradient_scaler_is_recorded_with_or_without_unscaling(lab):
    for unscale in (True, False):
        model = lab.network()
        optimizer = torch.optim.Adam(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        directory = lab.directory / str(unscale)
        with Recorder(model, optimizer, directory, loss="cross_entropy") as recorder:
            index, x, y = lab.batch(0)
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if unscale:
                scaler.unscale_(optimizer)
            else:
                with pytest.raises(InputError, match=r"with a GradScaler, call recorder.step\(.*, scaler=scaler\)"):
                    optimizer.step()
            recorder.step(index, x, y)
        assert Run.open(directory).steps[0].scale == (1.0 if unscale else 1024.0)
