"""Search for the interpolation threshold (effective model complexity) by bisection, before a sweep is run."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kernelmem.core.checks import as_count, as_list, as_number, check_callable, check_choice, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.sweeps.options import EXECUTION, MAX_SEEDS, OPTIONS, Execution, SweepOptions
from kernelmem.double_descent.sweeps.sweep import ThresholdWarning, sweep
from kernelmem.double_descent.sweeps.threshold import Threshold, crossing
from kernelmem.training.datasets import LabeledDataLike, as_labeled_data
from kernelmem.training.ensemble.recipe import Recipe


@dataclass(frozen=True)
class SearchOptions:
    """Seeds and budget of a threshold search.

    Attributes:
        n_seeds: number of networks trained at each evaluated value; reduced (to at least 2) if the budget is too small.
        sweep_seeds: number of seeds of the sweep that will follow, including its control; None: ``n_seeds``.
        budget: largest cost of the search as a fraction of the cost of the sweep; a network costs width · examples.

    Raises:
        InputError: fewer than two seeds, or a budget that is not positive.
    """

    n_seeds: int = 5
    sweep_seeds: int | None = None
    budget: float = 0.25

    def __post_init__(self) -> None:
        as_count(self.n_seeds, "n_seeds", minimum=2, maximum=MAX_SEEDS)
        if self.sweep_seeds is not None:
            as_count(self.sweep_seeds, "sweep_seeds", maximum=MAX_SEEDS)
        as_number(self.budget, "budget", exclusive=True)


def bisect(
    errors: Callable[[int], Sequence[float]],
    values: Sequence[float],
    *,
    epsilon: float = 0.1,
    direction: Literal["falling", "rising"] = "falling",
) -> Threshold:
    """Find the neighboring grid values between which the mean training error crosses ``epsilon``.

    The mean over seeds is assumed to be monotone. The value is the linear interpolation between the two neighbors; the
    interval is that of :func:`kernelmem.double_descent.crossing` over all evaluated points.

    Args:
        errors: function from an index into ``values`` to the training errors of all seeds at this value, for the same seeds
            in every call.
        values: (A,) increasing values of the grid.
        epsilon: training error at the threshold.
        direction: "falling" or "rising", how the error changes along the axis.

    Raises:
        InputError: ``values`` do not increase, or epsilon is outside of (0, 1).

    Cost: ⌈log2(A + 1)⌉ evaluations.
    """
    check_callable(errors, "errors", ("index",))
    check_choice(direction, "direction", ("falling", "rising"))
    values = as_axis(values, "values", minimum=-math.inf).tolist()
    epsilon = as_number(epsilon, "epsilon", maximum=1.0, exclusive=True)
    evaluated: dict[int, list[float]] = {}
    low, high = -1, len(values)  # falling: not fitted up to index low, fitted from index high on
    while high - low > 1:
        middle = (low + high) // 2
        evaluated[middle] = [
            as_number(error, "error", minimum=-math.inf) for error in as_list(errors(middle), "errors")
        ]
        if len(evaluated[middle]) != len(next(iter(evaluated.values()))) or not evaluated[middle]:
            raise InputError(
                f"{len(evaluated[middle])} errors at index {middle}",
                expected="one error for each seed, the same number in every call",
                hint="use the same seeds for all values",
            )
        fitted = sum(evaluated[middle]) / len(evaluated[middle]) <= epsilon
        if fitted is (direction == "falling"):
            high = middle
        else:
            low = middle
    indices = sorted(evaluated)
    error_table = torch.tensor([evaluated[k] for k in indices], dtype=torch.float64).T.numpy()
    return crossing([values[k] for k in indices], error_table, epsilon=epsilon, direction=direction)


def find_threshold(
    data: LabeledDataLike,
    over: Literal["width", "samples"],
    values: Sequence[float],
    *,
    noise: float = 0.2,
    seed: int = 0,
    recipe: Recipe | None = None,
    search: SearchOptions = SearchOptions(),
    options: SweepOptions = OPTIONS,
    execution: Execution = EXECUTION,
    progress: Progress = None,
) -> Threshold:
    """Find the interpolation threshold among the values of a sweep by bisection, before the sweep is run.

    Over "width": the smallest width whose mean training error on n examples is at most epsilon. Over "samples": the
    effective model complexity of the width, EMC = max{n : mean training error <= epsilon} (Nakkiran et al. 2019). The
    networks are those that :func:`kernelmem.double_descent.sweep` trains with the same arguments.

    Args:
        data: examples and clean labels, as LabeledData or ((x_train, y_train), (x_test, y_test)), as for the sweep.
        over: swept quantity, "width" or "samples".
        values: (A,) increasing values of the sweep.
        noise: fraction of wrong labels, as for the sweep.
        seed: seed of all random draws, as for the sweep.
        recipe: optimizer, schedule, batch size, loss and number of steps, as for the sweep.
        search: seeds and budget of the search.
        options: as for the sweep; ``control``, ``threshold`` and ``metric`` are ignored.
        execution: output directory, executor, dtype, device and memory, as for the sweep.
        progress: called with (number of values evaluated, largest number of values to evaluate).

    Returns:
        Threshold, with ``cost`` as a fraction of the cost of the sweep. A ThresholdWarning is raised if it lies outside of
        ``values``.

    Raises:
        InputError: the budget is too small for two seeds, or an argument is invalid for the sweep.
    """
    data = as_labeled_data(data)
    check_instance(options, "options", SweepOptions)
    check_instance(search, "search", SearchOptions)
    check_choice(over, "over", ("width", "samples"))
    n_seeds, budget = search.n_seeds, search.budget
    grid = as_axis(values, "values").tolist()
    n = len(data.x_train) if options.n is None else options.n
    costs = [(value if over == "width" else 1.0) * (value if over == "samples" else n) for value in grid]
    max_evaluations = len(grid).bit_length()
    sweep_cost = sum(costs) * (search.sweep_seeds or n_seeds)
    worst_cost = _worst_cost(costs)
    affordable_seeds = min(n_seeds, int(budget * sweep_cost / worst_cost)) if worst_cost else n_seeds
    if affordable_seeds < 2:
        raise InputError(
            f"budget={budget:g} of a sweep of {len(grid)} values and {search.sweep_seeds or n_seeds} seeds",
            expected=f"at least {2 * worst_cost / sweep_cost:.2g}: two seeds at up to {max_evaluations} values",
            hint="raise the budget, or sweep more values or seeds",
        )
    evaluated_indices: list[int] = []
    report = as_progress(progress, "threshold search", "value")
    single_value_options = replace(options, control=0, threshold=None)

    def errors(index: int) -> list[float]:
        evaluated_indices.append(index)
        result = sweep(
            data, over, [grid[index]], noise=noise, n_seeds=affordable_seeds, seed=seed, recipe=recipe,
            options=single_value_options, execution=execution, progress=False,
        )  # fmt: skip
        report(len(evaluated_indices), max_evaluations)
        return result.curves.train_error[:, 0].tolist()

    direction: Literal["falling", "rising"] = "falling" if over == "width" else "rising"
    threshold = bisect(errors, grid, epsilon=options.epsilon, direction=direction)
    if len(evaluated_indices) < max_evaluations:
        report(max_evaluations, max_evaluations)  # completes a progress bar
    if not threshold.found:
        location = "below the smallest" if threshold.outside == "below" else "above the largest"
        warnings.warn(
            f"the interpolation threshold lies {location} {over} of {grid[0]:g}..{grid[-1]:g}:"
            " the sweep will not show the interpolation peak",
            ThresholdWarning,
            stacklevel=2,
        )
    return replace(threshold, cost=affordable_seeds * sum(costs[k] for k in evaluated_indices) / sweep_cost)


def _worst_cost(costs: Sequence[float]) -> float:
    """Return the largest total cost of the evaluations in a bisection over A grid values, for one seed.

    ``costs`` (A,) are the costs of training one network at each value.
    """

    def worst_between(low: int, high: int) -> float:
        if high - low <= 1:
            return 0.0
        middle = (low + high) // 2
        return costs[middle] + max(worst_between(low, middle), worst_between(middle, high))

    return worst_between(-1, len(costs))
