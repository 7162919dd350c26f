"""Replay of a recorded run: weights after every step, read where they were kept, recomputed to the bit between."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward
from kernelmem.core.checks import as_count, as_flag, check_callable, check_model
from kernelmem.core.errors import InputError, VerificationError
from kernelmem.core.models import copy_module, float32_products, with_float32_products
from kernelmem.recording.gradient_check import batch_gradient, call_model
from kernelmem.recording.run import Run, check_run
from kernelmem.recording.step_checks.precision import Precision
from kernelmem.recording.step_checks.random_state import random_state
from kernelmem.recording.storage.checkpoints import (
    Checkpoint,
    load_model_state,
    model_state,
    on_cpu,
    optimizer_state,
    set_optimizer_state,
    state_sha256,
)
from kernelmem.recording.storage.header import model_device
from kernelmem.recording.storage.inputs import RecordedBatch
from kernelmem.recording.storage.param_groups import build_optimizer, set_groups
from kernelmem.recording.storage.tape import Step
from kernelmem.training.losses import Loss, as_loss


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
    """Yield (t, weights and buffers after t steps) for t = start, ..., stop; by default 0, 1, ..., T.

    Kept states are read. Between them each step is repeated with the recorded batch, random state, train or eval mode and
    gradient scale, by a torch.optim optimizer of the recorded class. Every state is compared with its recorded SHA-256,
    including those recomputed only to reach ``start``; except, up to the next kept state, after a step whose gradient the
    recorder itself could repeat only up to rounding (accumulation, weighted means): ``step.exact`` is then False. Neither
    ``model`` nor torch's random state is changed. Steps are repeated where ``model`` is: on another device than the
    recorded one they differ by rounding, which ``reanchor`` allows; the yielded states are on the CPU.

    Args:
        run: an open run.
        model: of the recorded architecture; its weights do not matter.
        loss: the loss function, required if the run was recorded with a callable.
        reanchor: allow recomputed states to differ from the recorded ones (another thread count, torch version or device,
            accumulated gradients); each kept state is exact again.
        start: the first t. Nothing before the largest kept t <= start is read.
        stop: the last t, included; None: T.
        forward: maps (model, batch) to outputs (B, C), as in the recording; None: ``model(x)``.

    Returns:
        An iterator over stop - start + 1 states, each a dict of tensors that the caller may change.

    Raises:
        InputError: the model is not the recorded one, a loss or forward recorded as a callable is missing, or steps are
            beyond the run.
            While iterating: VerificationError if a state differs from the recorded one (names the
            step); FileCorruptError if a file was altered.

    Cost: one forward and one backward pass for each step that was not kept.
    """
    check_run(run)
    check_model(model)
    reanchor = as_flag(reanchor, "reanchor")
    loss, forward = _recorded_loss(run, loss), _recorded_forward(run, forward)
    stop = len(run) if stop is None else stop
    _check_range(run, start, stop)
    anchor = max(t for t in run.kept if t <= start)
    replay_model = copy_module(model)
    load_model_state(replay_model, run.weights(anchor))  # refuses another architecture here, not at the first step
    states = _replayed_states(run, replay_model, loss, reanchor, forward, anchor, stop)
    return ((t, {name: value.clone() for name, value in state.items()}) for t, state in states if t >= start)


def replay_step(
    run: Run, model: nn.Module, t: int, *, loss: Loss | None = None, forward: Forward | None = None
) -> Checkpoint:
    """Repeat step ``t`` from the kept state before it, in ``model`` (which is changed), and return the resulting state.

    Raises:
        InputError: the model is not the recorded one, a loss or forward recorded as a callable is missing, or the state
            before the step was not kept.
    """
    loss, forward = _recorded_loss(run, loss), _recorded_forward(run, forward)
    checkpoint = run.checkpoint(t)
    optimizer = _start_from_checkpoint(run, model, checkpoint, t)
    _repeat_step(run, run.steps[t], model, optimizer, loss, forward)
    names = {parameter: name for name, parameter in model.named_parameters()}
    states = {name: on_cpu(state) for name, state in optimizer_state(optimizer, names).items()}
    return Checkpoint(on_cpu(model_state(model)), states, checkpoint.random)


def _replayed_states(
    run: Run, model: nn.Module, loss: Loss, reanchor: bool, forward: Forward, anchor: int, stop: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield (t, parameters and buffers after t steps) for t = anchor, ..., stop, where the state ``anchor`` was kept.

    ``model`` is changed: it holds the last recomputed state. The caller must not change the yielded tensors.
    """
    kept = frozenset(run.kept)
    checkpoint: Checkpoint | None = None  # the kept state at t - 1; None if that state was recomputed
    optimizer: torch.optim.Optimizer | None = None
    is_exact = True  # False after a step whose gradient cannot be recomputed to the bit, until the next kept state
    for t in range(anchor, stop + 1):
        recorded_sha256 = run.steps[t - 1].after if t else run.meta.get("initial")
        if t in kept:
            checkpoint, anchor, is_exact = run.checkpoint(t), t, True
            state = checkpoint.model
            # a kept state is never recomputed, so it must be exact even with reanchor
            _check_sha256(run, t, t, state, recorded_sha256)
        else:
            if checkpoint is not None:
                optimizer = _start_from_checkpoint(run, model, checkpoint, t - 1)
                checkpoint = None
            assert optimizer is not None
            _repeat_step(run, run.steps[t - 1], model, optimizer, loss, forward)
            state = on_cpu(model_state(model))
            is_exact = is_exact and run.steps[t - 1].exact
            if is_exact and not reanchor:
                _check_sha256(run, t, anchor, state, recorded_sha256)
        yield t, state


