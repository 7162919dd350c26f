"""Recording behind the training loop of another library: a recorder takes the loop's optimizer steps."""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor

from kernelmem.core.batches import Batch, map_tree, named_leaves
from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder


class _MicroBatch(NamedTuple):
    """A batch that contributes to the gradient of the next step: positions (b,), inputs x and targets y of its b rows."""

    examples: Tensor
    x: Batch
    y: Tensor


class OptimizerHook:
    """Replaces ``optimizer.step`` by a function that runs the closure, then ``recorder.step`` on the batches added before.

    Whatever the library does to the gradients in the closure (clipping, for example) is complete when the recorder checks
    them. Several batches before one step are gradient accumulation: the gradient is the mean
    over batches of the mean over the rows of each, so rows in batches of different sizes have different weights.
    """

    def __init__(self, recorder: Recorder, optimizer: torch.optim.Optimizer) -> None:
        """Replace ``optimizer.step``; ``recorder`` records this optimizer, and its ``with`` block has been entered."""
        self._optimizer = optimizer
        self._batches: list[_MicroBatch] = []
        self._attached, self._recording = True, False
        self._previous_step = vars(optimizer).get("step")  # set by a scheduler that wraps it
        original_step = optimizer.step

        @wraps(original_step)  # schedulers look for their mark on it
        def step(_: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
            """Run the closure, take a recorded step, and return what the closure returned (None without a closure)."""
            if self._recording or not self._attached:
                return original_step() if closure is None else original_step(closure)
            closure_result = None
            if closure is not None:
                with torch.enable_grad():
                    closure_result = closure()
            index, x, y, sample_weight = self._take_accumulated()
            self._recording = True
            try:
                recorder.step(index, x, y, sample_weight)
            finally:
                self._recording = False
            return closure_result

        self._recorded_step = MethodType(step, optimizer)  # bound, because a scheduler created later wraps its __func__
        optimizer.step = self._recorded_step

    def __reduce__(self):
        return (_no_hook, ())  # objects that hold the hook may be pickled during training

    def add_batch(self, index: ArrayLike, x: Batch, y: ArrayLike) -> None:
        """Add a batch that contributes to the gradient of the next step.

        ``index`` holds the positions (b,) of its b rows in the training data, x and y their inputs and targets (b, ...).
        """
        self._batches.append(_MicroBatch(torch.as_tensor(index), x, torch.as_tensor(y)))

    def clear(self) -> None:
        """Discard the batches that were added since the last step."""
        self._batches.clear()

    def detach(self) -> None:
        """Restore the optimizer's original step."""
        self._attached = False
        # otherwise it was wrapped since, and the wrapper calls it
        if vars(self._optimizer).get("step") is self._recorded_step:
            if self._previous_step is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._previous_step

    def _take_accumulated(self) -> tuple[Tensor, Batch, Tensor, Tensor | None]:
        """Return the batches added since the last step, concatenated, and remove them.

        The result is (index (B,), x, y, weights): weights are the loss weights (B,) of the B rows that give every batch the
        same total weight, or None if all batches have the same size.

        Raises:
            InputError: no batch was added.
        """
        batches, self._batches = self._batches, []
        if not batches:
            raise InputError(
                "an optimizer step without a batch",
                expected="a training batch before every step",
                hint="record loops that step the optimizer once per batch, or once per several batches",
            )
        index, y = (torch.cat([getattr(batch, field) for batch in batches]) for field in ("examples", "y"))
        batch_sizes = [len(batch.examples) for batch in batches]
        sample_weight = None
        if len(set(batch_sizes)) > 1:
            row_weights = [
                torch.full((batch_size,), len(index) / (len(batch_sizes) * batch_size), dtype=torch.float64)
                for batch_size in batch_sizes
            ]
            sample_weight = torch.cat(row_weights)
        return index, _concatenate([batch.x for batch in batches]), y, sample_weight


def _no_hook() -> None:
    """Return None, the value of a pickled :class:`OptimizerHook`."""
    return None


def _concatenate(batches: list[Batch]) -> Batch:
    """Concatenate batches, tensors or trees of tensors with the same structure, along their first axis."""
    columns = zip(*([leaf for _, leaf in named_leaves(batch, "x")] for batch in batches), strict=True)
    leaves = iter([torch.cat([torch.as_tensor(leaf) for leaf in column]) for column in columns])
    return map_tree(batches[0], lambda _: next(leaves))
