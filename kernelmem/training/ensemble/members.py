"""The members of an ensemble of networks, and their data checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.training.ensemble.recipe import Recipe

__all__ = ["EnsembleTask", "Member", "as_task"]


@dataclass(frozen=True, eq=False)
class Member:
    """One network of an ensemble: what it is, what it learns from, and its two seeds.

    ``width``: hidden widths of an MLP (one number h is (h,) * depth), or what ``make_model`` takes. ``rows`` (n_k,)
    int64: the rows of x that it trains on. ``labels``: (n_k,) int64 labels of those rows, or (n_k, C) real targets for
    the loss "mse". ``init_seed``: of its initial weights. ``order_seed``: of the order of its batches.
    """

    width: int | tuple[int, ...]
    rows: Tensor
    labels: Tensor
    init_seed: int
    order_seed: int


@dataclass(frozen=True, eq=False)
class EnsembleTask:
    """Checked data of an ensemble, on its device and in its dtype; ``targets[k]`` are what the loss of member k takes."""

    members: tuple[Member, ...]
    x: Tensor  # (N, ...)
    x_test: Tensor  # (m, ...)
    rows: tuple[Tensor, ...]  # (n_k,) int64
    targets: tuple[Tensor, ...]  # (n_k,) int64 labels, or (n_k, C) real targets
    test_target: Tensor
    C: int
    recipe: Recipe
    evaluate_at: tuple[int, ...]


def as_task(
    members: Sequence[Member],
    x: Any,
    x_test: Any,
    y_test: Any,
    *,
    recipe: Recipe,
    evaluate_at: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str | None,
    n_classes: int | None,
) -> EnsembleTask:
    """Check everything that an ensemble is given.

    Raises:
        InputError: no members, rows or labels out of range or of another length, NaN, wrong shapes, steps out of range.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype={dtype}", expected="torch.float32 or torch.float64", hint="pass one of them")
    found = tuple(members)
    if not found or not all(isinstance(member, Member) for member in found):
        raise InputError(
            f"{len(found)} members of type {type(found[0]).__name__ if found else 'none'}",
            expected="at least one Member",
            hint="pass a list of kernelmem.training.ensemble.train.Member",
        )
    inputs = as_tensor(x, "x"), as_tensor(x_test, "x_test")
    if min(value.ndim for value in inputs) < 2 or inputs[0].shape[1:] != inputs[1].shape[1:] or not len(inputs[1]):
        raise InputError(
            f"x of shape {tuple(inputs[0].shape)} and x_test of shape {tuple(inputs[1].shape)}",
            expected="(N, ...) and (m, ...) with the same shape of a row",
            hint="give both the same features",
        )
    x, x_test = (value.to(device=device, dtype=dtype if value.is_floating_point() else None) for value in inputs)
    rows = tuple(_rows(member, k, len(x)) for k, member in enumerate(found))
    for k, member in enumerate(found):
        for name in ("init_seed", "order_seed"):
            value = getattr(member, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
                raise InputError(
                    f"{name}={value!r} of member {k}", expected="a whole number >= 0", hint="pass 0, 1, 2, ..."
                )
    values = [
        *(as_tensor(member.labels, f"labels of member {k}") for k, member in enumerate(found)),
        as_tensor(y_test, "y_test"),
    ]
    lengths = [*map(len, rows), len(x_test)]
    names = [*(f"labels of member {k}" for k in range(len(found))), "y_test"]
    C = n_classes if n_classes is not None else _classes(values)
    targets = tuple(
        _target(value, name, n, C, recipe.loss, dtype).to(device=device)
        for value, name, n in zip(values, names, lengths, strict=True)
    )
    steps = tuple(sorted({*evaluate_at, recipe.steps}))
    if any(isinstance(t, bool) or not isinstance(t, int) or not 0 <= t <= recipe.steps for t in steps):
        raise InputError(
            f"evaluate_at with {[t for t in steps if not isinstance(t, int) or not 0 <= t <= recipe.steps][:3]}",
            expected=f"whole numbers in 0..{recipe.steps}",
            hint="pass the numbers of steps done",
        )
    return EnsembleTask(
        found, x, x_test, tuple(row.to(device) for row in rows), targets[:-1], targets[-1], C, recipe, steps
    )


def _rows(member: Member, k: int, N: int) -> Tensor:
    rows = as_tensor(member.rows, f"rows of member {k}")
    if rows.ndim != 1 or not len(rows) or rows.is_floating_point() or rows.dtype == torch.bool:
        raise InputError(
            f"rows of member {k} of shape {tuple(rows.shape)} and dtype {rows.dtype}",
            expected="at least one row number, shape (n,), integers",
            hint="pass mask.nonzero()[:, 0] of a mask",
        )
    low, high = (int(end) for end in rows.aminmax())
    if low < 0 or high >= N:
        raise InputError(f"rows of member {k} in {low}..{high}", expected=f"0..{N - 1}", hint="pass rows of x")
    return rows.to(torch.int64)


def _classes(values: list[Tensor]) -> int:
    shapes = {int(value.shape[1]) for value in values if value.ndim == 2}
    if len(shapes) > 1:
        raise InputError(
            f"targets with {sorted(shapes)} columns", expected="the same number of outputs", hint="pass (n, C)"
        )
    return shapes.pop() if shapes else max(int(value.max()) if value.numel() else 0 for value in values) + 1


def _target(value: Tensor, name: str, n: int, C: int, loss: str, dtype: torch.dtype) -> Tensor:
    if value.ndim == 2:
        if loss != "mse" or tuple(value.shape) != (n, C):
            raise InputError(
                f"{name} of shape {tuple(value.shape)} for loss={loss!r}",
                expected=f"({n},) labels" + (f", or ({n}, {C}) real targets" if loss == "mse" else ""),
                hint="pass labels, or loss='mse'",
            )
        return value.to(dtype)
    labels = as_labels(value, name, n=n, n_classes=C)
    return labels if loss == "cross_entropy" else torch.eye(C, dtype=dtype, device=labels.device)[labels] - 1 / C
