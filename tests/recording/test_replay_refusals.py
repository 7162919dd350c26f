"""kernelmem.recording.replay: errors name the step that cannot be replayed to the bit."""

import copy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import FileCorruptError, InputError, VerificationError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run


def smoothed(f, y):
    return F.cross_entropy(f, y, reduction="none", label_smoothing=0.1)


def test_a_callable_loss_must_be_passed_again(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss=smoothed, keep=100) as recorder:
        for t in range(3):
            index, x, y = lab.batch(t)
            optimizer.zero_grad()
            smoothed(model(x), y).mean().backward()
            recorder.step(index, x, y)
    run = Run.open(lab.directory / "run")
    assert run.loss.startswith("callable:")
    assert run.loss.endswith("smoothed")
    with pytest.raises(InputError, match=r"smoothed.*pass loss="):
        replay(run, model)
    assert len(list(replay(run, model, loss=smoothed))) == 4
    with pytest.raises(VerificationError, match="after 1 steps"):
        list(replay(run, model, loss=lambda f, y: F.cross_entropy(f, y, reduction="none")))
    named = Run.open(lab.record(directory=lab.directory / "named")[0])
    with pytest.raises(InputError, match=r"loss='mse'.*'cross_entropy', as recorded"):
        replay(named, model, loss="mse")


@pytest.fixture
def accumulated(lab):
    """A float32 run whose gradients were accumulated: replayed in one batch, they round otherwise."""
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=3) as recorder:
        states = []
        for t in range(7):
            optimizer.zero_grad()
            index, x, y = lab.batch(4 * t)
            for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
                (F.cross_entropy(model(x[part]), y[part], reduction="sum") / 6).backward()
            recorder.step(index, x, y)
            states.append(copy.deepcopy(model.state_dict()))
    return Run.open(lab.directory / "run"), states


def claim_exact(run, monkeypatch):
    """Let the steps say that their gradients can be repeated to the bit."""
    read = run.tape.step

    def altered(index):
        step = read(index)
        object.__setattr__(step, "exact", True)
        return step

    monkeypatch.setattr(run.tape, "step", altered)


def test_other_bits_are_an_error_that_names_the_step(lab, accumulated, monkeypatch):
    run, _ = accumulated
    claim_exact(run, monkeypatch)
    with pytest.raises(VerificationError, match=r"after \d steps .* recomputed from step \d.*Hint: .*reanchor=True"):
        list(replay(run, lab.network()))


@pytest.mark.parametrize("reanchor", [True, False])
def test_reanchoring_continues_from_the_next_kept_weights(lab, accumulated, reanchor):
    """Without being asked for too, where the recorder could not repeat the bits either."""
    run, states = accumulated
    assert not any(step.exact for step in run.steps)
    seen = dict(replay(run, lab.network(), reanchor=reanchor))
    assert list(seen) == list(range(8))
    exact = []
    for t in range(1, 8):
        for name, value in states[t - 1].items():
            torch.testing.assert_close(seen[t][name], value, rtol=1e-5, atol=1e-6)
        exact.append(all(torch.equal(seen[t][name], value) for name, value in states[t - 1].items()))
    assert [exact[t - 1] for t in (3, 6, 7)] == [True] * 3
    assert not all(exact)


def test_an_altered_scale_is_found_in_replay(lab, monkeypatch):
    run = Run.open(lab.record(keep=100)[0])
    read = run.tape.step

    def altered(index):
        step = read(index)
        if index == 4:
            object.__setattr__(step, "scale", 1 + 1e-4)
        return step

    monkeypatch.setattr(run.tape, "step", altered)
    with pytest.raises(VerificationError, match=r"weights after 5 steps .* from step 0"):
        list(replay(run, lab.network()))


def test_another_architecture_is_refused_at_the_call(lab):
    run = Run.open(lab.record(keep=3)[0])
    for model, words in [
        (nn.Linear(4, 3), "weight"),
        (
            lab.network(torch.float64),
            r"with 0\.weight of shape and dtype \(6, 4\) float64, while the recorded one is .* float32",
        ),
        (lab.network(norm=True), "1"),
    ]:
        with pytest.raises(InputError, match=words):
            replay(run, model)


def test_a_damaged_checkpoint_stops_the_replay_there(lab):
    directory, _, _ = lab.record(keep=3)
    path = directory / "weights" / "00000006.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    steps = replay(Run.open(directory), lab.network(), reanchor=True)
    assert len(list(islice(steps, 6))) == 6
    with pytest.raises(FileCorruptError, match="step 6"):
        next(steps)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"start": 8}, r"start=8.*in 0\.\.7"),
        ({"start": -1}, "start=-1"),
        ({"start": 1.0}, r"start=1\.0"),
        ({"start": True}, "start=True"),
        ({"start": 4, "stop": 3}, r"stop=3.*4\.\.7"),
        ({"stop": 8}, "stop=8"),
    ],
)
def test_steps_beyond_the_run_are_refused_immediately(lab, part, named):
    run = Run.open(lab.record()[0])
    with pytest.raises(InputError, match=named):
        replay(run, lab.network(), **part)


def test_a_partial_replay_compares_the_steps_before_it(lab, accumulated, monkeypatch):
    run, states = accumulated
    claim_exact(run, monkeypatch)
    with pytest.raises(VerificationError, match=r"after 4 steps.*recomputed from step 3"):
        next(replay(run, lab.network(), start=5))
    (t, weights), *rest = replay(run, lab.network(), start=5, stop=6, reanchor=True)
    assert t == 5
    assert not torch.equal(weights["0.weight"], states[4]["0.weight"])
    assert torch.equal(rest[0][1]["0.weight"], states[5]["0.weight"])
