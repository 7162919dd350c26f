"""Inputs of an audit: rows and labels as users have them, outputs of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kernelmem.auditing.data_checks.class_labels import ClassLabels, read_class_labels
from kernelmem.core.batches import Batch, Forward, Rows, as_labeled_rows, as_rows, as_structured_rows
from kernelmem.core.checks import ArrayLike, as_array, check_finite, renumbering_hint
from kernelmem.core.errors import InputError, printable
from kernelmem.tangents import prepare
from kernelmem.training.datasets import LabeledData, labeled_data
from kernelmem.training.losses import class_forward

LabeledRows: TypeAlias = tuple[Batch, ArrayLike] | Dataset[Any] | DataLoader[Any]
"""Type of ``train=`` and ``test=``: (x, y), or a Dataset or DataLoader of pairs (input, label)."""

ROWS_PER_PASS = 256  # rows per forward pass


@dataclass(frozen=True)
class AuditInputs:
    """Checked inputs of an audit: n training rows, m test rows, C classes.

    Attributes:
        rows: training and test rows for the model.
        data: the same rows as arrays, with labels as class indices.
        labels: class names, and how labels were read.
        module: copy of the model in eval mode.
        forward: function (model, batch) -> outputs (n, C), or None for ``model(batch)``.
        train_outputs, test_outputs: (n, C) and (m, C) float64 on the CPU.
    """

    rows: tuple[Rows, Rows]
    data: LabeledData
    labels: ClassLabels
    module: nn.Module
    forward: Forward | None
    train_outputs: Tensor
    test_outputs: Tensor


def read_rows(
    train: LabeledRows,
    test: LabeledRows,
    flipped: ArrayLike | None,
    *,
    class_names: Sequence[str] | None,
    name: str,
    image_shape: tuple[int, ...] | None,
) -> tuple[tuple[Rows, Rows], LabeledData, ClassLabels]:
    """Return (training and test inputs of the model, data of the report, labels).

    Rows that are dicts or tuples of tensors appear in the data as the vectors of all their numbers.
    """
    x_train, y_train = as_labeled_rows(train, "train")
    x_test, y_test = as_labeled_rows(test, "test")
    x_train, x_test = (as_structured_rows(x, name) for x, name in ((x_train, "x_train"), (x_test, "x_test")))
    labels = read_class_labels(y_train, y_test, class_names)
    data = labeled_data(
        x_train.flat() if isinstance(x_train, Rows) else x_train,
        labels.y_train,
        x_test.flat() if isinstance(x_test, Rows) else x_test,
        labels.y_test,
        name=name,
        image_shape=image_shape,
        flipped=flipped,
    )
    rows = (
        x_train if isinstance(x_train, Rows) else as_rows(data.x_train, "x_train"),
        x_test if isinstance(x_test, Rows) else as_rows(data.x_test, "x_test"),
    )
    return rows, data, labels


def with_outputs(
    model: nn.Module,
    rows: tuple[Rows, Rows],
    data: LabeledData,
    labels: ClassLabels,
    *,
    forward: Forward | None,
    n_classes: int | None,
) -> AuditInputs:
    """Return the inputs with a copy of the model in eval mode and its outputs, labels numbered as its outputs.

    Raises:
        InputError: the number of outputs is not the number of classes, or an output is not finite.
    """
    if n_classes == 2 or (n_classes is None and labels.n_distinct <= 2):
        forward = class_forward(forward)  # the model may have one logit
    prepared = prepare(model, rows[0], forward=forward, dtype=torch.float64, evaluation=True)
    C = prepared.n_outputs
    labels = labels.for_outputs(C)
    data = replace(data, y_train=labels.y_train, y_test=labels.y_test)
    n_expected = n_classes or C  # classes may be missing from the labels
    if n_expected != C or data.n_classes > C:
        raise InputError(
            f"a model with {C} outputs for labels up to {data.n_classes - 1}"
            f" (y_train of shape {tuple(data.y_train.shape)}, y_test of shape {tuple(data.y_test.shape)})",
            expected=f"{n_expected} outputs, one for each class",
            hint=_class_count_hint(data, C),
        )
    outputs = []
    for name, part in zip(("x_train", "x_test"), rows, strict=True):
        part = part.to(dtype=torch.float64, device=prepared.device)
        starts = range(0, part.n, ROWS_PER_PASS)
        with torch.no_grad():
            batches = [
                prepared.outputs(
                    part.slice(start, min(start + ROWS_PER_PASS, part.n)), min(ROWS_PER_PASS, part.n - start)
                )
                for start in starts
            ]
        outputs.append(check_finite(torch.cat(batches).cpu(), f"the model's outputs on {name}"))
    return AuditInputs(rows, data, labels, prepared.module, forward, outputs[0], outputs[1])


def read_groups(groups: ArrayLike | Mapping[str, ArrayLike] | None, n: int) -> dict[str, list[str]]:
    """Return the group of each of n training rows as text, by name of the grouping.

    Raises:
        InputError: a grouping has another length, or more than n/2 groups and more than 100.
    """
    if groups is None:
        return {}
    named = groups if isinstance(groups, Mapping) else {"group": groups}
    result = {}
    for name, value in named.items():
        array = np.asarray(value.cpu()) if isinstance(value, Tensor) else as_array(value, f"groups[{name!r}]")
        if array.ndim != 1 or len(array) != n:
            raise InputError(
                f"groups[{name!r}] of shape {array.shape}",
                expected=f"one group for each training row, shape ({n},)",
                hint="pass an array of text or whole numbers",
            )
        texts = [printable(str(group)) for group in array.tolist()]
        if len(set(texts)) > max(100, n // 2):
            raise InputError(
                f"groups[{name!r}] with {len(set(texts))} groups of {n} rows",
                expected="groups of several rows",
                hint="cut a continuous variable into a few ranges",
            )
        result[printable(str(name))] = texts
    return result


def _class_count_hint(data: LabeledData, C: int) -> str:
    """Return the hint for labels that do not fit a model with C outputs."""
    if data.n_classes > C:
        hint = renumbering_hint(torch.cat([data.y_train, data.y_test]), "y", max(2, C))
        return f"{hint} (y: the labels of train and test)"
    return (
        f"use a model with {data.n_classes} outputs, or pass km.AuditOptions(n_classes={C}) if some have no rows here"
    )
