"""Many networks in one batch: MLPs of ragged widths, any module by width, and the plain loop that they equal."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.options import as_bytes
from kernelmem.training.ensemble.members import EnsembleTask, Member, as_task
from kernelmem.training.ensemble.metrics import Figures, Snapshot
from kernelmem.training.ensemble.ragged_layout import chunks
from kernelmem.training.ensemble.ragged_mlp import RaggedMLPs
from kernelmem.training.ensemble.recipe import Recipe, learning_rate, make_optimizer
from kernelmem.training.ensemble.sequential import OneModule
from kernelmem.training.ensemble.vmapped import Modules, module_chunks
from kernelmem.training.mlp import mlp

__all__ = ["Ensemble", "Member", "Recipe", "Snapshot", "mlp", "train_mlps", "train_modules", "train_one"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """How the networks of an ensemble ended, and what was seen on the way; the last snapshot is the final step.

    ``parameters``: the state dict of each member on the CPU, or None if they were not kept.
    """

    members: tuple[Member, ...]
    recipe: Recipe
    snapshots: tuple[Snapshot, ...]
    parameters: list[dict[str, Tensor]] | None
    seconds: float

    @property
    def diverged(self) -> tuple[int, ...]:
        """The members whose last losses are not finite."""
        last = self.snapshots[-1]
        finite = torch.isfinite(last.train_loss) & torch.isfinite(last.test_loss)
        return tuple(int(k) for k in (~finite).nonzero()[:, 0])


class _Engine(Protocol):
    parameters: list[Tensor]
    members: list[int]

    def gradient(self) -> None: ...
    def train_outputs(self) -> dict[int, Tensor]: ...
    def test_outputs(self) -> dict[int, Tensor]: ...
    def state(self) -> dict[int, dict[str, Tensor]]: ...


def train_mlps(
    members: Sequence[Member],
    x: Any,
    x_test: Any,
    y_test: Any,
    *,
    recipe: Recipe,
    evaluate_at: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    memory: int | str = "2GiB",
    keep_outputs: bool = False,
    keep_parameters: bool = False,
    n_classes: int | None = None,
    diverged: Literal["keep", "raise"] = "keep",
    progress: Progress | None = None,
) -> Ensemble:
    """Train many MLPs of any widths in one batch; each is what :func:`train_one` makes of ``mlp(..., seed=init_seed)``.

    Member k minimizes the mean loss over its own rows and labels. Its initial weights (float32 numbers in both dtypes)
    are those of :func:`mlp`, its batches those of :class:`~kernelmem.training.batching.BatchOrder`: both depend on
    its own seeds, widths and number of rows alone, not on who else is in the batch, nor on ``memory``. In float64 a
    member equals its plain loop to 1e-9 over hundreds of steps, in float32 to rounding that training amplifies.

    Args:
        members: M networks, see :class:`Member`; members that see the same rows in each step (same rows and order seed,
            or all rows) share the products of the first layer, and those of near widths share the others.
        x: (N, ...) rows to train on, flattened to (N, d).
        x_test: (m, ...) rows.
        y_test: (m,) labels, or (m, C) real targets for the loss "mse".
        recipe: optimizer, schedule, batches, loss, activation.
        evaluate_at: numbers of steps done, 0..steps, at which losses and errors are taken; the end always is.
        dtype: float32 or float64.
        device: of all computation; None is that of x.
        memory: what the networks of one chunk may take above the data and the results; more are cut into chunks.
        keep_outputs: keep test logits (M, m, C) in every snapshot.
        keep_parameters: keep the final state dicts.
        n_classes: C; None is one more than the largest label of all members and of the test rows.
        diverged: "keep" leaves NaN in the figures of a diverged member (the others are not touched), see
            :attr:`Ensemble.diverged`; "raise" raises NumericalError at the end.
        progress: called with (member-steps done, in all, message).

    Raises:
        InputError: bad shapes, labels or rows out of range, no rows, a member that does not fit into ``memory``.
        NumericalError: with ``diverged="raise"``, naming the members.

    Cost: 6 n sum_k P_k operations a step for batches of n rows (P_k parameters), without padding beyond 25 %.

    >>> x, y = torch.eye(4), torch.arange(4)
    >>> crowd = [Member(width, torch.arange(4), y, init_seed=0, order_seed=0) for width in (5, 20)]
    >>> train_mlps(crowd, x, x, y, recipe=Recipe(steps=200)).snapshots[-1].train_error
    tensor([0., 0.], dtype=torch.float64)
    """
    began = time.perf_counter()
    task = as_task(
        members,
        x,
        x_test,
        y_test,
        recipe=recipe,
        evaluate_at=evaluate_at,
        dtype=dtype,
        device=device,
        n_classes=n_classes,
    )
    if not task.x.is_floating_point():
        task = replace(task, x=task.x.to(dtype), x_test=task.x_test.to(dtype))
    parts = list(chunks(task, as_bytes(memory), task.x.element_size()))
    engines = (RaggedMLPs(task, part) for part in parts)
    sizes = [sum(len(block.members) for block in part) for part in parts]
    return _trained(engines, sizes, task, began, keep_outputs, keep_parameters, diverged, progress)


def train_modules(
    make_model: Callable[[Any], nn.Module],
    members: Sequence[Member],
    x: Any,
    x_test: Any,
    y_test: Any,
    *,
    recipe: Recipe,
    evaluate_at: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    memory: int | str = "2GiB",
    keep_outputs: bool = False,
    keep_parameters: bool = False,
    n_classes: int | None = None,
    diverged: Literal["keep", "raise"] = "keep",
    progress: Progress | None = None,
) -> Ensemble:
    """Train many networks of any architecture; those of the same width in one batch, by ``torch.func.vmap``.

    ``make_model(width)`` is called with torch's random state forked and seeded by the member's ``init_seed``, and must
    give (n, ...) -> (n, C). Each member is what :func:`train_one` makes of that module. Arguments, results and errors
    are those of :func:`train_mlps`; ``recipe.activation`` and ``recipe.depth`` do not matter. BatchNorm takes the
    statistics of the member's own batch, and keeps its own running statistics for evaluation.

    Raises:
        UnsupportedModelError: dropout or other randomness, modules of one width with different parameters, a model that
            vmap cannot take.
    """
    began = time.perf_counter()
    task = as_task(
        members,
        x,
        x_test,
        y_test,
        recipe=recipe,
        evaluate_at=evaluate_at,
        dtype=dtype,
        device=device,
        n_classes=n_classes,
    )
    parts = list(module_chunks(task, make_model, as_bytes(memory)))
    engines = (Modules(task, make_model, part) for part in parts)
    return _trained(engines, [len(p) for p in parts], task, began, keep_outputs, keep_parameters, diverged, progress)


def train_one(
    model: nn.Module,
    member: Member,
    x: Any,
    x_test: Any,
    y_test: Any,
    *,
    recipe: Recipe,
    evaluate_at: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    keep_outputs: bool = False,
    keep_parameters: bool = False,
    n_classes: int | None = None,
    diverged: Literal["keep", "raise"] = "keep",
    progress: Progress | None = None,
) -> Ensemble:
    """Train a copy of one module by the plain loop: autograd and ``torch.optim`` with its defaults, an ensemble of one.

    ``model`` is taken with the weights that it has (``member.init_seed`` and ``member.width`` do not matter) and is not
    changed; an MLP reads x as it is, so give it rows (N, d). Other arguments, results and errors as :func:`train_mlps`.
    """
    began = time.perf_counter()
    task = as_task(
        [member],
        x,
        x_test,
        y_test,
        recipe=recipe,
        evaluate_at=evaluate_at,
        dtype=dtype,
        device=device,
        n_classes=n_classes,
    )
    engine = OneModule(task, model)
    return _trained([engine], [1], task, began, keep_outputs, keep_parameters, diverged, progress, fused=False)


def _trained(
    engines: Any,
    sizes: list[int],
    task: EnsembleTask,
    began: float,
    keep_outputs: bool,
    keep_parameters: bool,
    diverged: str,
    progress: Progress | None,
    *,
    fused: bool = True,
) -> Ensemble:
    """Train the chunks one after the other. ``fused``: torch's one-pass update, equal to the default up to rounding."""
    if diverged not in ("keep", "raise"):
        raise InputError(f"diverged={diverged!r}", expected='"keep" or "raise"', hint="pass one of them")
    figures = Figures(task, keep_outputs=keep_outputs)
    states: dict[int, dict[str, Tensor]] = {}
    steps = task.recipe.steps
    done, total = 0, steps * len(task.members)
    for engine, size in zip(engines, sizes, strict=True):
        optimizer = make_optimizer(task.recipe, engine.parameters, **({"fused": True} if fused else {}))
        for t in range(steps + 1):
            if t in task.evaluate_at:
                with torch.no_grad():
                    figures.add(t, engine.train_outputs(), engine.test_outputs())
            if progress is not None and (t % max(1, steps // 100) == 0 or t == steps):
                progress(done + t * size, total, f"step {t} of {steps}, {size} networks")
            if t < steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(task.recipe, t)
                engine.gradient()
                optimizer.step()
        done += steps * size
        if keep_parameters:
            states |= engine.state()
    parameters = [states[k] for k in range(len(task.members))] if keep_parameters else None
    found = Ensemble(task.members, task.recipe, figures.snapshots(), parameters, time.perf_counter() - began)
    if diverged == "raise" and found.diverged:
        raise NumericalError(
            f"members {', '.join(map(str, found.diverged[:10]))} with losses that are not finite after {steps} steps",
            expected="finite losses",
            hint="lower the learning rate, or pass diverged='keep'",
        )
    return found
