"""How the networks of an ensemble train: optimizer, schedule, batches, loss. A value that prints and goes into JSON."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernelmem.core.errors import InputError

__all__ = ["Recipe", "learning_rate", "make_optimizer"]

DECAY = 0.3  # the share of the steps in which "wsd" falls to zero
CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "wsd", "cosine"),
    "loss": ("cross_entropy", "mse"),
    "activation": ("relu", "tanh", "gelu"),
}


@dataclass(frozen=True)
class Recipe:
    """How every network of an ensemble trains; ``dataclasses.asdict`` gives what goes into JSON.

    ``optimizer`` is ``torch.optim.Adam``, ``AdamW`` or ``SGD`` with their defaults, save for ``learning_rate``,
    ``weight_decay`` (on all parameters) and ``momentum`` (SGD). ``schedule``: with T steps, step t = 0..T-1 has the rate
    times 1 (``"constant"``), 1 and then linearly down over the last 30 % of the steps, (T - t) / (T - s) from
    s = T - round(0.3 T) on (``"wsd"``), or (1 + cos(pi t / T)) / 2 (``"cosine"``). ``batch_size`` None, or at least a
    member's number of rows: all its rows in every step. ``loss``: the mean over rows of the cross-entropy, or of
    sum_c (f_c - t_c)^2 / 2 with t = one-hot - 1/C for labels, and t as given for real targets (``"mse"``).
    ``depth``: hidden layers of MLPs whose width is one number.

    Raises:
        InputError: an unknown name, a number out of its range, a momentum that the optimizer would not use.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "wsd", "cosine"] = "constant"
    batch_size: int | None = None
    steps: int = 1000
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    depth: int = 1

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"Recipe({name}={getattr(self, name)!r})", expected=f"one of {', '.join(choices)}", hint="pass one"
                )
        for name in ("learning_rate", "weight_decay", "momentum"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(f"Recipe({name}={value!r})", expected="a finite number >= 0", hint="pass e.g. 0.01")
        for name in ("steps", "depth", "batch_size"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (name == "batch_size" and value is None):
                raise InputError(
                    f"Recipe({name}={value!r})", expected="a whole number >= 1", hint=f"pass {name}=1 or more"
                )
        if self.momentum and (self.optimizer != "sgd" or self.momentum >= 1):
            raise InputError(
                f"Recipe(optimizer={self.optimizer!r}, momentum={self.momentum!r})",
                expected="momentum in 0..1 (without 1) of optimizer='sgd'; Adam has its own, 0.9",
                hint="leave momentum out, or pass optimizer='sgd'",
            )


def learning_rate(recipe: Recipe, t: int) -> float:
    """The learning rate of step t = 0..T-1 (see :class:`Recipe`).

    >>> recipe = Recipe(learning_rate=1.0, schedule="wsd", steps=10)
    >>> [round(learning_rate(recipe, t), 3) for t in (0, 6, 7, 8, 9)]
    [1.0, 1.0, 1.0, 0.667, 0.333]
    """
    T = recipe.steps
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * t / T)) / 2
    start = T - round(DECAY * T)
    if recipe.schedule == "constant" or t < start:
        return recipe.learning_rate
    return recipe.learning_rate * (T - t) / (T - start)


def make_optimizer(recipe: Recipe, parameters: Iterable[Tensor], **options: Any) -> torch.optim.Optimizer:
    """The torch optimizer of a recipe: each number has its own update, so flat tensors of many networks serve as well."""
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **options}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](parameters, **common)
