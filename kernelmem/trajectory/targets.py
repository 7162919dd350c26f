"""What a ledger explains: every output, one of them, the margin, the loss, a log-probability, or a function of the outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.tangents.groups.directions import Target, named_target
from kernelmem.trajectory.network.network import every_output

__all__ = ["Explained", "explained"]

LABELED = ("margin", "loss", "log_probability")


@dataclass(frozen=True)
class Explained:
    """Functions φ of the outputs: ``values`` gives (n, k), ``directions`` their derivatives ∂φ/∂f, (n, k, C)."""

    values: Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), row ordinals (n,)
    directions: Callable[[Tensor, Tensor], Tensor]
    names: tuple[str, ...]


def explained(target: Any, labels: Tensor | None, n_outputs: int) -> Explained:
    """Read ``target=``: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable.

    Raises:
        InputError: an unknown target, an output that there is not, labels that are missing or beyond the outputs. When
            called: a callable that does not give one number for each row, as a differentiable function of the outputs.
    """
    if target is None:
        return Explained(
            lambda outputs, rows: outputs,
            every_output,
            tuple(str(c) for c in range(n_outputs)),
        )
    if isinstance(target, str) and target == "log_probability":
        loss = named_target("loss")
        name, function = target, lambda outputs, labels: -loss(outputs, labels)
    else:
        function = named_target(target)
        name = "_".join(map(str, target)) if isinstance(target, tuple) else getattr(target, "__name__", str(target))
    if isinstance(target, str) and target in LABELED and labels is None:
        raise InputError(f"target={target!r} without labels", expected="labels of x", hint="pass labels=y")
    if not callable(target):  # refused here, not after the run was read
        function(torch.zeros(1 if labels is None else len(labels), n_outputs, dtype=torch.float64), labels)

    def values(outputs: Tensor, rows: Tensor) -> Tensor:
        return _checked(function, outputs, None if labels is None else labels[rows])[:, None]

    def directions(outputs: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            found = values(leaf, rows)
            if not found.requires_grad:
                raise InputError(
                    f"target {name}, which has no derivative by the outputs",
                    expected="a differentiable function of the outputs (no detach(), no counts of right answers)",
                    hint='take target="margin", "loss" or "log_probability", or leave the outputs on the graph',
                )
            return torch.autograd.grad(found.sum(), leaf)[0][:, None]

    return Explained(values, directions, (name,))


def _checked(function: Target, outputs: Tensor, labels: Tensor | None) -> Tensor:
    found = function(outputs, labels)
    if not isinstance(found, Tensor) or found.shape != (len(outputs),):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"a target that gives {shape} for {len(outputs)} rows",
            expected=f"a tensor with one number for each row, shape ({len(outputs)},)",
            hint="return e.g. outputs[:, 3] or F.cross_entropy(outputs, labels, reduction='none')",
        )
    return found.to(outputs.dtype)
