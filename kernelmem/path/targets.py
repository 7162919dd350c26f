"""What a ledger explains: every output, one of them, the margin, the loss, a log-probability, or a function of the outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.ground.errors import InputError
from kernelmem.path.network import every_output
from kernelmem.tangents.directions import named_target

__all__ = ["Explained", "explained"]


@dataclass(frozen=True)
class Explained:
    """Functions φ of the outputs: ``values`` gives (n, k), ``directions`` their derivatives ∂φ/∂f, (n, k, C)."""

    values: Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), row ordinals (n,)
    directions: Callable[[Tensor, Tensor], Tensor]
    names: tuple[str, ...]


def explained(target: Any, labels: Tensor | None, n_outputs: int) -> Explained:
    """Read ``target=``: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable.

    Raises:
        InputError: an unknown target, or one that needs labels without them.
    """
    if target is None:
        return Explained(
            lambda outputs, rows: outputs,
            every_output,
            tuple(str(c) for c in range(n_outputs)),
        )
    if target == "log_probability":
        loss = named_target("loss")
        name, function = "log_probability", lambda outputs, labels: -loss(outputs, labels)
    else:
        function = named_target(target)
        name = "_".join(map(str, target)) if isinstance(target, tuple) else getattr(target, "__name__", str(target))
    if target in ("margin", "loss", "log_probability") and labels is None:
        raise InputError(f"target={target!r} without labels", expected="labels of x", do="pass labels=y")

    def values(outputs: Tensor, rows: Tensor) -> Tensor:
        return function(outputs, None if labels is None else labels[rows])[:, None]

    def directions(outputs: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            return torch.autograd.grad(values(leaf, rows).sum(), leaf)[0][:, None]

    return Explained(values, directions, (name,))
