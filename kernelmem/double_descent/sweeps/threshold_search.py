"""Effective model complexity: the width that fits n rows, or the rows that a width fits, found before a sweep is paid for."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.sweep import ThresholdWarning, sweep
from kernelmem.double_descent.sweeps.threshold import Threshold, crossing
from kernelmem.training.datasets import LabeledData

__all__ = ["bisect", "find_threshold"]


def bisect(
    errors: Callable[[int], Sequence[float]],
    values: Sequence[float],
    *,
    epsilon: float = 0.1,
    direction: Literal["falling", "rising"] = "falling",
) -> Threshold:
    """Find between which neighbors of a grid the mean training error crosses ``epsilon``, in ⌈log2(A + 1)⌉ evaluations.

    The mean over seeds is taken to be monotone. The value is the linear interpolation between the two neighbors, the interval
    is that of :func:`kernelmem.double_descent.sweeps.threshold.crossing` over all points evaluated.

    Args:
        errors: index into ``values`` -> training error of every seed there, the same seeds each time.
        values: (A,) increasing.
        epsilon: the level.
        direction: which way the error goes.

    Raises:
        InputError: ``values`` not increasing, epsilon outside of (0, 1).
    """
    seen: dict[int, list[float]] = {}
    low, high = -1, len(values)  # fitted nowhere up to low and everywhere from high on (falling)
    while high - low > 1:
        middle = (low + high) // 2
        seen[middle] = [float(own) for own in errors(middle)]
        fitted = sum(seen[middle]) / len(seen[middle]) <= epsilon
        if fitted is (direction == "falling"):
            high = middle
        else:
            low = middle
    order = sorted(seen)
    table = torch.tensor([seen[k] for k in order], dtype=torch.float64).T.numpy()
    return crossing([values[k] for k in order], table, epsilon=epsilon, direction=direction)


def find_threshold(
    data: LabeledData,
    over: Literal["width", "samples"],
    values: Sequence[float],
    *,
    seeds: int = 5,
    sweep_seeds: int | None = None,
    epsilon: float = 0.1,
    budget: float = 0.25,
    width: Any = 16,
    n: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Threshold:
    """Find the interpolation threshold among the values of a sweep by bisection, before the sweep is run.

    Over the width: the least width whose mean training error on n rows is at most epsilon. Over the samples: the effective model
    complexity of the width, EMC = max{n : mean training error <= epsilon} (Nakkiran et al. 2019). Networks are those that
    :func:`kernelmem.double_descent.sweeps.sweep.sweep` would train with the same options and seed.

    Args:
        data: as of the sweep.
        over: "width" or "samples".
        values: those of the sweep.
        width: as of the sweep, where it is not searched.
        n: training rows, where they are not searched.
        seeds: networks at each value tried; fewer if the budget asks for it, at least 2.
        sweep_seeds: seeds of the sweep that is to follow, noisy ones and control together, for the budget; default ``seeds``.
        epsilon: training error below which labels count as fitted.
        budget: largest cost allowed, as a share of the sweep's; the cost of a network is its width × its rows.
        progress: called with (values tried, of how many).
        options: of the sweep: ``noise``, ``recipe``, ``seed``, ``make_model``, ``train``, ``out``, ``executor``, ``dtype``, ...

    Returns:
        Threshold, with ``cost`` as a share of the sweep's. Warns where it lies outside of ``values``.

    Raises:
        InputError: not even two seeds fit into the budget; arguments that the sweep refuses.
    """
    grid = [float(own) for own in values]
    rows = len(data.x_train) if n is None else n
    sizes = [(own if over == "width" else 1.0) * (own if over == "samples" else rows) for own in grid]
    rounds = len(grid).bit_length()
    whole = sum(sizes) * (sweep_seeds or seeds)
    worst = _dearest(sizes)
    allowed = min(seeds, int(budget * whole / worst)) if worst else seeds
    if allowed < 2:
        raise InputError(
            f"budget={budget:g} of a sweep of {len(grid)} values and {sweep_seeds or seeds} seeds",
            expected=f"at least {2 * worst / whole:.2g}: two seeds at up to {rounds} values",
            hint="raise the budget, or sweep more values or seeds",
        )
    tried: list[int] = []

    def errors(index: int) -> list[float]:
        tried.append(index)
        found = sweep(data, over, [grid[index]], seeds=allowed, control=0, width=width, n=n, epsilon=epsilon, **options)
        if progress is not None:
            progress(len(tried), rounds)
        return found.curves.train_error[:, 0].tolist()

    direction: Literal["falling", "rising"] = "falling" if over == "width" else "rising"
    found = bisect(errors, grid, epsilon=epsilon, direction=direction)
    if not found.found:
        side = "below the least" if found.outside == "below" else "above the largest"
        warnings.warn(
            f"the interpolation threshold lies {side} {over} of {grid[0]:g}..{grid[-1]:g}: the sweep will not show the peak",
            ThresholdWarning,
            stacklevel=2,
        )
    return replace(found, cost=allowed * sum(sizes[k] for k in tried) / whole)


def _dearest(sizes: Sequence[float]) -> float:
    """Cost of the dearest way that a bisection of this grid can go, for one seed."""

    def below(low: int, high: int) -> float:
        if high - low <= 1:
            return 0.0
        middle = (low + high) // 2
        return sizes[middle] + max(below(low, middle), below(middle, high))

    return below(-1, len(sizes))
