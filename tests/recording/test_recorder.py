"""kernelmem.recording.recorder: training is not changed, and the tape holds the contents of each step."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.recording import recorder as recorder_module
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}, {"dropout": 0.3, "norm": True}])
def test_training_is_bitwise_the_same_without_the_recorder(lab, dtype, options):
    results = []
    for recorded in (False, True):
        model, loop = lab.network(dtype, **options), lab.loop(dtype, clip=0.5, weighted=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(11)
        if recorded:
            with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=2) as recorder:
                states = loop.run(model, optimizer, recorder)
        else:
            states = loop.run(model, optimizer)
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append((states, torch.get_rng_state(), random.getstate(), gradients))
    (plain, state, other, grads), (recorded, state_too, other_too, grads_too) = results
    assert lab.same(plain, recorded)
    assert torch.equal(state, state_too)
    assert other == other_too
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_too, strict=True))


def test_the_contents_of_a_step(lab):
    directory, model, _ = lab.record(loop=lab.loop(schedule=True, weighted=True), keep=2)
    run = Run.open(directory)
    assert len(run) == 7
    assert (run.optimizer, run.loss, run.reduction) == ("SGD", "cross_entropy", "mean")
    assert run.parameters == tuple(name for name, _ in model.named_parameters())
    for t, step in enumerate(run.steps):
        index, x, y = lab.batch(t)
        assert step.index == t
        assert torch.equal(step.examples, index)
        assert step.versions.tolist() == [0] * len(index)
        assert torch.equal(step.sample_weight, (0.5 + torch.arange(len(index)) / 7).double())
        assert len(step.groups) == 1
        assert step.groups[0]["parameters"] == list(run.parameters)
        assert step.groups[0]["lr"] == 0.1 / (1 + t)
        assert step.groups[0]["momentum"] == 0.9
        assert (step.scale, step.skipped, step.random, step.buffers_changed) == (1.0, frozenset(), None, False)
        assert step.evaluating == frozenset()
        stored_x, stored_y = run.batch(t)
        assert stored_x.dtype == x.dtype
        assert torch.equal(stored_x, x)
        assert torch.equal(stored_y, y)


def test_random_state_is_stored_where_the_forward_pass_draws(lab):
    directory, _, _ = lab.record(model=lab.network(dropout=0.5))
    assert all(len(step.random) == len(torch.get_rng_state()) for step in Run.open(directory).steps)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_clipping_is_found(lab, dtype, tolerance):
    model, loop = lab.network(dtype), lab.loop(dtype, clip=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []

    class Watched:
        def step(self, index, x, y, weight):
            twin = copy.deepcopy(model)
            F.cross_entropy(twin(x), y).backward()
            norms.append(float(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in twin.parameters()]))))
            recorder.step(index, x, y, weight)

    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        loop.run(model, optimizer, Watched())
    scales = [step.scale for step in Run.open(lab.directory / "run").steps]
    assert scales == pytest.approx([0.05 / (norm + 1e-6) for norm in norms], rel=tolerance)
    assert max(scales) < 1


def test_the_sum_of_losses(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, lab.directory / "run", loss="mse", reduction="sum") as recorder:
        index, x, y = lab.batch(0)
        (0.5 * (model(x) - F.one_hot(y, 3)).square().sum()).backward()
        recorder.step(index, x, y)
    assert Run.open(lab.directory / "run").steps[0].scale == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accumulated_gradients(lab, dtype):
    model = lab.network(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for t in range(3):
            optimizer.zero_grad()
            parts = [lab.batch(4 * t + k, dtype) for k in range(2)]
            for _, x, y in parts:
                (F.cross_entropy(model(x), y) / 2).backward()
            recorder.step(*(torch.cat(column) for column in zip(*parts, strict=True)))
    steps = Run.open(lab.directory / "run").steps
    assert [len(step.examples) for step in steps] == [12, 12, 12]
    assert all(step.scale == pytest.approx(1, rel=1e-6 if dtype == torch.float32 else 1e-14) for step in steps)


def test_a_skipped_batch_and_evaluations_between_steps_do_not_disturb_dropout(lab):
    model = lab.network(dropout=0.5, norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for t in range(4):
            index, x, y = lab.batch(t)
            if t == 2:
                model.eval()
                F.cross_entropy(model(x), y).backward()  # thrown away by zero_grad
                model.train()
            torch.rand(5)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            model.eval()
            with torch.no_grad():
                model(x)
            model.train()
            recorder.step(index, x, y)
    assert len(Run.open(lab.directory / "run")) == 4


def test_the_batch_is_not_changed(lab):
    model = nn.Sequential(nn.ReLU(inplace=True), lab.network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    index, x, y = lab.batch(0)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        F.cross_entropy(model(x.clone()), y).backward()
        recorder.step(index, x, y)
    assert torch.equal(x, lab.batch(0)[1])
    assert torch.equal(Run.open(lab.directory / "run").batch(0)[0], x)


def test_parameters_without_gradient_are_skipped(lab):
    model = lab.network()
    model[0].bias.requires_grad_(False)
    model.add_module("unused", nn.Linear(2, 2))
    # the model's own forward is that of Sequential: cut the unused layer off
    model.forward = lambda x: nn.Sequential.forward(model[:3], x)
    directory, _, _ = lab.record(model=model, steps=2)
    assert Run.open(directory).steps[1].skipped == {"0.bias", "unused.weight", "unused.bias"}


def test_parameters_outside_the_optimizer_may_have_any_gradient(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        lab.loop().run(model, optimizer, recorder, steps=3)
    step = Run.open(lab.directory / "run").steps[2]
    assert step.groups[0]["parameters"] == ["2.weight", "2.bias"]
    assert step.skipped == frozenset()


def test_buffers_and_modes_are_recorded(lab):
    model = lab.network(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        lab.loop().run(model, optimizer, recorder, steps=2)
        model[1].eval()
        lab.loop().run(model, optimizer, recorder, start=2, steps=3)
        model.eval()
        lab.loop().run(model, optimizer, recorder, start=3, steps=4)
    steps = Run.open(lab.directory / "run").steps
    assert [step.buffers_changed for step in steps] == [True, True, False, False]
    assert [sorted(step.evaluating) for step in steps] == [[], [], ["1"], ["", "0", "1", "2", "3"]]


def test_augmented_inputs_are_versions(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for epoch in range(3):
            index, x, y = lab.batch(0)
            x = x if epoch == 1 else x + epoch * (index % 2)[:, None]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            recorder.step(index, x, y)
            seen.append(x)
    run = Run.open(lab.directory / "run")
    for t, x in enumerate(seen):
        assert torch.equal(run.batch(t)[0], x)
        assert run.steps[t].versions.tolist() == ((index % 2) * (t == 2)).tolist()


@pytest.mark.parametrize(("keep", "kept"), [("all", range(8)), (3, [0, 3, 6, 7]), (100, [0, 7]), (7, [0, 7])])
def test_the_keep_policy_with_first_and_last(lab, keep, kept):
    directory, _, _ = lab.record(keep=keep)
    assert list(Run.open(directory).kept) == list(kept)


def test_the_square_root_policy():
    kept = [t for t in range(20001) if recorder_module.checkpoints.is_kept(t, "sqrt")]
    for steps in (1, 10, 100, 1000, 20000):
        below = [t for t in kept if t <= steps]
        gap = max(b - a for a, b in zip(below, [*below[1:], steps], strict=True))
        assert gap <= steps**0.5
        assert len(below) <= 3 * steps**0.5 + 1


def test_a_copy_of_the_model_is_not_recorded(lab):
    model = lab.network(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        index, x, y = lab.batch(0)
        loss = F.cross_entropy(model(x), y)
        copy.deepcopy(model)(x)
        loss.backward()
        recorder.step(index, x, y)
    assert len(model._forward_pre_hooks) == 0
