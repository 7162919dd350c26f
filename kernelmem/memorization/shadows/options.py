"""Options of a shadow ensemble, and the training of its models in one batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward
from kernelmem.core.checks import (
    as_count,
    as_device,
    as_flag,
    as_float_dtype,
    as_list,
    as_number,
    as_text,
    check_callable,
    check_choice,
    check_instance,
)
from kernelmem.core.errors import InputError
from kernelmem.training.ensemble import Recipe

TrainFunction: TypeAlias = Callable[[Tensor, int], nn.Module]
"""The user's training: (indices, seed) -> trained model. ``indices`` (n_k,) int64 are the rows to train on."""

MAX_MODELS = 10**6


@dataclass(frozen=True)
class EnsembleTraining:
    """Training of all models together in batched products (:mod:`kernelmem.training.ensemble`).

    Attributes:
        recipe: optimizer, schedule, batches, loss and number of steps.
        width: hidden widths of an MLP (one number h means (h,) * recipe.depth), or the argument of ``make_model``.
        make_model: function from ``width`` to an untrained module (n, ...) -> (n, C), called with torch's random state
            seeded; None: MLPs (:func:`kernelmem.training.mlp`).
        equal_epochs: True: ``recipe.steps`` are those for all n rows, and models on a share of them take this share of the
            steps, so that they see each of their rows equally often; False: all take ``recipe.steps``.

    Raises:
        InputError: the recipe is not a Recipe, ``width`` is not positive, or ``make_model`` is not a function of one
            argument.
    """

    recipe: Recipe
    width: int | tuple[int, ...] = 64
    make_model: Callable[[int | tuple[int, ...]], nn.Module] | None = None
    equal_epochs: bool = False

    def __post_init__(self) -> None:
        check_instance(self.recipe, "recipe", Recipe)
        as_flag(self.equal_epochs, "equal_epochs")
        widths = as_list(self.width, "width") if isinstance(self.width, tuple | list) else [self.width]
        if not widths:
            raise InputError("width=()", expected="at least one hidden layer", hint="pass e.g. width=(64, 64)")
        for width in widths:
            as_count(width, "width", maximum=2**24)
        object.__setattr__(
            self, "width", tuple(map(int, widths)) if isinstance(self.width, tuple | list) else widths[0]
        )
        if self.make_model is not None:
            check_callable(self.make_model, "make_model", ("width",), types=True)

    def recipe_for(self, share: float) -> Recipe:
        """Return the recipe of models that are trained on ``share`` of the rows."""
        if not self.equal_epochs:
            return self.recipe
        return replace(self.recipe, steps=max(1, round(share * self.recipe.steps)))


@dataclass(frozen=True)
class ShadowOptions:
    """Options of :func:`shadow_ensemble`.

    Attributes:
        n_models: number m of models.
        share: expected share of the rows that a model is trained on, in (0, 1). .7 is the choice of Feldman and Zhang for
            memorization; membership attacks (LiRA) compare equally many models with and without a row, .5.
        sampling: "iid" draws each row for each model independently; "balanced" puts every row into the same number of
            models (share · m, or one of the two whole numbers next to it), and the same number of rows into every model.
        dtype: float32 or float64, of the training and of the stored outputs.
        device: device of the training; None: the device of the rows. For a user's training function only the rows are moved
            to the device of the returned model.
        models_per_chunk: number of models in one task of the executor and in one file.
        diverged: "raise" refuses models with outputs that are not finite, "drop" leaves them out and says so.
        n_classes: number C of classes; None: one more than the largest label.
        forward: maps (model, batch) to outputs (n, C), for models that a user's training function returns.
        timeout: seconds after which a chunk that has not ended is given up in its worker process, which is killed, and runs
            again in a new one, at most three times in all; None: no limit. For other executors see
            ``kernelmem.core.tasks.run_tasks``.
        training_name: text that identifies a user's training function and its settings, required with ``path``.

    Raises:
        InputError: a value is of another type or out of range.
    """

    n_models: int = 128
    share: float = 0.7
    sampling: Literal["iid", "balanced"] = "iid"
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None
    models_per_chunk: int = 16
    diverged: Literal["raise", "drop"] = "raise"
    n_classes: int | None = None
    forward: Forward | None = None
    training_name: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        as_count(self.n_models, "n_models", minimum=2, maximum=MAX_MODELS)
        as_count(self.models_per_chunk, "models_per_chunk", maximum=MAX_MODELS)
        as_number(self.share, "share", exclusive=True, maximum=1 - 1e-9)
        check_choice(self.sampling, "sampling", ("iid", "balanced"))
        check_choice(self.diverged, "diverged", ("raise", "drop"))
        as_float_dtype(self.dtype)
        if self.device is not None:
            as_device(self.device)
        if self.n_classes is not None:
            as_count(self.n_classes, "n_classes", minimum=2, maximum=1_000_000)
        if self.forward is not None:
            check_callable(self.forward, "forward", ("model", "batch"))
        if self.timeout is not None:
            as_number(self.timeout, "timeout", exclusive=True)
        if self.training_name is not None:
            as_text(self.training_name, "training_name")
