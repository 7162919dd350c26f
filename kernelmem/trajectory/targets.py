"""Functions of the outputs that are explained: every output, one logit, the margin, the loss, a log-probability, a callable."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels
from kernelmem.core.errors import InputError
from kernelmem.tangents.groups.directions import Target, named_target
from kernelmem.trajectory.network.network import each_output

TargetLike: TypeAlias = str | tuple[str, int] | Target | None
"""What ``target=`` takes: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable."""

LABELED = ("margin", "loss", "log_probability")


@dataclass(frozen=True)
class TargetFunctions:
    """k functions φ of the C outputs f of n rows.

    ``values`` returns their values (n, k), ``directions`` their derivatives ∂φ/∂f, (n, k, C).
    """

    values: Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), indices of the rows (n,)
    directions: Callable[[Tensor, Tensor], Tensor]
    names: tuple[str, ...]


def as_target_functions(target: TargetLike, labels: ArrayLike | None, n: int, n_outputs: int) -> TargetFunctions:
    """Validate ``target=`` and the labels of n rows, and return the functions φ with their derivatives.

    Raises:
        InputError: an unknown target, an output out of range, labels that are missing or out of range. When called: a
            callable that does not return one number per row as a differentiable function of the outputs.
    """
    classes = None if labels is None else as_labels(labels, "labels", n=n)
    if target is None:
        return TargetFunctions(lambda outputs, rows: outputs, each_output, tuple(str(c) for c in range(n_outputs)))
    if isinstance(target, str) and target == "log_probability":
        loss = named_target("loss")
        name, function = target, lambda outputs, labels: -loss(outputs, labels)
    else:
        function = named_target(target)
        name = "_".join(map(str, target)) if isinstance(target, tuple) else getattr(target, "__name__", str(target))
    if isinstance(target, str) and target in LABELED and classes is None:
        raise InputError(f"target={target!r} without labels", expected="labels of x", hint="pass labels=y")
    if not callable(target):  # refuse labels and outputs out of range before the run is read
        function(torch.zeros(1 if classes is None else n, n_outputs, dtype=torch.float64), classes)

    def values(outputs: Tensor, rows: Tensor) -> Tensor:
        return _evaluate_target(function, outputs, None if classes is None else classes[rows])[:, None]

    def directions(outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the derivatives of the target with respect to the C outputs of n rows, (n, 1, C)."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            target_values = values(leaf, rows)
            if not target_values.requires_grad:
                raise InputError(
                    f"target {name}, which has no derivative with respect to the outputs",
                    expected="a differentiable function of the outputs (no detach(), no counts of right answers)",
                    hint='pass target="margin", "loss" or "log_probability", or leave the outputs on the graph',
                )
            return torch.autograd.grad(target_values.sum(), leaf)[0][:, None]

    return TargetFunctions(values, directions, (name,))


def _evaluate_target(function: Target, outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Return the target function of n rows, (n,), after checking that it has one number for each row."""
    target_values = function(outputs, labels)
    if not isinstance(target_values, Tensor) or target_values.shape != (len(outputs),):
        shape = tuple(target_values.shape) if isinstance(target_values, Tensor) else type(target_values).__name__
        raise InputError(
            f"a target that gives {shape} for {len(outputs)} rows",
            expected=f"a tensor with one number per row, shape ({len(outputs)},)",
            hint="return e.g. outputs[:, 3] or F.cross_entropy(outputs, labels, reduction='none')",
        )
    return target_values.to(outputs.dtype)
