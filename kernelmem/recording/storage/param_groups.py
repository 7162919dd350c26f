"""Param groups as plain values: read from an optimizer, put back into another of the same class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError

__all__ = ["OPTIMIZERS", "build_optimizer", "plain_defaults", "read_groups", "set_groups"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    kind.__name__: kind
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)
}
REFUSED = ("capturable", "differentiable")


def read_groups(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> tuple[dict[str, Any], ...]:
    """The hyper-parameters of every param group as JSON values, with the names of its parameters.

    ``{"parameters": ["0.weight", ...], "lr": 0.1, "betas": [0.9, 0.999], ...}``: all keys that the optimizer's class
    knows; what schedulers or users add (``initial_lr``) has no part in a step and is left out.

    Raises:
        InputError: another class than those of OPTIMIZERS (subclasses may step otherwise), ``capturable`` or
            ``differentiable``, a hyper-parameter that is a tensor, a parameter that is not the model's.
    """
    if type(optimizer) not in OPTIMIZERS.values():
        raise InputError(
            f"optimizer {type(optimizer).__module__}.{type(optimizer).__qualname__}",
            expected=f"torch.optim.{', '.join(OPTIMIZERS)} (the class itself, no subclass)",
            hint="train with one of these: of others the linear form of the step is not known",
        )
    return tuple(_read_group(group, optimizer.defaults, names) for group in optimizer.param_groups)


def _read_group(group: dict[str, Any], known: Mapping[str, Any], names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
    for option in REFUSED:
        if group.get(option):
            raise InputError(
                f"an optimizer with {option}=True", expected=f"{option}=False", hint="leave the option out"
            )
    foreign = [tuple(p.shape) for p in group["params"] if p not in names]
    if foreign:
        raise InputError(
            f"an optimizer with {len(foreign)} parameters that are not the model's (the first of shape {foreign[0]})",
            expected="parameters of the recorded model only",
            hint="record the model that holds all of them, or give the others an optimizer of their own",
        )
    values = {key: _plain(group[key], key) for key in known}
    return {"parameters": [names[p] for p in group["params"]], **values}


def plain_defaults(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's defaults as JSON values.

    Raises:
        InputError: as in :func:`read_groups`.
    """
    return {key: _plain(value, key) for key, value in optimizer.defaults.items()}


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(part, key) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = "a tensor" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"optimizer hyper-parameter {key} that is {kind}",
        expected="a number",
        hint=f"pass {key} as a Python float: a tensor can change unseen and rounds in its own dtype",
    )


def build_optimizer(
    name: str, defaults: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer of class ``name`` with the recorded groups, its state still to be set (Adagrad fills its own).

    Raises:
        InputError: a class that OPTIMIZERS does not hold, or a parameter that the model does not.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"a run trained by {name}", expected=", ".join(OPTIMIZERS), hint="upgrade kernelmem")
    members = [parameters[key] for group in groups for key in group["parameters"]]
    optimizer = OPTIMIZERS[name](members)  # pyright: ignore[reportCallIssue]  # all of them have defaults
    optimizer.defaults.update({key: _live(value) for key, value in defaults.items()})
    set_groups(optimizer, groups, parameters)
    return optimizer


def set_groups(
    optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Replace the param groups by the recorded ones; the state, which belongs to the parameters, stays."""
    optimizer.param_groups = [
        {
            "params": [parameters[name] for name in group["parameters"]],
            **{key: _live(value) for key, value in group.items() if key != "parameters"},
        }
        for group in groups
    ]


def _live(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
