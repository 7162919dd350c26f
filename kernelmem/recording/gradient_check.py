"""Compare the gradient in ``.grad`` with the gradient of the loss on the batch, up to one scale factor."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import map_tree
from kernelmem.core.errors import InputError
from kernelmem.core.torch_func import functional_call
from kernelmem.recording.storage.inputs import RecordedBatch
from kernelmem.training import losses
from kernelmem.training.losses import Loss, batch_loss

__all__ = ["Forward", "ForwardRandomState", "GradientCheck", "batch_gradient", "call", "fit_scale", "random_state"]

NEIGHBORS = 3  # floats tried on each side of the ratio, which two roundings put less than two floats off
WHOLE_SHARE = 0.01  # rounding of cancelled sums: a parameter may be off by this share of the tolerance of the whole


@contextmanager
def random_state(state: Tensor | None) -> Iterator[None]:
    """Run the block from ``state`` of torch's CPU generator (None: from the present one) and put the present back."""
    present = torch.get_rng_state()
    try:
        if state is not None:
            torch.set_rng_state(state)
        yield
    finally:
        torch.set_rng_state(present)


def batch_gradient(
    forward: Callable[[Any], Tensor],
    parameters: Mapping[str, nn.Parameter],
    x: Any,
    y: Tensor,
    sample_weight: Tensor | None,
    *,
    loss: Loss,
    reduction: str,
) -> dict[str, Tensor]:
    """The gradient of the batch loss in ``parameters``; zeros where the loss does not depend on one.

    One forward and one backward pass. The ``.grad`` of the parameters is neither read nor written.

    Raises:
        InputError, UnsupportedModelError: outputs and targets that do not fit the loss.
    """
    wanted = [parameter for parameter in parameters.values() if parameter.requires_grad]
    gradients: dict[nn.Parameter, Tensor | None] = {}
    with torch.enable_grad():
        own = map_tree(x, Tensor.clone)  # a model may write over x
        value = batch_loss(loss, forward(own), y, sample_weight, reduction=reduction)
        if wanted and value.requires_grad:
            gradients = dict(zip(wanted, torch.autograd.grad(value, wanted, allow_unused=True), strict=True))
    return {
        name: torch.zeros_like(parameter) if (gradient := gradients.get(parameter)) is None else gradient
        for name, parameter in parameters.items()
    }


def fit_scale(
    given: Mapping[str, Tensor], recomputed: Mapping[str, Tensor], *, tolerance: float, described: str
) -> float:
    """The one number c with given = c recomputed: clipping of the whole norm, loss scaling, accumulation.

    c = <g, h>/<h, h>, over all parameters. Where a float c gives g = fl(c h) in every bit, as after
    ``clip_grad_norm_``, it is that float; where g = h, it is 1. Asked for: |g - c h| at most ``tolerance`` |g| over
    all parameters, and for each at most ``tolerance`` times its own norm plus a hundredth of the whole.

    Args:
        given: the gradients that the optimizer will use.
        recomputed: the gradients h of the batch loss.
        tolerance: relative, see above.
        described: how ``recomputed`` was computed, for the error.

    Raises:
        InputError: no such number, or NaN: names the parameter with the largest mismatch.
    """
    if all(torch.equal(gradient, recomputed[name]) for name, gradient in given.items()):
        return 1.0
    square = sum(_dot(h, h) for h in recomputed.values())
    scale = sum(_dot(g, recomputed[name]) for name, g in given.items()) / square if square else 1.0
    norms = {name: math.sqrt(_dot(g, g)) for name, g in given.items()}
    misses = {name: _norm(g.double() - scale * recomputed[name].double()) for name, g in given.items()}
    whole, missed = math.hypot(*norms.values()), math.hypot(*misses.values())
    fits = all(misses[name] <= tolerance * (norms[name] + WHOLE_SHARE * whole) for name in given)
    if not (fits and missed <= tolerance * whole):  # so written, NaN does not fit
        worst = max(
            misses, key=lambda name: (not math.isfinite(norms[name]), misses[name])
        )  # one NaN spoils all misses
        raise InputError(
            f"gradients that are no multiple of those of {described}: the largest mismatch is in {worst}"
            f" ({misses[worst]:.3g}, beside a gradient of norm {norms[worst]:.3g}; in all {missed:.3g} of {whole:.3g})",
            expected=f"gradients of this loss on this batch, times one number, to a relative {tolerance:g}",
            hint="check index, x, y, sample_weight, loss and reduction; clip the norm of all gradients, not of single"
            " parameters or entries; in accumulation hand in the concatenated micro-batches",
        )
    return _exact_multiplier(given, recomputed) or scale


def _exact_multiplier(given: Mapping[str, Tensor], recomputed: Mapping[str, Tensor]) -> float | None:
    """The float c with given = fl(c recomputed) bit for bit, if one next to the ratio of the largest entries is it."""
    name = max(recomputed, key=lambda key: float(recomputed[key].abs().max()) if recomputed[key].numel() else 0.0)
    place = recomputed[name].abs().argmax()
    wide = torch.float64 if recomputed[name].dtype == torch.float64 else torch.float32
    ratio = given[name].reshape(-1)[place].to(wide) / recomputed[name].reshape(-1)[place].to(wide)
    below = above = ratio
    candidates = [ratio]
    for _ in range(NEIGHBORS):
        below = torch.nextafter(below, torch.full_like(below, -math.inf))
        above = torch.nextafter(above, torch.full_like(above, math.inf))
        candidates += [below, above]
    for candidate in map(float, candidates):
        if all(torch.equal(recomputed[key] * candidate, gradient) for key, gradient in given.items()):
            return candidate
    return None


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))


def _norm(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a))


Forward = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> (B, C)


def call(model: nn.Module, batch: Any) -> Tensor:
    """The forward of a model that takes the batch as it is."""
    return model(batch)


class ForwardRandomState:
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
        batch: RecordedBatch,
        names: list[str],  # of the parameters in the optimizer
        before: Mapping[str, Tensor],
        passes: ForwardRandomState,
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
                raise InputError(f"a sparse gradient of {name}", expected="dense gradients", hint="pass sparse=False")
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
                batch.sample_weight,
                loss=self.loss,
                reduction=self.reduction,
            )
            drew = not torch.equal(start, torch.get_rng_state())
        if drew and passes.random is None:
            raise InputError(
                f"step {step}, whose forward pass draws random numbers but was not seen",
                expected="a call of the model itself before each step, with gradients",
                hint="call model(x), not model.forward(x) or a part of the model",
            )
        described = f"the {self.reduction} of {losses.loss_name(self.loss)} on the batch of step {step}"
        scale = fit_scale(given, recomputed, tolerance=self.tolerance, described=described)
        return scale, frozenset(names) - given.keys(), start.numpy().tobytes() if drew else None
