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
    examples: Tensor
    x: Batch
    y: Tensor


class OptimizerHook:
    """While attached, ``optimizer.step(closure)`` runs the closure, then ``recorder.step`` on the batches added since.

    Everything that the library does to the gradients in the closure (clipping, for example) is then done, and nothing
    happens between check and step. Several batches before one step are gradient accumulation: the gradient is the mean
    over batches of the mean over the rows of each, so rows in batches of different sizes have different weights.
    """

    def __init__(self, recorder: Recorder, optimizer: torch.optim.Optimizer) -> None:
        """Attach to the optimizer of an entered recorder."""
        self._optimizer = optimizer
        self._batches: list[_MicroBatch] = []
        self._active, self._inside = True, False
        self._previous = vars(optimizer).get("step")  # the wrapper of a scheduler
        original = optimizer.step

        @wraps(original)  # schedulers look for their mark on it
        def step(_: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
            if self._inside or not self._active:
                return original() if closure is None else original(closure)
            result = None
            if closure is not None:
                with torch.enable_grad():
                    result = closure()
            index, x, y, sample_weight = self._accumulated()
            self._inside = True
            try:
                recorder.step(index, x, y, sample_weight)
            finally:
                self._inside = False
            return result

        self._step = MethodType(step, optimizer)  # bound, because a scheduler created later wraps its __func__
        optimizer.step = self._step

    def __reduce__(self):
        return (_absent, ())  # objects that hold the hook may be pickled during training

    def add_batch(self, index: ArrayLike, x: Batch, y: ArrayLike) -> None:
        """Add a batch that contributes to the next step."""
        self._batches.append(_MicroBatch(torch.as_tensor(index), x, torch.as_tensor(y)))

    def clear(self) -> None:
        """Drop batches that were not followed by a step."""
        self._batches.clear()

    def detach(self) -> None:
        """Restore the optimizer's original step."""
        self._active = False
        if vars(self._optimizer).get("step") is self._step:  # otherwise it was wrapped since, and the wrapper calls it
            if self._previous is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._previous

    def _accumulated(self) -> tuple[Tensor, Batch, Tensor, Tensor | None]:
        batches, self._batches = self._batches, []
        if not batches:
            raise InputError(
                "an optimizer step without a batch",
                expected="a training batch before every step",
                hint="record loops that step the optimizer once per batch, or once per several batches",
            )
        index, y = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("examples", "y"))
        sizes = [len(batch.examples) for batch in batches]
        sample_weight = None
        if len(set(sizes)) > 1:
            weights = [torch.full((size,), len(index) / (len(sizes) * size), dtype=torch.float64) for size in sizes]
            sample_weight = torch.cat(weights)
        return index, _concatenate([batch.x for batch in batches]), y, sample_weight


def _absent() -> None:
    return None


def _concatenate(batches: list[Batch]) -> Batch:
    columns = zip(*([leaf for _, leaf in named_leaves(batch, "x")] for batch in batches), strict=True)
    leaves = iter([torch.cat([torch.as_tensor(leaf) for leaf in column]) for column in columns])
    return map_tree(batches[0], lambda _: next(leaves))
