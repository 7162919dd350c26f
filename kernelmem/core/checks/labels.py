"""Class labels as users have them: class indices, columns, text and one-hot rows with a hint that fits."""

import math
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks.arrays import ArrayLike, as_array, as_tensor
from kernelmem.core.errors import InputError

MAX_CLASSES = 1_000_001  # arrays with one column for each class are formed


def as_labels(
    value: ArrayLike, name: str, *, n: int | None = None, n_classes: int | None = None, real_hint: str = ""
) -> Tensor:
    """Return class labels as an int64 tensor of shape (n,) with values in 0..n_classes-1.

    A column (n, 1) is one label per row. Floating-point labels are accepted if all of them are whole numbers.
    ``real_hint`` is the hint for what looks like real targets, of functions that take those too.

    Raises:
        InputError: text, a wrong number of dimensions or labels, or labels that are fractional, negative or not below
            ``n_classes``; the hint names the conversion that these labels need.
    """
    labels = as_tensor(value if isinstance(value, Tensor) else _numeric_labels(value, name), name)
    description = f"{name} of shape {tuple(labels.shape)} and dtype {labels.dtype}".replace("torch.", "")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_complex():
        raise InputError(description, expected="one class index per row, shape (n,)", hint=_shape_hint(labels, name))
    if n is not None and len(labels) != n:
        raise InputError(description, expected=f"{n} labels, one per row", hint="pass one label per row")
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        many_values = 2 * len(labels.unique()) > len(labels)
        raise InputError(
            f"{description} with fractions",
            expected="whole numbers",
            hint=real_hint or "these look like real targets, which have no classes"
            if many_values
            else _numbering_hint(name),
        )
    outside = (labels < 0) | (labels >= (MAX_CLASSES if n_classes is None else min(n_classes, 2**53)))
    if bool(outside.any()):
        upper_bound = "" if n_classes is None else f"..{n_classes - 1}"
        raise InputError(
            f"{description} with {int(outside.sum())} values outside 0{upper_bound} (the first is {labels[outside][0]:.15g})",
            expected=f"class indices 0{upper_bound or ', 1, 2, ...'}",
            hint=renumbering_hint(labels, name if name.isidentifier() else "y", n_classes),
        )
    return labels.to(torch.int64)


def renumbering_hint(labels: Tensor, name: str, n_classes: int | None) -> str:
    """Return the hint for whole-number labels (n,), some of which are outside 0..n_classes-1 (None: negative ones)."""
    distinct = labels.unique()
    smallest, largest = int(distinct[0]), int(distinct[-1])
    if smallest < 0:
        if distinct.tolist() == [-1, 1]:
            return f"pass ({name} + 1) // 2"
        others_fit = distinct[distinct >= 0].numel() > 1 and (n_classes is None or largest < n_classes)
        if others_fit and int((distinct < 0).sum()) == 1:  # -1 and -100 mark rows without a label
            return f"remove the rows without a label: keep the rows with {name} >= 0"
        return _numbering_hint(name)
    if smallest == 1 and largest == n_classes:
        return f"pass {name} - 1"
    if n_classes is not None and len(distinct) > n_classes:
        return f"use a model with {len(distinct)} outputs, or remove the rows of some classes"
    return _numbering_hint(name)


def _numeric_labels(value: ArrayLike, name: str) -> ArrayLike:
    """Return ``value`` as an array of numbers; raise an InputError if it holds text, other objects, or missing labels."""
    array = as_array(value, name)
    if array.dtype == object and all(isinstance(label, Integral) and abs(int(label)) < 2**63 for label in array.flat):
        return array.astype(np.int64)  # pandas' nullable integers
    if array.dtype.kind in "biufc":
        return array
    missing = any(label is None or (isinstance(label, float) and math.isnan(label)) for label in array.flat)
    raise InputError(
        f"{name} of shape {array.shape} and dtype {array.dtype}" + (" with missing labels" if missing else ""),
        expected="class indices 0, 1, 2, ...",
        hint="remove the rows without a label" if missing else _numbering_hint(name),
    )


def _numbering_hint(name: str) -> str:
    return f"number the classes from 0, of all rows together: numpy.unique({name}, return_inverse=True)[1]"


def _shape_hint(labels: Tensor, name: str) -> str:
    """Return the hint for labels that are not (n,) or (n, 1)."""
    if labels.ndim == 2 and labels.numel() and not labels.is_complex():
        if labels.shape[0] == 1:
            return f"pass {name}[0]"
        if bool((labels.sum(1) == 1).all()) and bool(((labels == 0) | (labels == 1)).all()):
            return f"pass {name}.argmax(1), the class indices of these one-hot rows"
        if (
            labels.is_floating_point()
            and bool((labels >= 0).all())
            and torch.allclose(labels.sum(1), labels.new_ones(()))
        ):
            return f"pass {name}.argmax(1), the most probable class of each row"
    return "pass one class index per row"