def _start_from_checkpoint(run: Run, model: nn.Module, checkpoint: Checkpoint, t: int) -> torch.optim.Optimizer:
    """Load the checkpoint after t steps into the model, and return an optimizer that is ready to repeat step t."""
    load_model_state(model, checkpoint.model)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(run.optimizer, run.meta["defaults"], run.steps[t].groups, parameters)
    set_optimizer_state(optimizer, checkpoint.optimizer, parameters)
    return optimizer


def _repeat_step(
    run: Run, step: Step, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, forward: Forward
) -> None:
    """Repeat one recorded step, in place, from the state that ``model`` and ``optimizer`` have.

    Batch, train or eval modes, random state, gradient scale and hyper-parameters are those of the recording.
    """
    parameters, device = dict(model.named_parameters()), model_device(model)
    set_groups(optimizer, step.groups, parameters)
    set_modes(model, step.evaluating)
    trained_names = {name for group in step.groups for name in group["parameters"]} - step.skipped
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained_names and name not in step.frozen)
        parameter.grad = None
    x, y = run.tape.inputs(step)
    sample_weight = None if bool((step.sample_weight == 1).all()) else step.sample_weight
    batch = RecordedBatch(step.examples, x, y, sample_weight).to(device)
    autocast = None if step.autocast is None else getattr(torch, step.autocast)
    forward_random_state = None if step.random is None else torch.frombuffer(bytearray(step.random), dtype=torch.uint8)
    products = run.meta.get("float32_products", float32_products())  # of TF32 on CUDA, as in the recording
    with random_state(forward_random_state, device), with_float32_products(products):
        gradients = batch_gradient(
            lambda rows: forward(model, rows),
            {name: parameters[name] for name in parameters if name in trained_names},
            batch.x,
            batch.y,
            batch.sample_weight,
            loss=loss,
            reduction=run.reduction,
            precision=Precision(device.type, autocast, step.loss_scale),
        )
    for name, gradient in gradients.items():
        parameters[name].grad = gradient if step.scale == 1.0 else gradient * step.scale
    optimizer.step()


def set_modes(model: nn.Module, eval_modules: frozenset[str]) -> None:
    """Set every module of ``model`` to train mode, except those named in ``eval_modules``, which are set to eval mode."""
    for name, module in model.named_modules():
        module.training = name not in eval_modules


def _check_sha256(run: Run, t: int, anchor: int, state: Mapping[str, Tensor], recorded_sha256: str | None) -> None:
    """Check that the SHA-256 of ``state``, the parameters and buffers after t steps, is the recorded one.

    ``anchor`` is the number of steps of the kept state from which it was recomputed; it equals t if the state was read.

    Raises:
        VerificationError: the SHA-256 differs; the message names t and ``anchor``.
    """
    if state_sha256(state) != recorded_sha256:
        source = f"recomputed from step {anchor}" if t != anchor else "read from its checkpoint"
        raise VerificationError(
            f"weights after {t} steps of {run.path}, {source}, that differ from the recorded ones",
            expected=f"the same bytes: sha256 {recorded_sha256}",
            hint=f"replay with torch {run.meta.get('torch')} on {run.meta.get('threads')} threads"
            f"{_recorded_device(run)} as recorded (here: torch {torch.__version__}, {torch.get_num_threads()} threads), or pass"
            " reanchor=True to continue from the next kept weights",
        )


def _recorded_device(run: Run) -> str:
    """Return what to say of the device of a run that was not recorded on the CPU."""
    device, name = run.meta.get("device", "cpu"), run.meta.get("device_name")
    return (
        "" if device == "cpu" else f" with the model on {device} ({name or 'accelerator'}), in its deterministic modes,"
    )


def _check_range(run: Run, start: int, stop: int) -> None:
    """Check that 0 <= start <= stop <= T, the number of steps of the run."""
    as_count(start, "start", minimum=0, maximum=len(run))
    as_count(stop, "stop", minimum=start, maximum=len(run))


def _recorded_forward(run: Run, forward: Forward | None) -> Forward:
    """Return ``forward``, or the function that calls ``model(x)`` if it is None.

    Raises:
        InputError: the run was recorded with a forward function, and ``forward`` is None.
    """
    forward_name = run.meta.get("forward")
    if forward_name is not None and forward is None:
        raise InputError(
            f"a run recorded with forward {forward_name.removeprefix('callable:')}",
            expected="that function: code is not stored",
            hint="pass forward=...",
        )
    if forward is None:
        return call_model
    check_callable(forward, "forward", ("model", "batch"))
    return forward


def _recorded_loss(run: Run, loss: Loss | None) -> Loss:
    """Return the loss of the recording: its name, or the callable ``loss`` if the run was recorded with a callable.

    Raises:
        InputError: a callable is required but was not passed, or ``loss`` is not the recorded name.
    """
    if run.loss.startswith("callable:"):
        if not callable(loss):
            raise InputError(
                f"a run recorded with the loss {run.loss.removeprefix('callable:')}",
                expected="that function: code is not stored",
                hint="pass loss=...",
            )
        return loss
    if loss is not None and as_loss(loss) != run.loss:
        raise InputError(f"loss={loss!r}", expected=f"{run.loss!r}, as recorded", hint="leave loss out")
    return as_loss(run.loss)
