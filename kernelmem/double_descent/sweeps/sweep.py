"""Sweeps of networks along width, depth, samples, steps, noise and ridge, over seeds, with a control; resumable."""

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.atomic_files import check_directory
from kernelmem.core.checks import as_labels, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.jobs import FIGURES, Job, Train, run_jobs
from kernelmem.double_descent.sweeps.result import Curves, Sweep
from kernelmem.double_descent.sweeps.threshold import Threshold
from kernelmem.double_descent.sweeps.training_sets import draw
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.members import Member
from kernelmem.training.ensemble.recipe import Recipe

__all__ = ["Over", "ThresholdWarning", "sweep"]

Over = Literal["width", "depth", "samples", "steps", "noise", "ridge"]
KINDS = {"width": "model", "depth": "depth", "samples": "sample", "steps": "epoch", "noise": "noise", "ridge": "ridge"}
MEMBERS = 32  # of a chunk, about: enough that a batch pays, few enough that little is lost when a run is killed


class ThresholdWarning(UserWarning):
    """The range of a sweep does not contain the interpolation threshold, so it cannot show the peak."""


@dataclass(frozen=True, eq=False)
class SweepCell:
    """One network of a sweep: which line (seed) and column of the curves it fills."""

    control: bool
    line: int
    column: int | None  # None: all columns, one a step
    recipe: Recipe
    member: Member
    clean: Tensor
    noisy_test: Tensor


