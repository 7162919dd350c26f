"""Checked data of a shadow ensemble: training rows, test rows, and their labels or targets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.batches import Rows, as_labeled_rows, as_rows
from kernelmem.core.checks import ArrayLike, as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.memorization.shadows.options import EnsembleTraining, ShadowOptions, TrainFunction


@dataclass(frozen=True, eq=False)
class ShadowData:
    """Rows and labels of an ensemble.

    Attributes:
        x: n training rows. x_test: t test rows, or None.
        labels, test_labels: (n,) and (t,) int64 labels, or (n, C) and (t, C) real targets.
        n_outputs: number C of outputs, None if the models of a user's function say it.
    """

    x: Rows
    labels: Tensor
    x_test: Rows | None
    test_labels: Tensor
    n_outputs: int | None

    @property
    def n_test(self) -> int:
        """The number t of test rows."""
        return len(self.test_labels)

    def all_rows(self) -> tuple[Tensor, Tensor]:
        """Return training and test rows together, as one tensor, and their labels; for rows that are one tensor."""
        if self.x_test is None:
            return self.x.tree, self.labels
        return torch.cat([self.x.tree, self.x_test.tree]), torch.cat([self.labels, self.test_labels])


def as_shadow_data(
    train: object, test: object, training: EnsembleTraining | TrainFunction, options: ShadowOptions
) -> ShadowData:
    """Check the pairs (x, y) of training and test data, and return them, labels on the CPU.

    Raises:
        InputError: rows or labels do not fit each other, or the training.
    """
    x, y = as_labeled_rows(train, "train")
    rows = as_rows(x, "x")
    together = training if isinstance(training, EnsembleTraining) else None
    real = is_real_target(y) and (together is None or together.recipe.loss == "mse")
    labels = as_targets(y, "y", len(rows), options.n_classes, real=real)
    test_rows, test_labels = None, labels[:0]
    if test is not None:
        x_test, y_test = as_labeled_rows(test, "test")
        test_rows = as_rows(x_test, "x_test")
        test_labels = as_targets(y_test, "y_test", len(test_rows), options.n_classes, real=real)
        if real and test_labels.shape[1] != labels.shape[1]:
            raise InputError(
                f"y with {labels.shape[1]} and y_test with {test_labels.shape[1]} columns",
                expected="the same number of target columns",
                hint="pass (n, C) and (t, C) targets",
            )
    if len(rows) < 2:
        raise InputError("one training row", expected="at least two", hint="pass all rows that subsets are drawn from")
    if together is not None:
        rows = _as_one_tensor(rows, options, together)
        test_rows = None if test_rows is None else _as_one_tensor(test_rows, options, together)
        if test_rows is not None and test_rows.tree.shape[1:] != rows.tree.shape[1:]:
            raise InputError(
                f"x of shape {tuple(rows.tree.shape)} and x_test of shape {tuple(test_rows.tree.shape)}",
                expected="(n, ...) and (t, ...) with the same shape of a row",
                hint="use the same features for both",
            )
    if real:
        n_outputs = int(labels.shape[1])
    elif options.n_classes is not None or together is not None:
        largest = max(int(labels.max()), int(test_labels.max()) if len(test_labels) else 0)
        n_outputs = options.n_classes or largest + 1
        if n_outputs < 2:
            raise InputError(
                "labels of one class", expected="at least two classes", hint="pass n_classes in the options"
            )
    else:
        n_outputs = None
    return ShadowData(rows, labels, test_rows, test_labels, n_outputs)


def is_real_target(y: ArrayLike) -> bool:
    """Return True for floating-point targets (n, C), False for everything else, also what is not an array."""
    dtype, ndim = getattr(y, "dtype", None), getattr(y, "ndim", 0)
    kind = "f" if isinstance(dtype, torch.dtype) and dtype.is_floating_point else getattr(dtype, "kind", "")
    return kind == "f" and ndim == 2


def as_targets(y: ArrayLike, name: str, n: int, n_classes: int | None, *, real: bool) -> Tensor:
    """Return (n,) int64 labels, or with ``real`` (n, C) float64 targets, on the CPU.

    Raises:
        InputError: their number or values do not fit.
    """
    if not real:
        hint = (
            f'pass real targets as (n, C), {name}[:, None] for one, and with EnsembleTraining a recipe with loss="mse"'
        )
        return as_labels(y, name, n=n, n_classes=n_classes, real_hint=hint).cpu()
    targets = as_tensor(y, name, dtype=torch.float64).cpu()
    if targets.ndim != 2 or len(targets) != n or not targets.shape[1]:
        raise InputError(
            f"{name} of shape {tuple(targets.shape)} for {n} rows",
            expected=f"({n}, C) real targets",
            hint="pass one row of targets per example, y[:, None] for one target",
        )
    return targets


def _as_one_tensor(rows: Rows, options: ShadowOptions, training: EnsembleTraining) -> Rows:
    """Return rows as one tensor in the dtype of the training; integer rows are converted for MLPs only.

    Raises:
        InputError: a dict or tuple, rows without features, or numbers beyond the range of the dtype.
    """
    if not isinstance(rows.tree, Tensor) or rows.tree.ndim < 2 or rows.tree.is_complex() or not rows.tree[0].numel():
        raise InputError(
            f"rows of shape {tuple(rows.tree.shape)} and dtype {rows.tree.dtype}".replace("torch.", "")
            if isinstance(rows.tree, Tensor)
            else f"rows of type {type(rows.tree).__name__}",
            expected="one tensor of real numbers (n, ...) with at least one feature",
            hint="pass a function train(indices, seed) -> model instead of EnsembleTraining"
            if not isinstance(rows.tree, Tensor)
            else "pass x[:, None] for one feature per row",
        )
    x = rows.tree if options.device is None else rows.tree.to(options.device)
    if x.is_floating_point() or training.make_model is None:
        x = as_tensor(x, "x", dtype=options.dtype)
    return Rows(x, rows.n)
