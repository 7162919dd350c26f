"""kernelmem.recording.recorder: autocast, GradScaler, fused and foreach optimizers are recorded as torch runs them."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.trajectory.ledger.ledger import ledger

OPTIMIZERS = {
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
}


def train(lab, model, optimizer, recorder=None, *, autocast=None, scaler=None, overflow=(), clip=None, steps=6):
    """Train under autocast with a scaler; the weights after every step, and whether each step was taken."""
    states, taken = [], []
    for t in range(steps):
        index, x, y = lab.batch(t)
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = F.cross_entropy(model(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if t in overflow:
            model[0].weight.grad[0, 0] = torch.inf
        if clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if recorder is not None:
            taken.append(recorder.step(index, x, y, scaler=scaler))
        elif scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return states, taken


def both(lab, make, *, scaled=False, network=None, keep="sqrt", **options):
    """The same training without and with a recorder: (states, states, taken)."""
    results = []
    for recorded in (False, True):
        model = lab.network(**(network or {}))
        optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=1024) if scaled else None
        torch.manual_seed(3)
        if recorded:
            with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=keep) as recorder:
                states, taken = train(lab, model, optimizer, recorder, scaler=scaler, **options)
        else:
            states, taken = train(lab, model, optimizer, scaler=scaler, **options)
        results.append(states)
    return *results, taken


@pytest.mark.parametrize(
    ("name", "autocast", "scaled"),
    [
        ("SGD fused", None, False),
        ("AdamW fused", None, True),
        ("SGD foreach", torch.bfloat16, False),
        ("Adam fused", torch.bfloat16, True),
        ("SGD fused", torch.bfloat16, True),
        ("AdamW foreach", torch.float16, True),
    ],
)
def test_training_is_bitwise_the_same_and_replay_repeats_it(lab, name, autocast, scaled):
    plain, recorded, taken = both(
        lab, OPTIMIZERS[name], autocast=autocast, scaled=scaled, overflow=(1, 4) if scaled else ()
    )
    assert lab.same(plain, recorded)
    assert taken == [not scaled or t not in (1, 4) for t in range(6)]
    run = Run.open(lab.directory / "run")
    assert len(run) == sum(taken)
    assert all(step.exact for step in run.steps)
    assert {step.autocast for step in run.steps} == {None if autocast is None else str(autocast)[6:]}
    assert [step.loss_scale for step in run.steps] == ([1024, 512, 512, 256] if scaled else [1.0] * 6)
    states = [state for _, state in replay(run, lab.network())]
    assert lab.same(states[1:], [state for state, was_taken in zip(recorded, taken, strict=True) if was_taken])


def test_clipping_of_unscaled_gradients_is_a_factor(lab):
    plain, recorded, _ = both(lab, OPTIMIZERS["Adam fused"], autocast=torch.bfloat16, scaled=True, clip=0.1)
    assert lab.same(plain, recorded)
    assert all(step.scale < 1 for step in Run.open(lab.directory / "run").steps)


@pytest.mark.parametrize("norm", [False, True])
def test_buffers_of_a_skipped_pass_make_the_next_step_inexact(lab, norm):
    both(lab, OPTIMIZERS["SGD fused"], scaled=True, overflow=(2,), network={"norm": norm, "dropout": 0.3}, keep=100)
    run = Run.open(lab.directory / "run")
    assert [step.exact for step in run.steps] == [True, True, not norm, True, True]
    assert sum(1 for _ in replay(run, lab.network(norm=norm, dropout=0.3))) == 6


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_first_step_of_fused_momentum_is_refused_because_torch_reads_unwritten_memory(lab, fused):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        if fused:
            with pytest.raises(InputError, match="momentum buffers that were never written"):
                train(lab, model, optimizer, recorder, scaler=scaler, overflow=(0,), steps=1)
            assert all(state["momentum_buffer"] is None for state in optimizer.state.values())
            scaler.update()
        _, taken = train(lab, model, optimizer, recorder, scaler=scaler, overflow=() if fused else (0,), steps=3)
    assert taken == [fused, True, True]
    assert ledger(Run.open(lab.directory / "run"), lab.network(), lab.batch(9)[1]).closed


def test_a_disabled_scaler_is_none(lab):
    model = lab.network()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        _, taken = train(lab, model, optimizer, recorder, scaler=scaler)
    assert taken == [True] * 6
    assert {step.loss_scale for step in Run.open(lab.directory / "run").steps} == {1.0}


def test_small_gradients_of_float16_need_the_scale_of_the_run(lab):
    """With a loss of 1e-6 the gradients of a float16 pass vanish, unless the loss is scaled during the second pass too."""
    model = lab.network()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    loss = _small_loss
    index, x, y = lab.batch(0)
    with Recorder(model, optimizer, lab.directory / "run", loss=loss) as recorder:
        with torch.autocast("cpu", torch.float16):
            value = loss(model(x), y).mean()
        scaler.scale(value).backward()
        assert recorder.step(index, x, y, scaler=scaler)
    step = Run.open(lab.directory / "run").steps[0]
    assert (step.exact, step.scale, step.loss_scale) == (True, 1.0, 2.0**16)


def _small_loss(outputs, y):
    return 1e-6 * F.cross_entropy(outputs, y, reduction="none")


def test_rounding_of_the_ledger_is_that_of_autocast(lab):
    """The terms still add up; the rounding term is of the size of bfloat16, and larger than that of float32."""
    rounding = {}
    for autocast in (None, torch.bfloat16):
        model = lab.network()
        optimizer, directory = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), lab.directory / str(autocast)
        with Recorder(model, optimizer, directory, loss="cross_entropy") as recorder:
            train(lab, model, optimizer, recorder, autocast=autocast)
        result = ledger(Run.open(directory), lab.network(), lab.batch(9)[1])
        assert result.closed
        assert result.largest_residual < 1e-10
        rounding[result.training_dtype] = float(
            result.rounding.abs().max() / (result.final - result.initial).abs().max()
        )
    assert 1e-4 < rounding["bfloat16"] < 3e-2  # eps of bfloat16 is 8e-3, of float32 1e-7
    assert rounding["float32"] < 1e-5
    assert "bfloat16" in str(result)


def test_autocast_leaves_float64_alone_and_the_check_is_as_strict_as_without_it(lab):
    model = lab.network(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    index, x, y = lab.batch(0, torch.float64)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        model[0].bias.grad *= 1 + 1e-6
        with pytest.raises(InputError, match="largest mismatch"):
            recorder.step(index, x, y)
        model[0].bias.grad /= 1 + 1e-6
        assert recorder.step(index, x, y)
    assert ledger(Run.open(lab.directory / "run"), model, x).training_dtype == "float64"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("inside", "recorder.step was called under torch.autocast"),
        ("mixed", "2 precisions of autocast in its forward passes"),
        ("unscaled", "cannot unscale the gradients"),
        ("no update", "not updated after the last step"),
        ("no scaler", "scaler=1 of type int"),
        ("outside", r"a call of SGD.step .*scaler=scaler"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(lab, case, message):
    model = lab.network()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    index, x, y = lab.batch(0)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        if case == "mixed":
            F.cross_entropy(model(x), y).backward()
        (loss if case == "unscaled" else scaler.scale(loss)).backward()
        steps = 0
        if case == "no update":
            assert recorder.step(index, x, y, scaler=scaler)
            steps = 1
        given = {"no scaler": 1, "inside": None, "mixed": None}.get(case, scaler)
        call = (
            partial(scaler.step, optimizer) if case == "outside" else partial(recorder.step, index, x, y, scaler=given)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "inside"), pytest.raises(InputError, match=message):
            call()
    assert len(Run.open(lab.directory / "run")) == steps
