"""Figure of exposure: bits of each canary against the number of times that it was inserted."""

# ruff: noqa: D102 (attributes of protocols)

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kernelmem.plotting.style import BLUE, GRAY, ORANGE, SOFT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GroupLike(Protocol):
    """Mean exposure of canaries that were inserted equally often, with its interval."""

    @property
    def repetitions(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class ExposureLike(Protocol):
    """Fields of an exposure that :func:`exposure_figure` reads."""

    @property
    def exposure(self) -> Tensor: ...
    @property
    def repetitions(self) -> Tensor: ...
    @property
    def groups(self) -> Sequence[GroupLike]: ...
    @property
    def n_candidates(self) -> int: ...
    @property
    def expected_control(self) -> float: ...


def exposure_figure(result: ExposureLike, null_errors: Sequence[float] = ()) -> "Figure":
    """Draw the exposure of every canary, and mean and interval of each group, at equal distances along the axis.

    ``null_errors`` are the standard errors of the mean of each group without insertion, drawn as a 95 % band.
    """
    bits, repetitions = as_array(result.exposure), as_array(result.repetitions)
    maximum = math.log2(result.n_candidates)
    with style():
        figure = new_figure(6.4, 3.8)
        axes = figure.add_subplot()
        for place, group in enumerate(result.groups):
            own = np.sort(bits[repetitions == group.repetitions])
            spread = (
                place - 0.12 + 0.08 * np.sin(2.4 * np.arange(len(own)))
            )  # so that equal values do not hide each other
            axes.plot(spread, own, "o", color=BLUE, alpha=0.35, markersize=3, markeredgewidth=0)
            error = [[group.mean - group.low], [group.high - group.mean]]
            axes.errorbar([place + 0.12], [group.mean], error, fmt="o", color=ORANGE, capsize=3, markersize=5)
        for place, error in enumerate(null_errors):
            low, high = (result.expected_control + z * error for z in (-1.96, 1.96))
            axes.fill_between([place - 0.35, place + 0.35], low, high, color=GRAY, alpha=0.3, linewidth=0)
        end = len(result.groups) - 0.5
        for height, text in ((result.expected_control, "expected if not inserted"), (maximum, "maximum")):
            axes.axhline(height, color=GRAY, linewidth=0.9, linestyle="--")
            axes.text(end, height, f" {text}\n {height:.2f}", color=SOFT, fontsize=8.5, va="center")
        axes.set_xlim(-0.5, end)
        axes.set_ylim(-0.03 * maximum, 1.06 * maximum)
        axes.set_xticks(range(len(result.groups)), [str(group.repetitions) for group in result.groups])
        axes.set(xlabel="times inserted", ylabel="exposure (bits)")
        axes.set_title(f"Exposure of {len(bits):,} canaries among {result.n_candidates:,} candidates")
    return figure
