"""What a kernel machine is fitted to: labels, one-hot rows or real numbers, read as one matrix."""

from typing import Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor
from kernelmem.core.errors import InputError

__all__ = ["as_targets"]

EPS32 = torch.finfo(torch.float32).eps


def as_targets(y: Any, n: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Read ``y`` as targets (n, C) in float64, and as labels (n,) if it is labels or one-hot rows.

    Integers (n,) are labels 0..C-1, and their targets one-hot - 1/C. Real (n, C) is taken as it is; if every
    row is one-hot up to one constant of the whole array, the label is the argmax. Real (n,) is one output.

    Raises:
        InputError: wrong shape or length, complex, NaN, no output, labels of only one class.
    """
    y = as_tensor(y, "y").to(device)
    if y.ndim not in (1, 2) or y.is_complex() or len(y) != n or y.numel() == 0:
        raise InputError(
            f"y of shape {tuple(y.shape)} and dtype {y.dtype}".replace("torch.", ""),
            expected=f"one label for each of the {n} rows, or real targets ({n},) or ({n}, C), C >= 1",
            hint="pair every row of the kernel with its label or targets",
        )
    if y.ndim == 1 and not y.is_floating_point():
        labels = _several_classes(as_labels(y, "y")).clone()
        one_hot = torch.nn.functional.one_hot(labels).to(torch.float64)
        return one_hot - 1 / one_hot.shape[1], labels
    targets = (y if y.ndim == 2 else y[:, None]).to(torch.float64, copy=True)
    return targets, _one_hot_labels(targets)


def _one_hot_labels(targets: Tensor) -> Tensor | None:
    outputs = targets.shape[1]
    labels = targets.argmax(1)
    constant = targets.mean() - 1 / outputs
    off = (targets - constant - torch.nn.functional.one_hot(labels, outputs)).abs().max()
    # One-hot rows minus 1/C often come from float32, whatever their dtype is now.
    if outputs == 1 or off > 4 * EPS32 * max(1.0, float(targets.abs().max())):
        return None
    return _several_classes(labels)


def _several_classes(labels: Tensor) -> Tensor:
    if bool((labels == labels[0]).all()):
        raise InputError(
            f"y with {len(labels)} labels that are all {int(labels[0])}: one class only",
            expected="at least two classes among the rows",
            hint="include rows of another class, or pass real targets as floating-point numbers",
        )
    return labels
