"""The gradient of a batch, computed again, and how the gradient that was used differs from it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import map_tree
from kernelmem.core.errors import InputError
from kernelmem.training.losses import Loss, batch_loss

__all__ = ["batch_gradient", "fit_scale", "random_state"]

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
    weights: Tensor | None,
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
        value = batch_loss(loss, forward(own), y, weights, reduction=reduction)
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
            do="check index, x, y, weight, loss and reduction; clip the norm of all gradients, not of single"
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
