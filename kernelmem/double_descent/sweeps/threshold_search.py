"""Search for the interpolation threshold (effective model complexity) by bisection, before a sweep is run."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kernelmem.core.checks import as_count, as_number
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.double_descent.sweeps.options import EXECUTION, OPTIONS, Execution, SweepOptions
from kernelmem.double_descent.sweeps.sweep import ThresholdWarning, sweep
from kernelmem.double_descent.sweeps.threshold import Threshold, crossing
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.recipe import Recipe


@dataclass(frozen=True)
class SearchOptions:
    """Seeds and budget of a threshold search.

    Attributes:
        n_seeds: networks trained at each value tried; fewer (at least 2) if the budget does not allow them.
        sweep_seeds: seeds of the sweep that will follow, noisy ones and control together; None: ``n_seeds``.
        budget: largest cost, as a fraction of that sweep's cost; the cost of a network is width · examples.
    """

    n_seeds: int = 5
    sweep_seeds: int | None = None
    budget: float = 0.25


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
        errors: index into ``values`` -> training error of every seed there, with the same seeds each time.
        values: (A,) increasing.
        epsilon: training error at the threshold.
        direction: "falling" or "rising", how the error changes along the axis.

    Raises:
        InputError: ``values`` not increasing, epsilon outside of (0, 1).

    Cost: ⌈log2(A + 1)⌉ evaluations.
    """
    evaluated: dict[int, list[float]] = {}
    low, high = -1, len(values)  # falling: not fitted up to index low, fitted from index high on
    while high - low > 1:
        middle = (low + high) // 2
        evaluated[middle] = [float(error) for error in errors(middle)]
        fitted = sum(evaluated[middle]) / len(evaluated[middle]) <= epsilon
        if fitted is (direction == "falling"):
            high = middle
        else:
            low = middle
    indices = sorted(evaluated)
    table = torch.tensor([evaluated[k] for k in indices], dtype=torch.float64).T.numpy()
    return crossing([values[k] for k in indices], table, epsilon=epsilon, direction=direction)


def find_threshold(
    data: LabeledData,
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
        data: as for the sweep.
        over: "width" or "samples".
        values: (A,) values of the sweep.
        noise: as for the sweep, like the next two.
        seed: seed of all draws.
        recipe: optimizer, schedule, batches, loss, steps.
        search: seeds and budget of the search.
        options: as for the sweep; ``control``, ``threshold`` and ``metric`` are ignored.
        execution: as for the sweep.
        progress: called with (values tried, largest number of values tried).

    Returns:
        Threshold, with ``cost`` as a fraction of the sweep's. Warns (ThresholdWarning) if it lies outside of ``values``.

    Raises:
        InputError: the budget does not allow two seeds, or arguments that the sweep refuses.
    """
    n_seeds = as_count(search.n_seeds, "n_seeds", minimum=2)
    budget = as_number(search.budget, "budget", exclusive=True)
    grid = [float(value) for value in values]
    n = len(data.x_train) if options.n is None else options.n
    costs = [(value if over == "width" else 1.0) * (value if over == "samples" else n) for value in grid]
    rounds = len(grid).bit_length()
    sweep_cost = sum(costs) * (search.sweep_seeds or n_seeds)
    worst = _worst_cost(costs)
    allowed = min(n_seeds, int(budget * sweep_cost / worst)) if worst else n_seeds
    if allowed < 2:
        raise InputError(
            f"budget={budget:g} of a sweep of {len(grid)} values and {search.sweep_seeds or n_seeds} seeds",
            expected=f"at least {2 * worst / sweep_cost:.2g}: two seeds at up to {rounds} values",
            hint="raise the budget, or sweep more values or seeds",
        )
    tried: list[int] = []
    report = as_progress(progress, "threshold search", "value")
    single = replace(options, control=0, threshold=None)

    def errors(index: int) -> list[float]:
        tried.append(index)
        result = sweep(
            data, over, [grid[index]], noise=noise, n_seeds=allowed, seed=seed, recipe=recipe, options=single,
            execution=execution, progress=False,
        )  # fmt: skip
        report(len(tried), rounds)
        return result.curves.train_error[:, 0].tolist()

    direction: Literal["falling", "rising"] = "falling" if over == "width" else "rising"
    threshold = bisect(errors, grid, epsilon=options.epsilon, direction=direction)
    if len(tried) < rounds:
        report(rounds, rounds)  # closes a bar
    if not threshold.found:
        side = "below the smallest" if threshold.outside == "below" else "above the largest"
        warnings.warn(
            f"the interpolation threshold lies {side} {over} of {grid[0]:g}..{grid[-1]:g}:"
            " the sweep will not show the interpolation peak",
            ThresholdWarning,
            stacklevel=2,
        )
    return replace(threshold, cost=allowed * sum(costs[k] for k in tried) / sweep_cost)


def _worst_cost(costs: Sequence[float]) -> float:
    """Worst-case cost of bisecting this grid, per seed."""

    def worst_between(low: int, high: int) -> float:
        if high - low <= 1:
            return 0.0
        middle = (low + high) // 2
        return costs[middle] + max(worst_between(low, middle), worst_between(middle, high))

    return worst_between(-1, len(costs))
