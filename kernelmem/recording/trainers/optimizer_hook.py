"""Recording behind a training loop of another library: its calls of ``optimizer.step`` are taken by a recorder."""

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from kernelmem.core.batches import map_tree, named_leaves
from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder

__all__ = ["OptimizerHook"]


class OptimizerHook:
    """While attached, ``optimizer.step(closure)`` runs the closure and then ``recorder.step`` on the batches noted since.

    So whatever the library does to the gradients in the closure (clipping, say) has been done, and nothing is between the
    check and the step. Several batches before one step are an accumulation: the gradient is taken to be the mean over them
    of the mean over the rows of each, so that in batches of different sizes the rows have different weights.
    """

    def __init__(self, recorder: Recorder, optimizer: torch.optim.Optimizer) -> None:
        """Attach to the optimizer of an entered recorder."""
        self._optimizer, self._noted = optimizer, []
        self._active, self._inside = True, False
        self._before = vars(optimizer).get("step")  # a scheduler's wrapper
        original = optimizer.step

        @wraps(original)  # a scheduler looks for its mark on it
        def step(_: torch.optim.Optimizer, closure: Any = None) -> Any:
            if self._inside or not self._active:
                return original() if closure is None else original(closure)
            result = None
            if closure is not None:
                with torch.enable_grad():
                    result = closure()
            batch = self._taken()
            self._inside = True
            try:
                recorder.step(*batch)
            finally:
                self._inside = False
            return result

        self._step = MethodType(step, optimizer)  # bound: a scheduler that is made later wraps its __func__
        optimizer.step = self._step

    def __reduce__(self):
        return (_absent, ())  # what holds it may be pickled during the training

    def note(self, index: Any, x: Any, y: Any) -> None:
        """A batch that the next step is made of."""
        self._noted.append((torch.as_tensor(index), x, torch.as_tensor(y)))

    def forget(self) -> None:
        """Drop batches that no step came of."""
        self._noted.clear()

    def detach(self) -> None:
        """Give the optimizer its own step back."""
        self._active = False
        if vars(self._optimizer).get("step") is self._step:  # otherwise somebody has wrapped it since, and it passes on
            if self._before is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._before

    def _taken(self) -> tuple[Tensor, Any, Tensor, Tensor | None]:
        noted, self._noted = self._noted, []
        if not noted:
            raise InputError(
                "an optimizer step without a batch",
                expected="a training batch before every step",
                hint="record loops that step the optimizer once for each batch, or for each few",
            )
        index, y = (torch.cat([part[i] for part in noted]) for i in (0, 2))
        sizes = [len(part[0]) for part in noted]
        weight = None
        if len(set(sizes)) > 1:
            each = [torch.full((size,), len(index) / (len(sizes) * size), dtype=torch.float64) for size in sizes]
            weight = torch.cat(each)
        return index, _concatenated([part[1] for part in noted]), y, weight


def _absent() -> None:
    return None


def _concatenated(parts: list[Any]) -> Any:
    columns = zip(*([leaf for _, leaf in named_leaves(part, "x")] for part in parts), strict=True)
    leaves = iter([torch.cat([torch.as_tensor(leaf) for leaf in column]) for column in columns])
    return map_tree(parts[0], lambda _: next(leaves))
