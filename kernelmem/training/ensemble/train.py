"""Train many networks in one batch: MLPs of different widths, modules grouped by width, one network by a plain loop."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from kernelmem.core.checks import ArrayLike, check_callable, check_model
from kernelmem.core.errors import NumericalError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import Progress, as_bytes, as_progress
from kernelmem.training.ensemble.members import EnsembleOptions, EnsembleTask, Member, as_task
from kernelmem.training.ensemble.metrics import MetricsLog, StepMetrics
from kernelmem.training.ensemble.ragged_layout import chunks
from kernelmem.training.ensemble.ragged_mlp import RaggedMLPs
from kernelmem.training.ensemble.recipe import Recipe, lr_at, make_optimizer
from kernelmem.training.ensemble.sequential import OneModule
from kernelmem.training.ensemble.vmapped import MakeModel, Modules, module_chunks

if TYPE_CHECKING:
    import pandas as pd

METRIC_NAMES = ("train_loss", "train_error", "test_loss", "test_error")
DEFAULT_OPTIONS = EnsembleOptions()


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Result):
    """M trained networks: their metrics during training, and their final weights if they were kept.

    Attributes:
        members: the M networks and their training data.
        recipe: training recipe of all members.
        metrics: one entry per evaluation, in order; the last one is after the last step.
        parameters: state dict of each member on the CPU, or None.
        seconds: wall-clock time of the training.
    """

    members: tuple[Member, ...]
    recipe: Recipe
    metrics: tuple[StepMetrics, ...]
    parameters: list[dict[str, Tensor]] | None
    seconds: float

    @property
    def diverged(self) -> tuple[int, ...]:
        """The numbers of the members whose final training or test loss is not finite."""
        final_metrics = self.metrics[-1]
        finite = torch.isfinite(final_metrics.train_loss) & torch.isfinite(final_metrics.test_loss)
        return tuple(int(k) for k in (~finite).nonzero()[:, 0])

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per evaluation and member.

        Columns: step, member, width, n (number of training rows), train_loss, train_error, test_loss, test_error.
        """
        import pandas as pd

        return pd.concat(
            [
                pd.DataFrame(
                    {
                        "step": step_metrics.step,
                        "member": range(len(self.members)),
                        "width": [str(member.width) for member in self.members],
                        "n": [len(member.rows) for member in self.members],
                        **{name: getattr(step_metrics, name).numpy() for name in METRIC_NAMES},
                    }
                )
                for step_metrics in self.metrics
            ],
            ignore_index=True,
        )

    def __str__(self) -> str:
        final_metrics = self.metrics[-1]
        lines = [
            f"Ensemble of {len(self.members)} networks, {self.recipe.steps} steps in {self.seconds:.3g} s"
            f" ({self.recipe.optimizer}, lr {self.recipe.lr:g})",
            f"  evaluated after {', '.join(str(step_metrics.step) for step_metrics in self.metrics[:12])}"
            f"{', ...' if len(self.metrics) > 12 else ''} steps",
        ]
        for name in METRIC_NAMES:
            values = getattr(final_metrics, name)
            values = values[values.isfinite()]
            if len(values):
                lines.append(
                    f"  final {name.replace('_', ' ')}: mean {float(values.mean()):.4g},"
                    f" {float(values.min()):.4g} to {float(values.max()):.4g}"
                )
        if self.diverged:
            lines.append(f"  diverged: {len(self.diverged)} members ({', '.join(map(str, self.diverged[:10]))})")
        return "\n".join(lines)


class _Engine(Protocol):
    """Interface of networks that are trained together; outputs and state dicts are returned by member number.

    ``gradient`` writes ``.grad`` of ``parameters`` for the next batches.
    """

    parameters: list[Tensor]
    members: list[int]

    def gradient(self) -> None: ...
    def train_outputs(self) -> dict[int, Tensor]: ...
    def test_outputs(self) -> dict[int, Tensor]: ...
    def state(self) -> dict[int, dict[str, Tensor]]: ...


