"""Whether a model, loss and forward are those of a run: its first step is taken again."""

import copy

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.replay import replay_step
from kernelmem.recording.run import Run
from kernelmem.recording.storage.checkpoints import Checkpoint
from kernelmem.training.losses import Loss

__all__ = ["verify_model"]

MEMORIES = ("exp_avg", "momentum_buffer", "square_avg", "sum")  # of gradients, in the optimizers' states
OFF = 0.3  # another network is off by about its size; rounding by 1e-4 in float32, some hundredths in bfloat16


def verify_model(run: Run, model: nn.Module, *, loss: Loss | None = None, forward: Forward | None = None) -> None:
    """Refuse a model, loss or forward that is not the recorded one although names and shapes of the weights are.

    The first step is taken again, in the model's own dtype, and compared by what the optimizer then remembers of the
    gradient (by the step itself, where it remembers nothing): a difference of 0.3, relative and in norm, is allowed.
    Where the weights after it were not kept, nothing is done: replay will recompute them, and compare to the bit.

    Raises:
        InputError: another model, loss or forward; none where the run has a callable.

    Cost: a gradient of one batch.
    """
    if len(run) == 0 or not {0, 1} <= set(run.kept):
        return
    before, after = run.checkpoint(0), run.checkpoint(1)
    found = replay_step(run, copy.deepcopy(model), 0, loss=loss, forward=forward)
    then, rounding = _trace(before, after)
    now, _ = _trace(before, found)
    if set(now) == set(then):
        gap = _norm([now[name] - then[name] for name in then])
        size = _norm(list(then.values()))
        if gap <= OFF * size + rounding:
            return
        by = f"off by {gap / size:.0%}" if size else "which then was none"
    else:
        by = "of other parameters"
    raise InputError(
        f"a model that makes another step of the first one of the run in {run.path}, {by}",
        expected="the model, loss= and forward= that were recorded; names and shapes of the weights are the same",
        hint="build the model as it was built for the run, and pass the same loss and forward",
    )


def _trace(before: Checkpoint, after: Checkpoint) -> tuple[dict[str, Tensor], float]:
    """What tells the gradient of a step, by name, and what rounding of the weights leaves of it, in norm."""
    for key in MEMORIES:
        own = {name: state[key].double() for name, state in after.optimizer.items() if key in state}
        if own:
            return own, 0.0
    weights = {name: after.model[name] for name in before.model if after.model[name].is_floating_point()}
    steps = {name: value.double() - before.model[name].double() for name, value in weights.items()}
    return steps, 2 * _norm([value.double() * torch.finfo(value.dtype).eps for value in weights.values()])


def _norm(tensors: list[Tensor]) -> float:
    return sum(float(own.square().sum()) for own in tensors) ** 0.5
