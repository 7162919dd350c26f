"""Sweeps of networks over width, depth, samples, steps, noise or ridge, with several seeds and a control; resumable."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, as_seed, check_choice, check_instance, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import check_directory
from kernelmem.core.options import Progress, as_progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.sweeps.jobs import METRICS, Job, run_jobs
from kernelmem.double_descent.sweeps.options import EXECUTION, MAX_SEEDS, OPTIONS, Execution, SweepOptions
from kernelmem.double_descent.sweeps.result import Curves, Sweep
from kernelmem.double_descent.sweeps.training_sets import as_pool_data, draw_for_seed
from kernelmem.training.datasets import LabeledData, LabeledDataLike, as_labeled_data
from kernelmem.training.ensemble.members import Member
from kernelmem.training.ensemble.recipe import Recipe

Over = Literal["width", "depth", "samples", "steps", "noise", "ridge"]
KINDS = {"width": "model", "depth": "depth", "samples": "sample", "steps": "epoch", "noise": "noise", "ridge": "ridge"}
# Approximate: large enough for efficient batches, small enough that an interrupted run loses little.
NETWORKS_PER_CHUNK = 32


class ThresholdWarning(UserWarning):
    """The swept values do not contain the interpolation threshold, so the sweep cannot show the peak."""


@dataclass(frozen=True, eq=False)
class SweepCell:
    """One network of a sweep, and the row and column of the curves that its metrics fill.

    Attributes:
        is_control: True for the control without label noise.
        row: index of the seed.
        column: index of the swept value; None: the network fills all columns, one per evaluated step.
        recipe: optimizer, schedule, loss and number of steps.
        member: width, training examples, labels and seeds of the network.
        true_labels: (n,) true labels of its training examples.
        noisy_test_labels: (m,) labels of the test examples with the same noise rate.
    """

    is_control: bool
    row: int
    column: int | None
    recipe: Recipe
    member: Member
    true_labels: Tensor
    noisy_test_labels: Tensor


def sweep(
    data: LabeledDataLike,
    over: Over,
    values: Sequence[float],
    *,
    noise: float = 0.2,
    n_seeds: int = 6,
    seed: int = 0,
    recipe: Recipe | None = None,
    options: SweepOptions = OPTIONS,
    execution: Execution = EXECUTION,
    progress: Progress = None,
) -> Sweep:
    """Train networks along one axis with several seeds and evaluate them at the last step (never at the best one).

    Seeds are paired along the axis: seed s has one order of the training examples (n' < n examples are its first n'), one
    wrong label for every example (exactly round(noise · n) examples have theirs), one initialization and one batch order.
    Noisy labels are nested in the number of examples, or in the rate if the noise is swept. The control has the same
    examples and seeds without label noise.

    Args:
        data: examples and clean labels, as LabeledData or ((x_train, y_train), (x_test, y_test)); training examples are
            drawn from its training set, and networks are evaluated on its test set.
        over: "width" (model-wise), "depth" (hidden layers), "samples" (sample-wise), "steps" (epoch-wise: one network per
            seed), "noise" or "ridge" (the recipe's weight decay).
        values: (A,) increasing values of the swept quantity.
        noise: fraction of wrong labels; ignored if the noise is swept.
        n_seeds: S, number of curves.
        seed: seed of all random draws; the same seed, versions and thread count give equal results.
        recipe: optimizer, schedule, batch size, loss and number of steps; if the steps are swept, the last value is used.
        options: networks, training set, threshold and metric, see :class:`SweepOptions`.
        execution: output directory, executor, dtype, device and memory, see :class:`Execution`.
        progress: called with (networks done, networks in total); True or False for a bar or none.

    Raises:
        InputError: the values do not increase or are out of range, or ``train`` is given without ``make_model`` or for a
            sweep over steps, depth or ridge.

    Cost: A · S networks (S over "steps"), plus the control.

    Source: Belkin et al. 2019; Nakkiran et al. 2019.
    """
    start_time = time.perf_counter()
    data = as_labeled_data(data)
    recipe = _check_arguments(data, recipe, options, execution)
    noise, seed = as_number(noise, "noise", maximum=1.0), as_seed(seed)
    axis = _check_axis(over, values, data, options)
    if execution.out is not None:
        check_directory(execution.out)
    if over == "steps":
        recipe = replace(recipe, steps=int(axis[-1]))
    n_seeds, n_control = as_count(n_seeds, "n_seeds", maximum=MAX_SEEDS), options.control
    pool = as_pool_data(data)
    settings = {"width": options.width, "samples": len(pool.x) if options.n is None else options.n, "noise": noise}
    cells = [
        cell
        for is_control, rows in ((False, n_seeds), (True, 0 if over == "noise" else min(n_control, n_seeds)))
        for row in range(rows)
        for cell in _cells_of_seed(
            over, axis, settings, recipe, pool.y, pool.y_test, is_control=is_control, row=row, seed=seed
        )
    ]
    cells_per_seed = 1 if over == "steps" else len(axis)
    chunks = _group_into_chunks(cells, execution.chunk or max(1, NETWORKS_PER_CHUNK // cells_per_seed) * cells_per_seed)
    jobs = [
        Job(
            members=tuple(cell.member for cell in chunk),
            true_labels=tuple(cell.true_labels for cell in chunk),
            noisy_test_labels=tuple(cell.noisy_test_labels for cell in chunk),
            x=pool.x,
            x_test=pool.x_test,
            y_test=pool.y_test,
            recipe=chunk[0].recipe,
            evaluate_at=tuple(int(step) for step in axis) if over == "steps" else (recipe.steps,),
            n_classes=data.n_classes,
            dtype=str(execution.dtype).removeprefix("torch."),
            device=execution.device,
            memory=execution.memory,
            make_model=options.make_model,
            train=options.train,
        )
        for chunk in chunks
    ]
    directory = None if execution.out is None else Path(execution.out)
    results = run_jobs(jobs, directory, execution, as_progress(progress, f"sweep over {over}", "network"))
    curves, control_curves = (
        _collect_curves(chunks, results, len(axis), is_control=is_control) for is_control in (False, True)
    )
    assert curves is not None
    threshold = options.threshold
    if threshold is not None and not (threshold.found and axis[0] <= threshold.value <= axis[-1]):
        warnings.warn(
            f"the interpolation threshold lies outside of {over} {axis[0]:g}..{axis[-1]:g}:"
            " the sweep cannot show the interpolation peak",
            ThresholdWarning,
            stacklevel=2,
        )
    config = {
        "over": over, "width": options.width if isinstance(options.width, int) else str(options.width),
        "n": settings["samples"], "noise": noise, "recipe": asdict(recipe), "seed": seed, "data": data.name,
        "test_rows": len(pool.x_test), "dtype": str(execution.dtype).removeprefix("torch."),
        "device": execution.device or "cpu", "torch": torch.__version__,
    }  # fmt: skip
    return Sweep(
        kind=KINDS[over],
        axis=axis,
        curves=curves,
        control=control_curves,
        threshold=threshold,
        metric=options.metric or ("test_loss" if over == "samples" else "test_error"),
        epsilon=options.epsilon,
        seconds=time.perf_counter() - start_time,
        config=config,
    )


def _cells_of_seed(
    over: Over,
    axis: Sequence[float],
    settings: dict[str, Any],
    recipe: Recipe,
    y: Tensor,
    y_test: Tensor,
    *,
    is_control: bool,
    row: int,
    seed: int,
) -> list[SweepCell]:
    """Return the networks of one seed, one for each value of ``axis`` (a single one if the steps are swept).

    ``over`` names the swept quantity and ``settings`` has the values of the others. ``y`` and ``y_test`` are the clean
    labels of pool and test set. ``row`` is the index of the seed among the seeds derived from ``seed``.
    """
    row_seed = seed_sequence(seed, [str(s) for s in range(row + 1)])[str(row)]
    nested: Literal["samples", "rates"] = "rates" if over == "noise" else "samples"
    seed_draw = draw_for_seed(y, row_seed, nested=nested)
    test_draw = draw_for_seed(y_test, seed_draw.order_seed, nested=nested)
    cells = []
    for column, value in enumerate([None] if over == "steps" else axis):
        cell_settings = settings if value is None else settings | {over: value}
        noise_rate = 0.0 if is_control else float(cell_settings["noise"])
        training_set = seed_draw.training_set(int(cell_settings["samples"]), noise_rate)
        noisy_test_labels = test_draw.noisy_labels(noise_rate)
        width = int(cell_settings["width"]) if isinstance(cell_settings["width"], float) else cell_settings["width"]
        cell_recipe = replace(recipe, weight_decay=float(cell_settings["ridge"])) if over == "ridge" else recipe
        cell_recipe = replace(cell_recipe, depth=int(cell_settings["depth"])) if over == "depth" else cell_recipe
        member = Member(width, training_set.indices, training_set.labels, seed_draw.init_seed, seed_draw.order_seed)
        curve_column = None if value is None else column
        cells.append(
            SweepCell(is_control, row, curve_column, cell_recipe, member, training_set.true_labels, noisy_test_labels)
        )
    return cells


def _group_into_chunks(cells: list[SweepCell], size: int) -> list[list[SweepCell]]:
    """Return lists of at most ``size`` networks with equal recipes; each list has the order of ``cells``."""
    by_recipe: dict[Recipe, list[SweepCell]] = {}
    for cell in cells:
        by_recipe.setdefault(cell.recipe, []).append(cell)
    return [group[k : k + size] for group in by_recipe.values() for k in range(0, len(group), size)]


def _collect_curves(
    chunks: list[list[SweepCell]], results: list[dict[str, Tensor]], n_values: int, *, is_control: bool
) -> Curves | None:
    """Arrange the metrics of all networks as curves, (seeds, ``n_values``) for each metric; values not computed are NaN.

    ``results`` has one dictionary of (networks, evaluated steps) tensors per chunk. Only networks whose ``is_control`` is
    equal to the argument are used; None is returned if there are none.
    """
    n_rows = 1 + max((cell.row for chunk in chunks for cell in chunk if cell.is_control is is_control), default=-1)
    if not n_rows:
        return None
    curves = {name: torch.full((n_rows, n_values), torch.nan, dtype=torch.float64) for name in METRICS}
    for chunk, metrics in zip(chunks, results, strict=True):
        for k, cell in enumerate(chunk):
            if cell.is_control is is_control:
                for name, curve in curves.items():  # metrics are (networks, evaluated steps)
                    if cell.column is None:
                        curve[cell.row] = metrics[name][k]
                    else:
                        curve[cell.row, cell.column] = metrics[name][k, 0]
    return Curves(**curves)


def _check_arguments(data: object, recipe: Recipe | None, options: object, execution: object) -> Recipe:
    """Check the types of the arguments that sweeps share, and return the recipe; None: the default one."""
    check_instance(options, "options", SweepOptions)
    check_instance(execution, "execution", Execution)
    recipe = Recipe() if recipe is None else recipe
    check_instance(recipe, "recipe", Recipe)
    return recipe


def _check_axis(over: str, values: Sequence[float], data: LabeledData, options: SweepOptions) -> tuple[float, ...]:
    """Validate the name ``over`` and the values of the swept quantity, and return the values.

    Raises:
        InputError: a value is out of range, the values do not increase, or the options do not allow this sweep.
    """
    check_choice(over, "over", tuple(KINDS))
    axis = as_axis(
        values,
        over,
        integer=over not in ("noise", "ridge"),
        minimum=0 if over in ("noise", "ridge", "steps") else 1,
        maximum={"samples": len(data.x_train), "noise": 1}.get(over, float("inf")),
        exclusive=False,
    )
    if options.train is not None and (options.make_model is None or over in ("steps", "ridge", "depth")):
        raise InputError(
            "train= without make_model=" if options.make_model is None else f"train= for a sweep over {over}",
            expected="train= together with make_model=, over width, samples or noise",
            hint="pass both; steps, depth and ridge are swept with a Recipe",
        )
    if over == "depth" and options.make_model is not None:
        raise InputError(
            "make_model= for a sweep over depth",
            expected="no make_model: the depth of MLPs is swept",
            hint='sweep over="width": make_model may read the value as a depth',
        )
    return tuple(axis.tolist())