def sweep(
    data: LabeledData,
    over: Over,
    values: Sequence[float],
    *,
    width: Any = 16,
    n: int | None = None,
    noise: float = 0.2,
    recipe: Recipe | None = None,
    seeds: int = 6,
    seed: int = 0,
    control: int = 4,
    make_model: Callable[[Any], nn.Module] | None = None,
    train: Train | None = None,
    threshold: Threshold | None = None,
    metric: Literal["test_error", "test_loss"] | None = None,
    epsilon: float = 0.1,
    out: str | Path | None = None,
    chunk: int | None = None,
    executor: Executor | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    memory: str = "2GiB",
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Train networks along one axis over several seeds and take their figures at the last step, never at the best one.

    Seeds are paired along the axis: seed s has one order of the training rows (n' < n rows are the first of it), one wrong
    label for every row (exactly round(noise n) rows have theirs), one initial seed and one order of batches. Labels are
    nested in the number of rows, or in the rate where the noise is swept. The control has the same rows and seeds without
    noise.

    Args:
        data: rows and clean labels; training rows are drawn from its training set, figures are taken on its test set.
        over: "width" (model-wise), "depth" (hidden layers), "samples", "steps" (epoch-wise: one network a seed), "noise" or
            "ridge" (the recipe's weight decay).
        values: increasing values of it.
        width: hidden width, or what ``make_model`` takes, where it is not swept.
        n: training rows, where they are not swept; default all.
        noise: share of wrong labels, where it is not swept.
        recipe: optimizer, schedule, batches, loss, steps; over "steps" its steps are the last value.
        seeds: S, number of curves.
        seed: of all draws.
        control: seeds of the control; 0 for none, and none where the noise is swept.
        make_model: width -> module giving (n, C), for networks of one's own; called with torch seeded. Default: MLPs.
        train: train(model, x, y, seed) -> None, one's own training of them, with torch seeded; not over "steps" and "ridge".
        threshold: as found before the sweep; goes into the result, and warns if it lies outside of ``values``.
        metric: whose peak the summary reports; default test error, over "samples" test loss.
        epsilon: training error below which labels count as fitted.
        out: directory whose ``chunks`` keep what is done; the same call again goes on from there and gives the same result. A
            ``make_model`` or ``train`` that was changed under its old name is not noticed.
        chunk: networks of a chunk, about 32 by default; a chunk trains in one batch and is kept whole.
        executor: any PEP 3148 executor, each chunk a task (processes: ``make_model`` and ``train`` importable).
        dtype: float32 or float64, of the training.
        device: where it takes place.
        memory: what a batch of networks may take, see :func:`kernelmem.training.ensemble.train.train_mlps`.
        progress: called with (networks done, of how many).

    Raises:
        InputError: values not increasing or outside of their range, ``train`` without ``make_model`` or over steps or ridges.

    Source: Belkin et al. 2019; Nakkiran et al. 2019.
    """
    started = time.perf_counter()
    axis = _axis(over, values, data, make_model, train)
    if out is not None:
        check_directory(out)
    recipe = recipe or Recipe()
    if over == "steps":
        recipe = replace(recipe, steps=int(axis[-1]))
    x, x_test = as_tensor(data.x_train, "x_train"), as_tensor(data.x_test, "x_test")
    y, y_test = as_labels(data.y_train, "y_train", n=len(x)), as_labels(data.y_test, "y_test", n=len(x_test))
    settings = {"width": width, "samples": len(x) if n is None else n, "noise": noise}
    rounds = [(False, s) for s in range(seeds)]
    rounds += [(True, s) for s in range(0 if over == "noise" else min(control, seeds))]
    cells = [
        cell
        for clean, s in rounds
        for cell in _cells(over, axis, settings, recipe, y, y_test, clean=clean, line=s, seed=seed)
    ]
    steps = tuple(int(own) for own in axis) if over == "steps" else (recipe.steps,)
    common: dict[str, Any] = {
        "x": x, "x_test": x_test, "y_test": y_test, "evaluate_at": steps, "n_classes": data.n_classes,
        "dtype": str(dtype).removeprefix("torch."), "device": device, "memory": memory, "make_model": make_model,
        "train": train,
    }  # fmt: skip
    per_seed = 1 if over == "steps" else len(axis)
    parts = _chunks(cells, chunk or max(1, MEMBERS // per_seed) * per_seed)
    jobs = [
        Job(
            members=tuple(own.member for own in part),
            clean=tuple(own.clean for own in part),
            noisy_tests=tuple(own.noisy_test for own in part),
            recipe=part[0].recipe,
            **common,
        )
        for part in parts
    ]
    found = run_jobs(jobs, None if out is None else Path(out), executor, progress)
    curves, clean_curves = (_curves(parts, found, len(axis), control=own) for own in (False, True))
    assert curves is not None
    config = {
        "over": over, "width": width if isinstance(width, int) else str(width), "n": settings["samples"], "noise": noise,
        "recipe": asdict(recipe), "seed": seed, "data": data.name, "test_rows": len(x_test), "dtype": common["dtype"],
        "device": device or "cpu", "torch": torch.__version__,
    }  # fmt: skip
    if threshold is not None and not (threshold.found and axis[0] <= threshold.value <= axis[-1]):
        warnings.warn(
            f"the interpolation threshold lies outside of {over} {axis[0]:g}..{axis[-1]:g}: no peak is to be seen there",
            ThresholdWarning,
            stacklevel=2,
        )
    return Sweep(
        kind=KINDS[over],
        axis=axis,
        curves=curves,
        control=clean_curves,
        threshold=threshold,
        metric=metric or ("test_loss" if over == "samples" else "test_error"),
        epsilon=epsilon,
        seconds=time.perf_counter() - started,
        config=config,
    )


def _cells(
    over: Over,
    axis: Sequence[float],
    settings: dict[str, Any],
    recipe: Recipe,
    y: Tensor,
    y_test: Tensor,
    *,
    clean: bool,
    line: int,
    seed: int,
) -> list[SweepCell]:
    """The networks of one seed along the axis."""
    own_seed = seed_sequence(seed, [str(s) for s in range(line + 1)])[str(line)]
    drawn = draw(y, own_seed, nested="rates" if over == "noise" else "samples")
    test = draw(y_test, drawn.order_seed, nested="rates" if over == "noise" else "samples")
    cells = []
    for column, value in enumerate([None] if over == "steps" else axis):
        now = settings if value is None else settings | {over: value}
        rate = 0.0 if clean else float(now["noise"])
        rows, test_rows = drawn.rows(int(now["samples"]), rate), test.rows(len(y_test), rate)
        noisy_test = torch.empty_like(y_test)
        noisy_test[test_rows.at] = test_rows.labels
        width = int(now["width"]) if isinstance(now["width"], float) else now["width"]
        own = replace(recipe, weight_decay=float(now["ridge"])) if over == "ridge" else recipe
        own = replace(own, depth=int(now["depth"])) if over == "depth" else own
        member = Member(width, rows.at, rows.labels, drawn.init_seed, drawn.order_seed)
        where = None if value is None else column
        cells.append(SweepCell(clean, line, where, own, member, rows.clean, noisy_test))
    return cells


def _chunks(cells: list[SweepCell], size: int) -> list[list[SweepCell]]:
    """Cells of one recipe, ``size`` at a time, in order."""
    by_recipe: dict[Recipe, list[SweepCell]] = {}
    for cell in cells:
        by_recipe.setdefault(cell.recipe, []).append(cell)
    return [own[k : k + size] for own in by_recipe.values() for k in range(0, len(own), size)]


def _curves(parts: list[list[SweepCell]], found: list[dict[str, Tensor]], A: int, *, control: bool) -> Curves | None:
    S = 1 + max((cell.line for part in parts for cell in part if cell.control is control), default=-1)
    if not S:
        return None
    arrays = {name: torch.full((S, A), torch.nan, dtype=torch.float64) for name in FIGURES}
    for part, figures in zip(parts, found, strict=True):
        for k, cell in enumerate(part):
            if cell.control is control:
                for name, array in arrays.items():
                    where = slice(None) if cell.column is None else cell.column
                    array[cell.line, where] = figures[name][k] if cell.column is None else figures[name][k, 0]
    return Curves(**arrays)


def _axis(over: str, values: Sequence[float], data: LabeledData, make_model: Any, train: Any) -> tuple[float, ...]:
    if over not in KINDS:
        raise InputError(f"over={over!r}", expected=f"one of {', '.join(KINDS)}", hint="pass one of these")
    axis = tuple(float(own) for own in as_tensor(list(values), over, dtype=torch.float64))
    most = {"samples": len(data.x_train), "noise": 1}.get(over, float("inf"))
    least = 0 if over in ("noise", "ridge", "steps") else 1
    whole = over not in ("noise", "ridge")
    rising = all(a < b for a, b in pairwise(axis))
    if not axis or not rising or axis[0] < least or axis[-1] > most or (whole and any(own % 1 for own in axis)):
        raise InputError(
            f"values {list(values)!r} of {over}",
            expected=f"increasing {'whole ' if whole else ''}numbers from {least} to {most}",
            hint="sort them; a larger training set allows more samples",
        )
    if train is not None and (make_model is None or over in ("steps", "ridge", "depth")):
        raise InputError(
            f"train= {'over ' + over if make_model is not None else 'without make_model='}",
            expected="make_model= beside it; width, samples or noise to sweep",
            hint="pass both; steps, depth and ridges are swept with a Recipe",
        )
    if over == "depth" and make_model is not None:
        raise InputError(
            "make_model= over depth", expected="MLPs", hint='sweep over="width": make_model takes any number'
        )
    return axis
