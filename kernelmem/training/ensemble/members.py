"""Members of an ensemble of networks, options of their training, and their checked data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import (
    ArrayLike,
    as_count,
    as_device,
    as_flag,
    as_float_dtype,
    as_labels,
    as_list,
    as_pair,
    as_tensor,
    check_choice,
    check_instance,
)
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.training.ensemble.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Member:
    """One network of an ensemble: its architecture, its training examples, its two seeds.

    Attributes:
        width: hidden widths of an MLP (one number h means (h,) * depth), or the argument of ``make_model``.
        rows: (n_k,) int64, the rows of x that it trains on.
        labels: (n_k,) int64 labels of those rows, or (n_k, C) real targets for the loss "mse".
        init_seed: seed of its initial weights.
        order_seed: seed of the order of its batches.
    """

    width: int | tuple[int, ...]
    rows: Tensor
    labels: Tensor
    init_seed: int
    order_seed: int

    def __repr__(self) -> str:
        return f"Member(width={self.width}, {len(self.rows)} rows, {self.init_seed=}, {self.order_seed=})".replace(
            "self.", ""
        )


@dataclass(frozen=True)
class EnsembleOptions:
    """Options of :func:`train_mlps`, :func:`train_modules` and :func:`train_one` that do not change the recipe.

    Attributes:
        evaluate_at: numbers of completed steps, 0..steps, at which metrics are computed; always also after the last step.
        dtype: float32 or float64.
        device: device of all computations; None: the device of x.
        memory: bytes that one chunk of networks may allocate in addition to data and results; the rest is trained in
            further chunks.
        n_classes: C; None: one more than the largest label of all members and of the test rows.
        keep_outputs: True to keep the test outputs (M, m, C) of every evaluation.
        keep_parameters: True to keep the final state dict of every member.
        diverged: "keep" reports NaN metrics for a diverged member (the others are unaffected), "raise" raises
            NumericalError after training.

    Raises:
        InputError: the dtype is another one, or the value of ``diverged`` is unknown.
    """

    evaluate_at: Sequence[int] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None
    memory: int | str = MEMORY
    n_classes: int | None = None
    keep_outputs: bool = False
    keep_parameters: bool = False
    diverged: Literal["keep", "raise"] = "keep"

    def __post_init__(self) -> None:
        as_float_dtype(self.dtype)
        check_choice(self.diverged, "diverged", ("keep", "raise"))
        as_list(self.evaluate_at, "evaluate_at")
        as_bytes(self.memory)
        for name in ("keep_outputs", "keep_parameters"):
            as_flag(getattr(self, name), name)
        if self.device is not None:
            as_device(self.device)
        if self.n_classes is not None:
            as_count(self.n_classes, "n_classes")


@dataclass(frozen=True, eq=False)
class EnsembleTask:
    """The checked members and data of an ensemble of M networks, on the device and in the dtype of their training.

    Shapes: N rows in x, m test rows, n_k training rows of member k, C outputs.
    """

    members: tuple[Member, ...]
    x: Tensor  # (N, ...)
    x_test: Tensor  # (m, ...)
    rows: tuple[Tensor, ...]  # (n_k,) int64
    targets: tuple[Tensor, ...]  # (n_k,) int64 labels, or (n_k, C) real targets
    test_target: Tensor  # (m,) int64 labels, or (m, C) real targets
    C: int
    recipe: Recipe
    evaluate_at: tuple[int, ...]


def as_task(
    members: Sequence[Member],
    x: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike],
    recipe: Recipe,
    options: EnsembleOptions = EnsembleOptions(),
) -> EnsembleTask:
    """Check members, data and options, and return them as one task, with labels converted to targets of the loss.

    The targets are the labels for the loss "cross_entropy", and one-hot minus 1/C (C outputs) for the loss "mse".

    Raises:
        InputError: there are no members, rows, labels or steps are out of range, lengths or shapes are inconsistent, or
            values are NaN.
    """
    check_instance(recipe, "recipe", Recipe)
    check_instance(options, "options", EnsembleOptions)
    x_of_test, y_of_test = as_pair(test, "test")
    members = tuple(as_list(members, "members"))
    if not members or not all(isinstance(member, Member) for member in members):
        raise InputError(
            f"{len(members)} members of type {type(members[0]).__name__ if members else 'none'}",
            expected="at least one Member",
            hint="pass a list of kernelmem.training.Member",
        )
    x_train, x_test = as_tensor(x, "x"), as_tensor(x_of_test, "x_test")
    if min(x_train.ndim, x_test.ndim) < 2 or x_train.shape[1:] != x_test.shape[1:] or not len(x_test):
        raise InputError(
            f"x of shape {tuple(x_train.shape)} and x_test of shape {tuple(x_test.shape)}",
            expected="(N, ...) and (m, ...) with the same shape of a row",
            hint="use the same features for both",
        )
    dtype, device = options.dtype, options.device
    x_train, x_test = (
        value.to(device=device, dtype=dtype if value.is_floating_point() else None) for value in (x_train, x_test)
    )
    for k, member in enumerate(members):
        for name in ("init_seed", "order_seed"):
            as_count(getattr(member, name), f"{name} of member {k}", minimum=0, maximum=2**63 - 1)
    rows = tuple(_check_rows(member, k, len(x_train)) for k, member in enumerate(members))
    names = [*(f"labels of member {k}" for k in range(len(members))), "y_test"]
    labels = [as_tensor(y, name) for y, name in zip([*(m.labels for m in members), y_of_test], names, strict=True)]
    C = options.n_classes if options.n_classes is not None else _count_classes(labels)
    targets = tuple(
        _as_target(value, name, n, C, recipe.loss, dtype).to(device=device)
        for value, name, n in zip(labels, names, [*map(len, rows), len(x_test)], strict=True)
    )
    evaluate_at = {as_count(t, "step of evaluate_at", minimum=0, maximum=recipe.steps) for t in options.evaluate_at}
    return EnsembleTask(
        members,
        x_train,
        x_test,
        tuple(row.to(device) for row in rows),
        targets[:-1],
        targets[-1],
        C,
        recipe,
        tuple(sorted({*evaluate_at, recipe.steps})),
    )


def _check_rows(member: Member, k: int, n_rows: int) -> Tensor:
    """Return the row numbers (n_k,) of member k as int64, after checking that they are in 0..n_rows - 1."""
    rows = as_tensor(member.rows, f"rows of member {k}")
    if rows.ndim != 1 or not len(rows) or rows.is_floating_point() or rows.dtype == torch.bool:
        raise InputError(
            f"rows of member {k} of shape {tuple(rows.shape)} and dtype {rows.dtype}",
            expected="at least one row number, shape (n,), integers",
            hint="pass mask.nonzero()[:, 0] for a mask",
        )
    smallest, largest = (int(bound) for bound in rows.aminmax())
    if smallest < 0 or largest >= n_rows:
        raise InputError(
            f"rows of member {k} in {smallest}..{largest}", expected=f"0..{n_rows - 1}", hint="pass rows of x"
        )
    return rows.to(torch.int64)


def _count_classes(labels: list[Tensor]) -> int:
    """Return the number of outputs C for ``labels``, a list of label tensors (n,) and real targets (n, C).

    C is the number of columns of the real targets, or, if there are only labels, one more than the largest label.
    """
    column_counts = {int(value.shape[1]) for value in labels if value.ndim == 2}
    if len(column_counts) > 1:
        raise InputError(
            f"targets with {sorted(column_counts)} columns", expected="the same number of outputs", hint="pass (n, C)"
        )
    return (
        column_counts.pop() if column_counts else max(int(value.max()) if value.numel() else 0 for value in labels) + 1
    )


def _as_target(labels_or_targets: Tensor, name: str, n: int, C: int, loss: str, dtype: torch.dtype) -> Tensor:
    """Return the target of the loss for n rows and C outputs, after checking shape and range.

    Real targets (n, C) are converted to ``dtype``. Labels (n,) are returned as int64 for "cross_entropy", and as the rows
    one-hot minus 1/C, (n, C), for "mse".
    """
    if labels_or_targets.ndim == 2:
        if loss != "mse" or tuple(labels_or_targets.shape) != (n, C):
            raise InputError(
                f"{name} of shape {tuple(labels_or_targets.shape)} for loss={loss!r}",
                expected=f"({n},) labels" + (f", or ({n}, {C}) real targets" if loss == "mse" else ""),
                hint="pass labels, or loss='mse'",
            )
        return labels_or_targets.to(dtype)
    labels = as_labels(labels_or_targets, name, n=n, n_classes=C)
    return labels if loss == "cross_entropy" else torch.eye(C, dtype=dtype, device=labels.device)[labels] - 1 / C
