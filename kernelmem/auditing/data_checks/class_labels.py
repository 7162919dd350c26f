"""Class labels as people have them, as indices of the outputs of a model: text, numbers from 1, missing classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_array, as_labels, as_list, as_text
from kernelmem.core.errors import InputError, printable

MAX_SHOWN = 5


@dataclass(frozen=True)
class ClassLabels:
    """Labels as class indices, the names of the classes, and how the labels were read.

    Attributes:
        y_train, y_test: (n,) and (m,) int64.
        names: class names; () if they are not known before the number of outputs is.
        are_text: True if the labels are text in alphabetical order.
        note: how labels were turned into indices; "" if they were indices.
    """

    y_train: Tensor
    y_test: Tensor
    names: tuple[str, ...]
    are_text: bool = False
    note: str = ""

    @property
    def n_distinct(self) -> int:
        """Number of different labels."""
        return len(torch.cat([self.y_train, self.y_test]).unique())

    def for_outputs(self, C: int) -> "ClassLabels":
        """Return the labels as indices of C outputs, with C names: labels 1..C are counted from 1.

        Raises:
            InputError: the number of texts or names is not C. Numbers outside 0..C−1 are returned as they are.
        """
        names = self.names
        if self.are_text and len(names) != C:
            raise InputError(
                f"labels with {len(names)} different texts ({_listed(names)}) for a model with {C} outputs",
                expected=f"{C} different texts, one for each output",
                hint="pass km.AuditOptions(class_names=[...]) with one name per output, in the order of the outputs",
            )
        if names and len(names) != C:
            raise InputError(
                f"class_names with {len(names)} entries for a model with {C} outputs",
                expected=f"{C} names, in the order of the outputs",
                hint="name every output, also of classes without rows",
            )
        every = torch.cat([self.y_train, self.y_test])
        if not self.note and int(every.min()) == 1 and int(every.max()) == C:
            note = f"Labels 1 to {C} are counted from 1: they are the outputs 0 to {C - 1} of the model."
            names = names or tuple(str(k + 1) for k in range(C))
            return replace(self, y_train=self.y_train - 1, y_test=self.y_test - 1, names=names, note=note)
        return replace(self, names=names or tuple(str(k) for k in range(C)))


def read_class_labels(
    y_train: ArrayLike, y_test: ArrayLike, class_names: Sequence[object] | None = None
) -> ClassLabels:
    """Return labels as class indices, as far as they can be read without the number of outputs C of the model.

    - Whole numbers >= 0 are indices; :meth:`ClassLabels.for_outputs` decides whether they count from 0 or 1. Some classes
      may have no rows.
    - −1 and 1, if these are all labels, are two classes in this order.
    - Text is looked up in ``class_names``; without them the different texts are the classes, in alphabetical order.

    Args:
        y_train: (n,) labels of training rows.
        y_test: (m,) labels of test rows.
        class_names: names in the order of the outputs; None: the labels themselves.

    Raises:
        InputError: labels that are none of these.
    """
    names = () if class_names is None else _check_names(class_names)
    texts = [_text_labels(y, name) for y, name in ((y_train, "y_train"), (y_test, "y_test"))]
    if texts[0] is not None and texts[1] is not None:
        return _from_text(texts[0], texts[1], names)
    if texts[0] is not None or texts[1] is not None:
        raise InputError(
            f"labels that are text in {'y_train' if texts[0] is not None else 'y_test'} only",
            expected="labels of one kind",
            hint="use the same labels in both",
        )
    note, labels = "", [y_train, y_test]
    distinct = [_distinct(y, name) for y, name in ((y_train, "y_train"), (y_test, "y_test"))]
    if set().union(*distinct) == {-1, 1}:
        note = "Labels -1 and 1 are the outputs 0 and 1 of the model."
        labels = [(np.asarray(y) + 1) // 2 for y in labels]
        names = names or ("-1", "1")
    train, test = (as_labels(y, name) for y, name in zip(labels, ("y_train", "y_test"), strict=True))
    return ClassLabels(train, test, names, note=note)


def _from_text(y_train: list[str], y_test: list[str], names: tuple[str, ...]) -> ClassLabels:
    """Return text labels as indices into ``names``, or into their alphabetical order."""
    distinct = tuple(sorted({*y_train, *y_test}))
    order = names or distinct
    if unknown := [text for text in distinct if text not in order]:
        raise InputError(
            f"labels {_listed(unknown)} that are not among the class names {_listed(order)}",
            expected="class names in the order of the model's outputs",
            hint="add the missing names",
        )
    index = {name: k for k, name in enumerate(order)}
    train, test = (torch.tensor([index[text] for text in y], dtype=torch.int64) for y in (y_train, y_test))
    note = "" if names else f"Text labels are the outputs of the model in alphabetical order: {_listed(order)}."
    return ClassLabels(train, test, order, are_text=not names, note=note)


def _text_labels(value: ArrayLike, name: str) -> list[str] | None:
    """Return labels of text as a list of printable str, or None for labels of another kind."""
    if isinstance(value, torch.Tensor):
        return None
    array = as_array(value, name)
    if array.dtype.kind != "U" and not (
        array.dtype == object and array.size and all(isinstance(label, str) for label in array.flat)
    ):
        return None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return [printable(str(label)) for label in array] if array.ndim == 1 else None


def _distinct(value: ArrayLike, name: str) -> set[float]:
    """Return the different numbers among labels (n,) or (n, 1); {0} for other values, which ``as_labels`` reads or refuses."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else as_array(value, name)
    if array.dtype.kind not in "if" or array.ndim not in (1, 2):
        return {0}
    return set(np.unique(array)[:3].tolist())


def _check_names(class_names: Sequence[object]) -> tuple[str, ...]:
    names = tuple(printable(as_text(name, "class name")) for name in as_list(class_names, "class_names"))
    if len(names) < 2 or len(set(names)) != len(names):
        raise InputError(
            f"class_names with {len(names)} entries, {len(set(names))} of them different",
            expected="at least two different names, one for each output of the model",
            hint="give them in the order of the outputs",
        )
    return names


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(repr(text[:40]) for text in texts[:MAX_SHOWN]) + (", ..." if len(texts) > MAX_SHOWN else "")