def train_mlps(
    members: Sequence[Member],
    x: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike],
    recipe: Recipe,
    options: EnsembleOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Ensemble:
    """Train many MLPs of any widths in one batch; each equals :func:`train_one` of ``mlp(..., seed=init_seed)``.

    Member k minimizes the mean loss over its own rows and labels. Its initial weights (float32 numbers in both dtypes)
    are those of :func:`~kernelmem.training.mlp`, its batches those of :class:`~kernelmem.training.batching.BatchOrder`:
    both depend on its own seeds, widths and number of rows only, not on the other members, nor on ``memory``. In float64
    a member equals its plain loop to 1e-9 over hundreds of steps, in float32 to rounding that training amplifies.

    Args:
        members: M networks, see :class:`Member`; members that see the same rows in each step (same rows and order seed,
            or all rows) share the products of the first layer, and those of similar widths share the others.
        x: (N, ...) training rows, flattened to (N, d).
        test: (x_test, y_test): (m, ...) rows and (m,) labels, or (m, C) real targets for the loss "mse".
        recipe: optimizer, schedule, batches, loss, activation.
        options: evaluations, dtype, device, memory and what is kept.
        progress: called with (member-steps done, all member-steps).

    Raises:
        InputError: shapes are invalid, labels or rows are out of range or missing, or a member does not fit into ``memory``.
        NumericalError: with ``diverged="raise"``, naming the members.

    Cost: 6 n sum_k P_k operations per step for batches of n rows (P_k parameters), with at most 25 % padding.

    >>> x, y = torch.eye(4), torch.arange(4)
    >>> members = [Member(width, torch.arange(4), y, init_seed=0, order_seed=0) for width in (5, 20)]
    >>> train_mlps(members, x, test=(x, y), recipe=Recipe(steps=200)).metrics[-1].train_error
    tensor([0., 0.], dtype=torch.float64)
    """
    task = as_task(members, x, test=test, recipe=recipe, options=options)
    if not task.x.is_floating_point():
        task = replace(task, x=task.x.to(options.dtype), x_test=task.x_test.to(options.dtype))
    parts = list(chunks(task, as_bytes(options.memory), task.x.element_size()))  # refuses before any training
    return _train((RaggedMLPs(task, part) for part in parts), task, options, progress)


def train_modules(
    make_model: MakeModel,
    members: Sequence[Member],
    x: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike],
    recipe: Recipe,
    options: EnsembleOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Ensemble:
    """Train many networks of any architecture, all of one width in one batch, by ``torch.func.vmap``.

    ``make_model(width)`` is called with torch's random state forked and seeded by the member's ``init_seed``; it returns
    a module (n, ...) -> (n, C). Each member equals :func:`train_one` of that module. Arguments, results and errors
    are those of :func:`train_mlps`; ``recipe.activation`` and ``recipe.depth`` are not used. BatchNorm uses the
    statistics of the member's own batch, and keeps separate running statistics for evaluation.

    Raises:
        UnsupportedModelError: dropout or other randomness, modules of one width with different parameters, a model that
            vmap does not support.
    """
    check_callable(make_model, "make_model", ("width",), types=True)
    task = as_task(members, x, test=test, recipe=recipe, options=options)
    parts = list(module_chunks(task, make_model, as_bytes(options.memory)))
    return _train((Modules(task, make_model, part) for part in parts), task, options, progress)


def train_one(
    model: nn.Module,
    member: Member,
    x: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike],
    recipe: Recipe,
    options: EnsembleOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Ensemble:
    """Train a copy of one module by a plain loop (autograd, ``torch.optim`` with its defaults); an ensemble of one.

    Training starts from the current weights of ``model``, which is not changed; ``member.init_seed`` and
    ``member.width`` are not used. Rows reach the model with the shape they have in x (an MLP needs (N, d)). Other
    arguments, results and errors are those of :func:`train_mlps`.
    """
    check_model(model)
    task = as_task([member], x, test=test, recipe=recipe, options=options)
    return _train([OneModule(task, model)], task, options, progress, fused=None)


def _train(
    engines: Iterable[_Engine],
    task: EnsembleTask,
    options: EnsembleOptions,
    progress: Progress,
    *,
    fused: bool | None = True,
) -> Ensemble:
    """Train the networks of each engine, one engine after the other, and return the ensemble of all members.

    ``fused`` selects torch's one-pass update of the optimizer, which equals the default one up to rounding.

    Raises:
        NumericalError: a final loss is not finite, and ``options.diverged`` is "raise".
    """
    start_time = time.perf_counter()
    metrics = MetricsLog(task, keep_outputs=options.keep_outputs)
    states: dict[int, dict[str, Tensor]] = {}
    steps = task.recipe.steps
    completed, total = 0, steps * len(task.members)
    report_progress = as_progress(progress, "training networks")
    for engine in engines:
        optimizer = make_optimizer(task.recipe, engine.parameters, fused=fused)
        for t in range(steps + 1):
            if t in task.evaluate_at:
                with torch.no_grad():
                    metrics.add(t, engine.train_outputs(), engine.test_outputs())
            if t % max(1, steps // 100) == 0 or t == steps:
                report_progress(completed + t * len(engine.members), total)
            if t < steps:
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(task.recipe, t)
                engine.gradient()
                optimizer.step()
        completed += steps * len(engine.members)
        if options.keep_parameters:
            states |= engine.state()
    parameters = [states[k] for k in range(len(task.members))] if options.keep_parameters else None
    ensemble = Ensemble(task.members, task.recipe, metrics.collected(), parameters, time.perf_counter() - start_time)
    if options.diverged == "raise" and ensemble.diverged:
        raise NumericalError(
            f"members {', '.join(map(str, ensemble.diverged[:10]))} with losses that are not finite after {steps} steps",
            expected="finite losses",
            hint="lower lr, or pass diverged='keep'",
        )
    return ensemble
