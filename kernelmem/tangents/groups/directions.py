"""Directions in output space: the combinations of outputs that are differentiated, and scalar targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.core.checks import check_callable
from kernelmem.core.errors import InputError
from kernelmem.tangents.groups.base import Combine
from kernelmem.training.losses import class_outputs

OUTPUT_KINDS = ("trace", "diagonal", "full", "pseudo")
Target = Callable[[Tensor, Tensor | None], Tensor]  # outputs (n, C), labels (n,) or None -> (n,)
TargetLike = Target | str | tuple[str, int]  # what users pass: a callable, "margin", "loss" or ("logit", c)


@dataclass(frozen=True)
class OutputDirections:
    """The k combinations of the C outputs that are differentiated: k cotangents (n examples, C).

    They are the same for all examples unless a target function is given, whose gradient is then the only direction.
    """

    outputs: str  # one of OUTPUT_KINDS, or "target"
    n_outputs: int
    target: Target | None = None

    @property
    def k(self) -> int:
        """Number of directions, which is the number of backward sweeps."""
        return 1 if self.outputs in ("pseudo", "target") else self.n_outputs

    @property
    def combine(self) -> Combine:
        """How the kernels of pairs of directions are combined: "sum" over directions, "diagonal" (equal pairs) or "full"."""
        return self.outputs if self.outputs in ("diagonal", "full") else "sum"  # type: ignore[return-value]

    def cotangents(self, outputs: Tensor, block: Sequence[int], labels: Tensor | None) -> Tensor:
        """Return the cotangents (n, k, C) of the k directions in ``block``, for ``outputs`` (n examples, C)."""
        n, C = outputs.shape
        if self.outputs == "pseudo":
            return torch.full((n, 1, C), C**-0.5, dtype=outputs.dtype, device=outputs.device)
        if self.target is not None:
            return self._target_gradient(outputs, labels)[:, None]
        one_hot = outputs.new_zeros(len(block), C)
        one_hot[range(len(block)), list(block)] = 1.0
        return one_hot.expand(n, len(block), C)

    def _target_gradient(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the gradient (n, C) of the target with respect to ``outputs`` (n examples, C)."""
        assert self.target is not None
        with torch.enable_grad():
            outputs_leaf = outputs.detach().requires_grad_()
            values = self.target(outputs_leaf, labels)
            if not isinstance(values, Tensor) or values.shape != (len(outputs),):
                description = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InputError(
                    f"a target that returns {description} for {len(outputs)} rows",
                    expected=f"one number per row, shape ({len(outputs)},)",
                    hint="return e.g. outputs[:, 3] or F.cross_entropy(outputs, labels, reduction='none')",
                )
            if not values.requires_grad:
                return torch.zeros_like(outputs)
            return torch.autograd.grad(values.sum(), outputs_leaf)[0]

    def result_shape(self, n: int, m: int) -> tuple[int, ...]:
        """Return the shape in which the kernel of n and m examples is accumulated, with C outputs.

        It is (n, m) for "sum", (C, n, m) for "diagonal" and (n, C, m, C) for "full".
        """
        C = self.n_outputs
        return {"sum": (n, m), "diagonal": (C, n, m), "full": (n, C, m, C)}[self.combine]

    def public(self, result: Tensor) -> Tensor:
        """Return a view of the kernel with the axes of examples first: (n, m), (n, m, C) or (n, m, C, C) for C outputs."""
        if self.combine == "diagonal":
            return result.movedim(0, 2)
        return result.transpose(1, 2) if self.combine == "full" else result


def named_target(target: TargetLike) -> Target:
    """Convert "margin", "loss", ("logit", c) or a callable to a function of outputs f (n, C) and labels y (n,).

    The function returns (n,): f_y − max_{k≠y} f_k for "margin", the cross-entropy for "loss", f_c for "logit". One output z
    of a binary classifier counts as f = [0, z] in a margin or cross-entropy. That function raises InputError for an output
    that the model does not have, and for labels that are missing or out of range.

    Raises:
        InputError: an unknown target.
    """
    if callable(target):
        check_callable(target, "target", ("outputs", "labels"), modules=True)
        return cast(Target, target)
    if isinstance(target, tuple) and len(target) == 2 and target[0] == "logit" and isinstance(target[1], int):
        return lambda outputs, labels: _logit(outputs, target[1])
    if isinstance(target, str) and target == "loss":
        return _cross_entropy
    if isinstance(target, str) and target == "margin":
        return _margin
    raise InputError(
        f"target={target!r}",
        expected='"margin", "loss", ("logit", c) or a callable (outputs, labels) -> (n,)',
        hint='pass e.g. target="loss", labels=y',
    )


def _logit(outputs: Tensor, output_index: int) -> Tensor:
    """Return the column ``output_index`` of the outputs (n examples, C), shape (n,); raise InputError if there is none."""
    if not 0 <= output_index < outputs.shape[1]:
        raise InputError(
            f"target=('logit', {output_index}) for a model with {outputs.shape[1]} outputs",
            expected=f"an output 0..{outputs.shape[1] - 1}",
            hint="number outputs from 0",
        )
    return outputs[:, output_index]


def _margin(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Compute the margin f_y − max_{k≠y} f_k of each example, (n,), from outputs f (n, C) and labels y (n,)."""
    outputs = class_outputs(outputs)
    label_column = _validated_labels(outputs, labels)[:, None]
    others = outputs.scatter(1, label_column, float("-inf"))
    return outputs.gather(1, label_column)[:, 0] - others.max(1).values


def _cross_entropy(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Compute the cross-entropy of each example, (n,), from outputs (n, C) and labels (n,)."""
    outputs = class_outputs(outputs)
    return F.cross_entropy(outputs, _validated_labels(outputs, labels), reduction="none")


def _validated_labels(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Return ``labels`` (n,); raise InputError if they are None or if one is >= C, the number of outputs."""
    if labels is None:
        raise InputError(
            "a target that needs labels, and labels=None", expected="labels of all rows", hint="pass labels=y"
        )
    C = outputs.shape[1]
    largest_label = int(labels.max())
    if largest_label >= C:
        raise InputError(
            f"label {largest_label} for a model with {C} outputs",
            expected=f"labels 0..{C - 1}",
            hint="number the classes as in training",
        )
    return labels
