"""Targets of a kernel machine: labels, one-hot rows or real numbers as one target matrix."""

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_tensor
from kernelmem.core.errors import InputError

EPS32 = torch.finfo(torch.float32).eps


def as_targets(y: ArrayLike, n: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return ``y`` as float64 targets (n, C) of n rows, and its labels (n,), or None if y holds real numbers without labels.

    Integers (n,) or (n, 1) are labels 0..C-1 with targets one-hot − 1/C. Real (n, C) is used unchanged; if every row is
    one-hot up to one constant of the array, the label is the argmax. Real (n,) is one output.

    Raises:
        InputError: y has a wrong shape or length, is complex, has NaN or no outputs, or its labels have only one class.
    """
    tensor = as_tensor(y, "y", squared=True).to(device)
    if tensor.ndim not in (1, 2) or tensor.is_complex() or len(tensor) != n or tensor.numel() == 0:
        raise InputError(
            f"y of shape {tuple(tensor.shape)} and dtype {tensor.dtype}".replace("torch.", ""),
            expected=f"one label for each of the {n} rows, or real targets ({n},) or ({n}, C), C >= 1",
            hint="pair every row of the kernel with its label or targets",
        )
    if (tensor.ndim == 1 or tensor.shape[1] == 1) and not tensor.is_floating_point():
        labels = _require_two_classes(as_labels(tensor, "y")).clone()
        one_hot = torch.nn.functional.one_hot(labels).to(torch.float64)
        return one_hot - 1 / one_hot.shape[1], labels
    targets = (tensor if tensor.ndim == 2 else tensor[:, None]).to(torch.float64, copy=True)
    return targets, _one_hot_labels(targets)


def _one_hot_labels(targets: Tensor) -> Tensor | None:
    """Return the labels (n,) if every row of ``targets`` (n, C) is one-hot plus one constant, otherwise None."""
    n_outputs = targets.shape[1]
    labels = targets.argmax(1)
    constant = targets.mean() - 1 / n_outputs
    deviation = (targets - constant - torch.nn.functional.one_hot(labels, n_outputs)).abs().max()
    # One-hot rows minus 1/C were often computed in float32, whatever their dtype is now.
    if n_outputs == 1 or deviation > 4 * EPS32 * max(1.0, float(targets.abs().max())):
        return None
    return _require_two_classes(labels)


def _require_two_classes(labels: Tensor) -> Tensor:
    """Return the labels (n,) unchanged.

    Raises:
        InputError: all labels are equal.
    """
    if bool((labels == labels[0]).all()):
        raise InputError(
            f"y with one class only: {len(labels)} labels that are all {int(labels[0])}",
            expected="at least two classes among the rows",
            hint="include rows of another class, or pass real targets as floating-point numbers",
        )
    return labels
