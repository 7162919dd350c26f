"""Training recipe of an ensemble: optimizer, schedule, batches and loss as one value."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, check_choice
from kernelmem.core.errors import InputError

MAX_COUNTS = {"steps": 10**9, "depth": 1000, "batch_size": 2**31 - 1}
DECAY_FRACTION = 0.3  # share of the steps in which "wsd" falls to zero
CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "wsd", "cosine"),
    "loss": ("cross_entropy", "mse"),
    "activation": ("relu", "tanh", "gelu"),
}


@dataclass(frozen=True)
class Recipe:
    """How every network of an ensemble is trained; ``dataclasses.asdict`` gives JSON values.

    Attributes:
        optimizer: ``torch.optim.Adam``, ``AdamW`` or ``SGD``, with torch's defaults for everything not listed here.
        lr: learning rate before the schedule.
        momentum: momentum of SGD, in [0, 1).
        weight_decay: weight decay of all parameters.
        schedule: factor of ``lr`` in step t = 0..T-1: 1 (``"constant"``); 1, then linearly down over the last 30 % of the
            steps, (T - t) / (T - s) from s = T - round(0.3 T) (``"wsd"``); (1 + cos(pi t / T)) / 2 (``"cosine"``).
        batch_size: rows per step; None, or at least the number of rows of a member: all its rows in every step.
        steps: number T of optimizer steps.
        loss: mean over rows of the cross-entropy, or of sum_c (f_c - t_c)^2 / 2 (``"mse"``), where t = one-hot - 1/C for
            labels and t is the target itself for real targets.
        activation: activation function of MLPs.
        depth: number of hidden layers of MLPs whose width is one number.

    Raises:
        InputError: a name is unknown, a number is out of range, or momentum is set without SGD.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "wsd", "cosine"] = "constant"
    batch_size: int | None = None
    steps: int = 1000
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    depth: int = 1

    def __post_init__(self) -> None:
        """Check names and ranges of all fields; errors are those listed for the class."""
        for name, choices in CHOICES.items():
            check_choice(getattr(self, name), name, choices)
        for name in ("lr", "weight_decay", "momentum"):
            as_number(getattr(self, name), name)
        for name in ("steps", "depth", "batch_size"):
            if name != "batch_size" or self.batch_size is not None:
                as_count(getattr(self, name), name, maximum=MAX_COUNTS[name])
        if self.momentum and (self.optimizer != "sgd" or self.momentum >= 1):
            raise InputError(
                f"Recipe(optimizer={self.optimizer!r}, momentum={self.momentum!r})",
                expected="momentum in 0..1 (without 1) of optimizer='sgd'; Adam has its own, 0.9",
                hint="leave momentum out, or pass optimizer='sgd'",
            )


def lr_at(recipe: Recipe, t: int) -> float:
    """Return the learning rate of step t = 0..T-1 (see :class:`Recipe`).

    >>> recipe = Recipe(lr=1.0, schedule="wsd", steps=10)
    >>> [round(lr_at(recipe, t), 3) for t in (0, 6, 7, 8, 9)]
    [1.0, 1.0, 1.0, 0.667, 0.333]
    """
    T = recipe.steps
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * t / T)) / 2
    decay_start = T - round(DECAY_FRACTION * T)
    if recipe.schedule == "constant" or t < decay_start:
        return recipe.lr
    return recipe.lr * (T - t) / (T - decay_start)


def make_optimizer(recipe: Recipe, parameters: Iterable[Tensor], *, fused: bool | None = None) -> torch.optim.Optimizer:
    """Return a new torch optimizer of ``parameters`` with the class and the hyper-parameters of the recipe.

    Its update acts on each entry separately, so ``parameters`` may be flat tensors that hold many networks. ``fused``
    selects torch's implementation in one pass (None: torch's default).
    """
    common_options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **common_options)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](parameters, **common_options)
