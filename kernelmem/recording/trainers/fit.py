"""Train and record in one call: the epoch loop over shuffled batches, with a recorder that takes the steps."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kernelmem.core.batches import Batch, Forward, Rows, as_rows, check_outputs, input_hint, named_leaves
from kernelmem.core.checks import (
    ArrayLike,
    as_count,
    as_flag,
    as_number,
    as_path,
    as_tensor,
    check_callable,
    check_instance,
    check_model,
    seed_sequence,
)
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.recording.gradient_check import call_model
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.recording.step_checks.random_state import random_state
from kernelmem.recording.storage.header import check_keep, model_device
from kernelmem.recording.storage.param_groups import read_groups
from kernelmem.recording.storage.tape import FILE
from kernelmem.training.batching import in_dtype, shuffled
from kernelmem.training.loop import train_epochs
from kernelmem.training.losses import Loss, as_loss, batch_loss, loss_reduction, mean_factor

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class FitOptions:
    """Training options of :func:`fit`.

    Attributes:
        loss: "cross_entropy", "mse" (half the squared distance), "mse_mean" (torch's convention), a loss module of torch.nn
            (its class weights, ignored labels and reduction apply), or a callable (outputs, targets) -> (B,) losses.
        optimizer: a torch optimizer of ``model.parameters()``, or a function that makes one; None: AdamW, lr 1e-3.
        batch_size: number of rows per step; the last batch may be smaller, but a single row joins the batch before it.
        schedule: makes a learning-rate scheduler, which is stepped after every optimizer step (not every epoch).
        clip: gradients with a larger norm are scaled down to it; None: no clipping.
        keep: which weights are kept: "all", "sqrt", or k for every k-th step, as in
            :class:`~kernelmem.recording.Recorder`.
        resume: resume the run in ``out`` if there is one.

    Raises:
        InputError: the batch size is below 1, or the norm is not positive.
    """

    loss: Loss = "cross_entropy"
    optimizer: torch.optim.Optimizer | MakeOptimizer | None = None
    batch_size: int = 64
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None
    clip: float | None = None
    keep: str | int = "all"
    resume: bool = False

    def __post_init__(self) -> None:
        as_loss(self.loss)
        check_keep(self.keep)
        as_count(self.batch_size, "batch_size")
        as_flag(self.resume, "resume")
        if self.optimizer is not None and not isinstance(self.optimizer, torch.optim.Optimizer):
            check_callable(self.optimizer, "optimizer", ("parameters",), types=True)
        if self.schedule is not None:
            check_callable(self.schedule, "schedule", ("optimizer",), types=True)
        if self.clip is not None:
            as_number(self.clip, "clip", exclusive=True)


DEFAULT_OPTIONS = FitOptions()
MAX_EPOCHS = 10**7


def fit(
    model: nn.Module,
    x: Batch,
    y: ArrayLike,
    *,
    out: str | Path,
    epochs: int,
    seed: int,
    sample_weight: ArrayLike | None = None,
    forward: Forward | None = None,
    options: FitOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Run:
    """Train a model, in place, by minimizing mean_i w_i l_i over shuffled batches, and record the run.

    ::

        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
        run = km.fit(model, x, y, out="runs/a", epochs=20, seed=0)
        ledger = km.ledger(run, model, x_test)

    The same seed, initial weights, versions and thread count give the same bytes: the seed determines the order of the
    rows and what the model draws (dropout); torch's global random state is neither used nor changed (calls in several
    threads run one after the other). The model is left
    in eval mode. ``FitOptions(resume=True)`` resumes an interrupted run in ``out`` from its last kept step, with the same
    resulting bytes; all arguments must be those of the first call (recorded steps are compared), except that ``epochs``
    may be larger.

    Args:
        model: maps a batch to outputs (B, C), on any device.
        x: n rows: tensor, array, Dataset, or dict, tuple or list of tensors; they are copied to the device of the model,
            floating-point rows in its dtype.
        y: (n,) or (n, C) targets of the loss.
        out: directory of the run.
        epochs: number of passes over the rows.
        seed: seed of the batch order and of the model's random numbers, a whole number >= 0.
        sample_weight: (n,) loss weights of the rows; None: ones.
        forward: maps (model, batch) to outputs (B, C); None: ``model(batch)``.
        options: loss, optimizer, batches, schedule, clipping, kept weights, resuming.
        progress: called after every epoch with (epochs done, all epochs).

    Returns:
        Run: the recorded run, with (epochs x number of batches per epoch) steps.

    Raises:
        InputError: the model does not accept the rows, lengths differ, labels are not classes, the scheduler needs a
            metric, the recorder refuses its arguments, or, to resume, the arguments are not those of the run.
            NumericalError: the loss is not finite; the run ends before that step.

    Cost: twice the forward and backward passes of plain training, and the recorder's writing.
    """
    check_model(model)
    check_instance(options, "options", FitOptions)
    epochs, out = as_count(epochs, "epochs", maximum=MAX_EPOCHS), as_path(out, "out")
    if forward is not None:
        check_callable(forward, "forward", ("model", "batch"))
    rows, targets, weights = _check_data(model, x, y, sample_weight)
    seeds = seed_sequence(seed, ["order", "model"])
    reduction = loss_reduction(options.loss) or "mean"
    resume = options.resume and (out / FILE).exists()  # the process may have been killed before it wrote anything
    model.train()
    optimizer = _as_optimizer(options.optimizer, model)
    recorder = Recorder(model, optimizer, out, loss=options.loss, keep=options.keep, forward=forward, resume=resume)
    scheduler = None if options.schedule is None else options.schedule(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            "schedule that makes a ReduceLROnPlateau",
            expected="a scheduler without a metric",
            hint="write the training loop around kernelmem.Recorder",
        )
    report_progress = as_progress(progress, "training", "epoch")

    def epoch_batches() -> Iterator[tuple[Tensor, ...]]:
        return shuffled(rows.n, options.batch_size, epochs=epochs, seed=seeds["order"])

    def batch_weight(index: Tensor) -> Tensor | None:
        return None if weights is None or bool((weights[index] == 1).all()) else weights[index]

    def step_loss(index: Tensor) -> Tensor:
        """Return the weighted mean loss, a scalar tensor, of the rows at the positions ``index``."""
        batch = rows.take(index)  # a copy that a model may overwrite
        try:
            outputs = (forward or call_model)(model, batch)
        except Exception as error:  # raised by the user's module, so of any type
            shapes = [tuple(leaf.shape[1:]) for _, leaf in named_leaves(rows.take(index), "x")]
            raise InputError(
                f"rows of shape {shapes} that the model does not accept ({error})",
                expected="inputs that model(x) accepts",
                hint=input_hint(batch),
            ) from error
        check_outputs(outputs, len(index))
        factor = mean_factor(options.loss, targets[index])
        loss = batch_loss(options.loss, outputs, targets[index], batch_weight(index), reduction=reduction)
        return loss if factor == 1 else loss * factor

    with random_state(None, model_device(model)):  # fits in other threads wait: torch has one generator per process
        torch.manual_seed(seeds["model"])
        with recorder:
            completed_steps = recorder.restore() if resume else 0
            _resume_schedule(
                out,
                completed_steps,
                chain.from_iterable(epoch_batches()),
                optimizer,
                scheduler,
                model,
                (rows, targets),
            )
            train_epochs(
                model,
                optimizer,
                epoch_batches(),
                step_loss,
                step=lambda index: recorder.step(index, rows.take(index), targets[index], batch_weight(index)),
                scheduler=scheduler,
                clip=options.clip,
                completed_steps=completed_steps,
                after_epoch=lambda completed_epochs: report_progress(completed_epochs, epochs),
            )
    model.eval()
    return Run.open(out)


def _check_data(
    model: nn.Module, x: Batch, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Rows, Tensor, Tensor | None]:
    """Return rows x, targets y (n, ...) and loss weights (n,) or None, after checking that all have the same length n.

    All are on the device of the model, floating-point rows and targets in its dtype.
    """
    rows = in_dtype(as_rows(x, "x"), model)
    targets = as_tensor(y, "y")
    weights = None if sample_weight is None else as_tensor(sample_weight, "sample_weight", dtype=torch.float64)
    for name, value in (("y", targets), ("sample_weight", weights)):
        if value is not None and (
            value.ndim == 0 or len(value) != rows.n or (name == "sample_weight" and value.ndim != 1)
        ):
            raise InputError(
                f"{name} of shape {tuple(value.shape)} for {rows.n} rows of x",
                expected="one entry per row",
                hint=f"pass {name} in the order of x",
            )
    weights = None if weights is None else weights.to(model_device(model))
    return rows, in_dtype(Rows(targets, rows.n), model, "y").tree, weights


def _as_optimizer(optimizer: torch.optim.Optimizer | MakeOptimizer | None, model: nn.Module) -> torch.optim.Optimizer:
    """Return a torch optimizer of the model's parameters.

    It is ``optimizer`` itself, its result if it is a function of the parameters, or AdamW with lr 1e-3 if it is None.
    """
    if optimizer is None:
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch_optimizer = optimizer(model.parameters()) if callable(optimizer) else optimizer
    if not isinstance(torch_optimizer, torch.optim.Optimizer):
        raise InputError(
            f"optimizer={optimizer!r}",
            expected="a torch optimizer, or a function that makes one from the parameters",
            hint="pass e.g. optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
        )
    return torch_optimizer


def _resume_schedule(
    directory: Path,
    completed_steps: int,
    batches: Iterator[Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    model: nn.Module,
    data: tuple[Rows, Tensor],
) -> None:
    """Advance the scheduler by ``completed_steps``, while checking the arguments of the call against the recorded run.

    ``batches`` yields the row positions of every batch from step 0 on, ``data`` holds rows and targets. Nothing happens if
    no step was completed.

    Raises:
        InputError: batches, hyper-parameters or data differ from the recorded ones; the message names the difference.
    """
    if completed_steps == 0:
        return
    run = Run.open(directory)
    names = {parameter: name for name, parameter in model.named_parameters()}
    try:
        for t in range(completed_steps):
            step, index = run.steps[t], next(batches, None)
            same_batch = index is not None and torch.equal(step.examples, index)
            if not same_batch or read_groups(optimizer, names) != step.groups:
                difference = "hyper-parameters" if same_batch else "batch"
                raise InputError(
                    f"arguments that give step {t} of the run in {directory} another {difference} than recorded",
                    expected="the arguments of the first call",
                    hint="pass the same data, seed, batch_size, optimizer and schedule, and at least as many epochs",
                )
            if scheduler is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "optimizer not stepped": it was, before the interruption
                    scheduler.step()
        x, y = run.batch(completed_steps - 1)
        rows = run.steps[completed_steps - 1].examples
        recorded_and_passed = (
            [*named_leaves(x, "x"), ("y", y)],
            [*named_leaves(data[0].take(rows), "x"), ("y", data[1][rows])],
        )
        for (name, recorded_value), (_, passed_value) in zip(*recorded_and_passed, strict=True):
            if not torch.equal(recorded_value, passed_value.cpu()):
                raise InputError(
                    f"{name} that differs from the run in {directory}",
                    expected="the recorded data",
                    hint="pass the same data",
                )
    finally:
        run.tape.close()  # before the recorder closes its own: an open reader keeps the log file
