"""Train and record in one call: a plain loop over shuffled batches, on top of the recorder."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kernelmem.core.batches import Rows, as_rows, named_leaves
from kernelmem.core.checks import as_tensor, seed_sequence
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.recording.gradient_check import Forward, call
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.recording.storage.param_groups import read_groups
from kernelmem.recording.storage.tape import FILE
from kernelmem.training.batching import batch_sizes, in_dtype, shuffled
from kernelmem.training.losses import Loss, batch_loss

__all__ = ["fit"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def fit(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    out: str | Path,
    optimizer: torch.optim.Optimizer | MakeOptimizer | None = None,
    loss: Loss = "cross_entropy",
    epochs: int,
    batch_size: int = 64,
    seed: int,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    clip: float | None = None,
    weight: Any = None,
    keep: str | int = "all",
    forward: Forward | None = None,
    resume: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Run:
    """Train a model, in place, by minimizing mean_i w_i l_i over shuffled batches, and record the run.

    ::

        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
        run = km.fit(model, x, y, out="runs/a", epochs=20, seed=0)
        ledger = km.ledger(run, model, x=x_test)

    The same seed, initial weights, versions and thread count give the same bytes: the seed determines the order of the
    rows and what the model draws (dropout); torch's global random state is neither used nor changed. The model is left
    in eval mode. ``resume=True`` goes on with the run in ``out`` after a kill, from its last kept step, to the same bytes;
    all arguments have to be those of the first call (the steps on the tape are compared), but ``epochs`` may be larger.

    Args:
        model: maps a batch to outputs (B, C), on the CPU.
        x: n rows: tensor, array, Dataset, or dict, tuple or list of tensors; floating-point rows are brought to the dtype
            of the model.
        y: (n,) or (n, C) targets as the loss takes them.
        out: directory of the run.
        optimizer: made on ``model.parameters()``, or a function that makes it; None: AdamW with learning rate 1e-3.
        loss: as in :class:`~kernelmem.recording.recorder.Recorder`.
        epochs: passes over the rows.
        batch_size: rows a step; the last batch may be smaller, but a single row joins the batch before it.
        seed: of everything random, a whole number >= 0.
        schedule: makes a learning-rate scheduler, which is stepped after every step (not every epoch).
        clip: the largest norm of the gradient.
        weight: (n,) loss weights; None: ones.
        keep: which weights are kept, as in the recorder: "all", "sqrt", or k for every k-th step.
        forward: maps (model, batch) to outputs (B, C); None: ``model(batch)``.
        resume: go on with the run in ``out`` if there is one.
        progress: called after every epoch with (epochs done, epochs in all, message).

    Returns:
        Run: of epochs times the number of batches steps.

    Raises:
        InputError: what the recorder refuses, rows that the model does not take, lengths that differ, labels that are no
            class, a scheduler that needs a metric; to resume, a run of other arguments.
            NumericalError: the loss is not finite; the run ends before that step.

    Cost: twice the forward and backward passes of plain training, and the recorder's writing.
    """
    _check_options(epochs, batch_size, clip)
    rows, targets, weights = _checked(model, x, y, weight)
    seeds = seed_sequence(seed, ["order", "model"])
    resume = resume and (Path(out) / FILE).exists()  # a process may be killed before it wrote anything
    model.train()
    optimizer = _made(optimizer, model)
    recorder = Recorder(model, optimizer, out, loss=loss, keep=keep, forward=forward, resume=resume)
    scheduler = None if schedule is None else schedule(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError("a ReduceLROnPlateau", expected="a scheduler of steps", hint="write the loop around Recorder")
    steps = len(batch_sizes(rows.n, batch_size))

    def order() -> Iterator[Tensor]:
        return chain.from_iterable(shuffled(rows.n, batch_size, epochs=epochs, seed=seeds["order"]))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds["model"])
        with recorder:
            done = recorder.restore() if resume else 0
            _repeat(Path(out), done, order(), optimizer, scheduler, model, (rows, targets))
            total = seen = 0.0
            for t, index in islice(enumerate(order()), done, None):
                batch, y_batch = rows.take(index), targets[index]
                w_batch = None if weights is None or bool((weights[index] == 1).all()) else weights[index]
                optimizer.zero_grad()
                try:
                    outputs = (forward or call)(model, rows.take(index))  # its own copy: a model may write over it
                except Exception as error:  # raised from inside the user's module, of many types
                    shapes = [tuple(leaf.shape[1:]) for _, leaf in named_leaves(batch, "x")]
                    raise InputError(
                        f"rows of shape {shapes} that the model does not take ({error})",
                        expected="inputs that model(x) accepts",
                        hint="check the shape and dtype of x, or pass forward=",
                    ) from error
                value = batch_loss(loss, outputs, y_batch, w_batch, reduction="mean")
                value.backward()
                _check_finite(float(value.detach()), t, steps)
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                recorder.step(index, batch, y_batch, w_batch)
                if scheduler is not None:
                    scheduler.step()
                total, seen = total + float(value.detach()) * len(index), seen + len(index)
                if progress is not None and (t + 1) % steps == 0:
                    progress((t + 1) // steps, epochs, f"loss {total / seen:.4f}")
                    total = seen = 0.0
    model.eval()
    return Run.open(out)


def _check_options(epochs: int, batch_size: int, clip: float | None) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}", expected="a whole number >= 1", hint=f"pass {name}=1 or more")
    if clip is not None and not 0 < clip < math.inf:
        raise InputError(f"clip={clip!r}", expected="a norm > 0", hint="leave it out for no clipping")


def _checked(model: nn.Module, x: Any, y: Any, weight: Any) -> tuple[Rows, Tensor, Tensor | None]:
    rows = in_dtype(as_rows(x, "x"), model)
    targets = as_tensor(y, "y")
    weights = None if weight is None else as_tensor(weight, "weight", dtype=torch.float64)
    for name, value in (("y", targets), ("weight", weights)):
        if value is not None and (value.ndim == 0 or len(value) != rows.n or (name == "weight" and value.ndim != 1)):
            raise InputError(
                f"{name} of shape {tuple(value.shape)} for {rows.n} rows of x",
                expected="one entry for each row",
                hint=f"give {name} in the order of x",
            )
    return rows, in_dtype(Rows(targets, rows.n), model, "y").tree, weights


def _made(optimizer: torch.optim.Optimizer | MakeOptimizer | None, model: nn.Module) -> torch.optim.Optimizer:
    if optimizer is None:
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    made = optimizer(model.parameters()) if callable(optimizer) else optimizer
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            f"optimizer={optimizer!r}",
            expected="a torch optimizer, or a function that makes one of the parameters",
            hint="e.g. optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
        )
    return made


def _check_finite(value: float, t: int, steps: int) -> None:
    if not math.isfinite(value):
        raise NumericalError(
            f"a loss of {value} in step {t}, epoch {t // steps + 1}",
            expected="a finite loss",
            hint="lower the learning rate, clip the gradient, or scale the inputs",
        )


def _repeat(
    out: Path,
    done: int,
    order: Iterator[Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    model: nn.Module,
    data: tuple[Rows, Tensor],
) -> None:
    """Bring the schedule where it was after ``done`` steps, and compare what is on the tape with what would be there."""
    if done == 0:
        return
    run = Run.open(out)
    names = {parameter: name for name, parameter in model.named_parameters()}
    try:
        for t in range(done):
            step, index = run.steps[t], next(order, None)
            same = index is not None and torch.equal(step.examples, index)
            if not same or read_groups(optimizer, names) != step.groups:
                what = "hyper-parameters" if same else "batch"
                raise InputError(
                    f"arguments that give step {t} of the run in {out} another {what}",
                    expected="those that the run was begun with",
                    hint="pass the same data, seed, batch_size, optimizer and schedule, and at least as many epochs",
                )
            if scheduler is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that the optimizer was not stepped: it was, before the kill
                    scheduler.step()
        x, y = run.batch(done - 1)
        rows = run.steps[done - 1].examples
        parts = [*named_leaves(x, "x"), ("y", y)], [*named_leaves(data[0].take(rows), "x"), ("y", data[1][rows])]
        for (name, stored), (_, given) in zip(*parts, strict=True):
            if not torch.equal(stored, given):
                raise InputError(
                    f"{name} that differs from the run in {out}", expected="its data", hint="pass the same data"
                )
    finally:
        run.tape.close()  # before the recorder closes its own: a reader keeps the log open
