"""Replay: the weights after every step of a run, read where they were kept and recomputed to the bit between."""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError, VerificationError
from kernelmem.recording.gradient_check import Forward, batch_gradient, call, random_state
from kernelmem.recording.run import Run
from kernelmem.recording.storage.checkpoints import (
    Checkpoint,
    load_model_state,
    model_state,
    optimizer_state,
    set_optimizer_state,
    state_sha256,
)
from kernelmem.recording.storage.param_groups import build_optimizer, set_groups
from kernelmem.recording.storage.tape import Step
from kernelmem.training.losses import Loss, check_loss

__all__ = ["replay", "replay_step", "set_modes"]


def replay(
    run: Run,
    model: nn.Module,
    *,
    loss: Loss | None = None,
    reanchor: bool = False,
    start: int = 0,
    stop: int | None = None,
    forward: Forward | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Give (t, weights and buffers after t steps) for t = start, ..., stop: by default 0, 1, ..., T.

    Kept states are read; between them the step is taken again from the kept one before: the recorded batch, random
    state, train or eval mode and gradient scale, and a real torch.optim optimizer. Every state is compared with the
    SHA-256 on the tape, those too that are recomputed only to reach ``start``. Neither ``model`` nor torch's random
    state is changed.

    Args:
        run: an open run.
        model: of the recorded architecture; its weights play no part.
        loss: the callable of a run that was recorded with one.
        reanchor: let recomputed states differ from the recorded ones (another thread count or torch version,
            accumulated gradients); each kept state is exact again.
        start: the first t. Nothing before the largest kept t <= start is read.
        stop: the last t, included; None: T.
        forward: maps (model, batch) to (B, C) outputs, as in the recording; None: ``model(x)``.

    Returns:
        An iterator over stop - start + 1 states, each a dict of tensors that belong to the caller. One forward and one
        backward pass for each step that was not kept, none where all were.

    Raises:
        InputError: another model, no loss or forward where the run has a callable, steps that the run has not. While iterating:
            VerificationError, a state differs from the recorded one, names the step; FileCorruptError, the files are
            not what was written.
    """
    loss, forward = _recorded_loss(run, loss), _recorded_forward(run, forward)
    stop = len(run) if stop is None else stop
    _check_range(run, start, stop)
    anchor = max(t for t in run.kept if t <= start)
    copied = copy.deepcopy(model)
    load_model_state(copied, run.weights(anchor))  # refuses another architecture here, not at the first step
    every = _states(run, copied, loss, reanchor, forward, anchor, stop)
    return ((t, {name: value.clone() for name, value in state.items()}) for t, state in every if t >= start)


def replay_step(
    run: Run, model: nn.Module, t: int, *, loss: Loss | None = None, forward: Forward | None = None
) -> Checkpoint:
    """Take step ``t`` again from the kept state before it, in place of what ``model`` is; what it leaves there.

    Raises:
        InputError: another model, no loss or forward where the run has a callable, a state that was not kept.
    """
    loss, forward = _recorded_loss(run, loss), _recorded_forward(run, forward)
    begin = run.checkpoint(t)
    optimizer = _begin(run, model, begin, t)
    _advance(run, run.steps[t], model, optimizer, loss, forward)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return Checkpoint(model_state(model), optimizer_state(optimizer, names), begin.random)


def _states(
    run: Run, model: nn.Module, loss: Loss, reanchor: bool, forward: Forward, anchor: int, stop: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    kept = frozenset(run.kept)
    begin: Checkpoint | None = None  # the kept state that the model is at, unless it has moved on
    optimizer: torch.optim.Optimizer | None = None
    for t in range(anchor, stop + 1):
        expected = run.steps[t - 1].after if t else run.meta.get("initial")
        if t in kept:
            begin, anchor = run.checkpoint(t), t
            state = begin.model
            # a kept state is never recomputed, so it must be exact even where others need not be
            _compare(run, t, t, state, expected)
        else:
            if begin is not None:
                optimizer = _begin(run, model, begin, t - 1)
                begin = None
            assert optimizer is not None
            _advance(run, run.steps[t - 1], model, optimizer, loss, forward)
            state = model_state(model)
            if not reanchor:
                _compare(run, t, anchor, state, expected)
        yield t, state


def _begin(run: Run, model: nn.Module, checkpoint: Checkpoint, t: int) -> torch.optim.Optimizer:
    """Put the model where the checkpoint is, and give an optimizer in its state."""
    load_model_state(model, checkpoint.model)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(run.optimizer, run.meta["defaults"], run.steps[t].groups, parameters)
    set_optimizer_state(optimizer, checkpoint.optimizer, parameters)
    return optimizer


def _advance(
    run: Run, step: Step, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, forward: Forward
) -> None:
    """Take one recorded step."""
    parameters = dict(model.named_parameters())
    set_groups(optimizer, step.groups, parameters)
    set_modes(model, step.evaluating)
    members = {name for group in step.groups for name in group["parameters"]} - step.skipped
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in members)
        parameter.grad = None
    x, y = run.tape.inputs(step)
    weights = None if bool((step.sample_weight == 1).all()) else step.sample_weight
    drawn = None if step.random is None else torch.frombuffer(bytearray(step.random), dtype=torch.uint8)
    with random_state(drawn):
        gradients = batch_gradient(
            lambda batch: forward(model, batch),
            {name: parameters[name] for name in parameters if name in members},
            x,
            y,
            weights,
            loss=loss,
            reduction=run.reduction,
        )
    for name, gradient in gradients.items():
        parameters[name].grad = gradient if step.scale == 1.0 else gradient * step.scale
    optimizer.step()


def set_modes(model: nn.Module, evaluating: frozenset[str]) -> None:
    """Put every module of ``model`` in train mode, but those named in ``evaluating`` in eval mode."""
    for name, module in model.named_modules():
        module.training = name not in evaluating


def _compare(run: Run, t: int, anchor: int, state: Mapping[str, Tensor], expected: str | None) -> None:
    if state_sha256(state) != expected:
        how = f"recomputed from step {anchor}" if t != anchor else "read from its checkpoint"
        raise VerificationError(
            f"weights after {t} steps of {run.path}, {how}, that are not the recorded ones",
            expected=f"the same bytes: sha256 {expected}",
            hint=f"replay with torch {run.meta.get('torch')} on {run.meta.get('threads')} threads as recorded (here:"
            f" torch {torch.__version__}, {torch.get_num_threads()} threads), or pass reanchor=True to go on from the"
            " next kept weights",
        )


def _check_range(run: Run, start: int, stop: int) -> None:
    for name, value, first in (("start", start, 0), ("stop", stop, start)):
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= len(run):
            raise InputError(
                f"{name}={value!r} in a run of {len(run)} steps",
                expected=f"a whole number {first}..{len(run)}",
                hint="count the steps that were taken: 0 is before the first; stop is included",
            )


def _recorded_forward(run: Run, forward: Forward | None) -> Forward:
    recorded = run.meta.get("forward")
    if recorded is not None and forward is None:
        raise InputError(
            f"a run recorded with forward {recorded.removeprefix('callable:')}",
            expected="that function: code is not stored",
            hint="pass forward=...",
        )
    return forward or call


def _recorded_loss(run: Run, loss: Loss | None) -> Loss:
    if run.loss.startswith("callable:"):
        if not callable(loss):
            raise InputError(
                f"a run recorded with the loss {run.loss.removeprefix('callable:')}",
                expected="that function: code is not stored",
                hint="pass loss=...",
            )
        return loss
    if loss is not None and loss != run.loss:
        raise InputError(f"loss={loss!r}", expected=f"{run.loss!r}, as recorded", hint="leave loss out")
    check_loss(run.loss)
    return run.loss
