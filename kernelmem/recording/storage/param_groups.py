"""Parameter groups as plain values: read from an optimizer, set in another one of the same class."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError

ParamGroup: TypeAlias = dict[str, Any]
"""Hyper-parameters of one group as JSON values, and the names of its parameters under "parameters"."""

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    kind.__name__: kind
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)
}
UNSUPPORTED_OPTIONS = ("capturable", "differentiable")


def read_groups(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> tuple[ParamGroup, ...]:
    """Return the hyper-parameters of every parameter group as JSON values, with the names of its parameters.

    ``{"parameters": ["0.weight", ...], "lr": 0.1, "betas": [0.9, 0.999], ...}``: all keys of the optimizer's class; keys
    that schedulers or users add (``initial_lr``) do not affect a step and are left out.

    Raises:
        InputError: the class is not in OPTIMIZERS (subclasses may compute other steps), ``capturable`` or
            ``differentiable`` is set, a hyper-parameter is a tensor, or a parameter is not the model's.
    """
    if type(optimizer) not in OPTIMIZERS.values():
        raise InputError(
            f"optimizer {type(optimizer).__module__}.{type(optimizer).__qualname__}",
            expected=f"torch.optim.{', '.join(OPTIMIZERS)} (the class itself, not a subclass)",
            hint="train with one of these: the steps of other optimizers cannot be attributed to examples",
        )
    return tuple(_group_as_json(group, optimizer.defaults, names) for group in optimizer.param_groups)


def _group_as_json(group: ParamGroup, defaults: ParamGroup, names: Mapping[nn.Parameter, str]) -> ParamGroup:
    """Return one parameter group of a torch optimizer as JSON values, after checking its options and parameters.

    The result has the keys of ``defaults``, the defaults of the optimizer, and "parameters", the names of its parameters.
    """
    for option in UNSUPPORTED_OPTIONS:
        if group.get(option):
            raise InputError(f"an optimizer with {option}=True", expected=f"{option}=False", hint="omit the option")
    unknown_shapes = [tuple(p.shape) for p in group["params"] if p not in names]
    if unknown_shapes:
        raise InputError(
            f"an optimizer with {len(unknown_shapes)} parameters that are not the model's (first shape: {unknown_shapes[0]})",
            expected="parameters of the recorded model only",
            hint="record the model that holds all of them, or use a separate optimizer for the others",
        )
    hyper_parameters = {key: _as_json_value(group[key], key) for key in defaults}
    return {"parameters": [names[p] for p in group["params"]], **hyper_parameters}


def plain_defaults(optimizer: torch.optim.Optimizer) -> ParamGroup:
    """Return the default hyper-parameters of the optimizer, by name, as JSON values.

    Raises:
        InputError: see :func:`read_groups`.
    """
    return {key: _as_json_value(value, key) for key, value in optimizer.defaults.items()}


def _as_json_value(value: object, key: str) -> object:
    """Return the value of the hyper-parameter ``key`` as a JSON value; tuples become lists.

    Raises:
        InputError: the value is a tensor, or of another type that JSON does not have.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_as_json_value(item, key) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    type_name = "a tensor" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"optimizer hyper-parameter {key} that is {type_name}",
        expected="a number",
        hint=f"pass {key} as a Python float: a tensor can change unnoticed and rounds to its dtype",
    )


def build_optimizer(
    optimizer_name: str, defaults: ParamGroup, groups: Sequence[ParamGroup], parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Return a torch optimizer of class ``optimizer_name`` with the recorded defaults and parameter groups.

    ``parameters`` maps names to parameters. The state of the optimizer is empty, except that of Adagrad.

    Raises:
        InputError: the class is not in OPTIMIZERS.
    """
    if optimizer_name not in OPTIMIZERS:
        raise InputError(
            f"a run trained with {optimizer_name}", expected=", ".join(OPTIMIZERS), hint="upgrade kernelmem"
        )
    trained_parameters = [parameters[name] for group in groups for name in group["parameters"]]
    optimizer = OPTIMIZERS[optimizer_name](trained_parameters)  # pyright: ignore[reportCallIssue]  # all of them have defaults
    optimizer.defaults.update({name: _from_json_value(value) for name, value in defaults.items()})
    set_groups(optimizer, groups, parameters)
    return optimizer


def set_groups(
    optimizer: torch.optim.Optimizer, groups: Sequence[ParamGroup], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Replace the parameter groups of the optimizer by ``groups``, in which parameters are given by name.

    ``parameters`` maps names to parameters. The state of the optimizer, which it stores per parameter, is unchanged.
    """
    optimizer.param_groups = [
        {
            "params": [parameters[name] for name in group["parameters"]],
            **{key: _from_json_value(value) for key, value in group.items() if key != "parameters"},
        }
        for group in groups
    ]


def _from_json_value(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
