"""Check that model, loss and forward reproduce the first recorded step."""

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward
from kernelmem.core.checks import check_model
from kernelmem.core.errors import InputError
from kernelmem.core.models import copy_module
from kernelmem.recording.replay import replay_step
from kernelmem.recording.run import Run, check_run
from kernelmem.recording.storage.checkpoints import Checkpoint
from kernelmem.training.losses import Loss

GRADIENT_STATES = ("exp_avg", "momentum_buffer", "square_avg", "sum")  # optimizer states that determine the gradient
TOLERANCE = 0.3  # relative; another network gives about 1, rounding 1e-4 in float32 and a few 1e-2 in bfloat16


def verify_model(run: Run, model: nn.Module, *, loss: Loss | None = None, forward: Forward | None = None) -> None:
    """Check that ``model``, ``loss`` and ``forward`` are the recorded ones, beyond names and shapes of the weights.

    The first step is recomputed in the model's own dtype and compared with the recorded one in the optimizer state that
    depends on the gradient (momentum, second moments), or, for an optimizer without state, in the step itself. A relative
    difference of 0.3 in norm is allowed. Nothing is checked if the weights after the first step were not kept: replay
    recomputes and compares them to the bit.

    Raises:
        InputError: model, loss or forward is not the recorded one, or a recorded callable was not passed.

    Cost: the gradient of one batch.
    """
    check_run(run)
    check_model(model)
    if len(run) == 0 or not {0, 1} <= set(run.kept):
        return
    before, after = run.checkpoint(0), run.checkpoint(1)
    repeated_checkpoint = replay_step(run, copy_module(model), 0, loss=loss, forward=forward)
    recorded_trace, rounding_norm = _gradient_trace(before, after)
    repeated_trace, _ = _gradient_trace(before, repeated_checkpoint)
    if set(repeated_trace) == set(recorded_trace):
        absolute_error = _total_norm([repeated_trace[name] - recorded_trace[name] for name in recorded_trace])
        recorded_norm = _total_norm(list(recorded_trace.values()))
        if absolute_error <= TOLERANCE * recorded_norm + rounding_norm:
            return
        reason = (
            f"relative error {absolute_error / recorded_norm:.0%}"
            if recorded_norm
            else "the recorded gradient was zero"
        )
    else:
        reason = "its gradient is nonzero for a different set of parameters"
    raise InputError(
        f"a model that does not reproduce the first recorded step of {run.path} ({reason})",
        expected="the model, loss= and forward= of the recording (names and shapes of the weights agree)",
        hint="build the model as for the recording, and pass the same loss and forward",
    )


def _gradient_trace(before: Checkpoint, after: Checkpoint) -> tuple[dict[str, Tensor], float]:
    """Return tensors by parameter name that determine the gradient of a step, and the norm of the rounding errors in them.

    ``before`` and ``after`` are the checkpoints around the step. The tensors are the first optimizer state in
    GRADIENT_STATES that exists, without rounding errors, or else the changes of the weights.
    """
    for key in GRADIENT_STATES:
        states = {name: state[key].double() for name, state in after.optimizer.items() if key in state}
        if states:
            return states, 0.0
    weights = {name: after.model[name] for name in before.model if after.model[name].is_floating_point()}
    weight_changes = {name: value.double() - before.model[name].double() for name, value in weights.items()}
    return weight_changes, 2 * _total_norm(
        [value.double() * torch.finfo(value.dtype).eps for value in weights.values()]
    )


def _total_norm(tensors: list[Tensor]) -> float:
    """Return the Euclidean norm of all entries of several tensors together."""
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
