"""Before a step is taken, the gradient in .grad is compared with that of the loss on the batch, times one number."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError
from kernelmem.core.torch_func import functional_call
from kernelmem.recording.gradients import batch_gradient, fit_scale, random_state
from kernelmem.recording.storage.inputs import Batch
from kernelmem.training import losses

__all__ = ["Forward", "GradientCheck", "Passes", "call"]

Forward = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> (B, C)


def call(model: nn.Module, batch: Any) -> Tensor:
    """The forward of a model that takes the batch as it is."""
    return model(batch)


class Passes:
    """The state of torch's generator before the last forward pass of a model, with gradients, since the last step.

    Earlier passes were skipped, or evaluations. A hook on the model sees them, with positional arguments or keywords. A
    copy of the model (an average of weights, a pickle) has a hook that does nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.random: Tensor | None = None
        self._quiet = False
        self._hook = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, *_: Any) -> None:
        """Note the random state, before a pass."""
        if not self._quiet and torch.is_grad_enabled():
            self.random = torch.get_rng_state()

    def __reduce__(self):
        return (_hook_of_a_copy, ())

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Passes inside are not the training loop's."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def remove(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()


def _hook_of_a_copy() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    pass


class _Called(nn.Module):
    """A model behind its forward, so that buffers can be replaced for one call."""

    def __init__(self, model: nn.Module, function: Forward) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.model, batch)


@dataclass(frozen=True)
class GradientCheck:
    """The second computation of a batch's gradient, and what it is compared by."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    forward: Forward
    loss: losses.Loss
    reduction: str
    tolerance: float

    def run(
        self,
        step: int,
        batch: Batch,
        names: list[str],  # of the parameters in the optimizer
        before: Mapping[str, Tensor],
        passes: Passes,
    ) -> tuple[float, frozenset[str], bytes | None]:
        """The scale of the gradients in .grad, the parameters without one, and the random state of the forward pass.

        Args:
            step: for messages.
            batch: what the gradients are said to come from.
            names: the parameters that the optimizer holds.
            before: parameters and buffers before the step.
            passes: where the random state is noted.

        Raises:
            InputError: no number makes them equal (names the parameter), a sparse gradient, a forward pass that drew
                random numbers unseen.
        """
        parameters = self.parameters
        given = {name: grad for name in names if (grad := parameters[name].grad) is not None}
        for name, gradient in given.items():
            if gradient.layout != torch.strided:
                raise InputError(f"a sparse gradient of {name}", expected="dense gradients", do="pass sparse=False")
        # copies: the pass may write into buffers (BatchNorm), and the model's own have been written in the first pass
        buffers = {f"model.{name}": value.clone() for name, value in before.items() if name not in parameters}
        model = _Called(self.model, self.forward)
        with passes.ignored(), random_state(passes.random):
            start = torch.get_rng_state()
            recomputed = batch_gradient(
                lambda rows: functional_call(model, buffers, (rows,)) if buffers else model(rows),
                {name: parameters[name] for name in given},
                batch.x,
                batch.y,
                batch.weights,
                loss=self.loss,
                reduction=self.reduction,
            )
            drew = not torch.equal(start, torch.get_rng_state())
        if drew and passes.random is None:
            raise InputError(
                f"step {step}, whose forward pass draws random numbers but was not seen",
                expected="a call of the model itself before each step, with gradients",
                do="call model(x), not model.forward(x) or a part of the model",
            )
        described = f"the {self.reduction} of {losses.loss_name(self.loss)} on the batch of step {step}"
        scale = fit_scale(given, recomputed, tolerance=self.tolerance, described=described)
        return scale, frozenset(names) - given.keys(), start.numpy().tobytes() if drew else None
