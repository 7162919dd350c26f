"""Observation of the forward passes of a training loop: random state, number, precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kernelmem.recording.step_checks.precision import autocast_dtype
from kernelmem.recording.step_checks.random_state import get_random_state


class ForwardObserver:
    """Forward pre-hook on a model that observes each forward pass with gradients since the last recorded step.

    In a copy of the model (an average of weights, a pickle), the hook does nothing.

    Attributes:
        random: state of torch's generators before the last such pass, (n,) uint8; None if there was none.
        passes: number of these passes.
        autocasts: the dtypes of ``torch.autocast`` in these passes, None for a pass without it.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self.clear()
        self._paused = False
        self._hook = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, *_: object) -> None:
        """Observe a forward pass that is about to start."""
        if not self._paused and torch.is_grad_enabled():
            self.random = get_random_state(self._device)
            self.passes += 1
            self.autocasts.add(autocast_dtype(self._device))

    def __reduce__(self):
        return (_inactive_hook, ())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore the forward passes inside the block, which are not those of the training loop."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def clear(self) -> None:
        """Forget the observed passes."""
        self.random: Tensor | None = None
        self.passes = 0
        self.autocasts: set[torch.dtype | None] = set()

    def remove(self) -> None:
        """Remove the hook from the model."""
        self._hook.remove()


def _inactive_hook() -> Callable[..., None]:
    """Return the hook of a copied model: a function that does nothing."""
    return _ignore_call


def _ignore_call(*_: object) -> None:
    pass
