"""Figure of linear datamodeling scores, compared with their ceiling and with permuted training rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.core.checks import ArrayLike
from kernelmem.plotting.style import BLUE, GRAY, LINE, SOFT, TEXT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_PITCH = 0.36  # inches per attribution


def lds_figure(
    names: Sequence[str], values: ArrayLike, ends: ArrayLike, null: ArrayLike, *, ceiling: float, level: float
) -> "Figure":
    """Draw one line per attribution: score, interval, scores of permuted training rows, and the common ceiling.

    Args:
        names: names of the a attributions, best first or in any order: they are drawn from top to bottom.
        values: (a,) scores.
        ends: (a, 2) ends of their intervals.
        null: (a, p) scores of p permutations.
        ceiling: largest score to expect; NaN if unknown.
        level: level of the intervals.
    """
    scores, limits, permuted = as_array(values), as_array(ends), as_array(null)
    positions = -np.arange(len(names))
    with style({"axes.spines.left": False}):
        figure = new_figure(7.2, 1.35 + BAR_PITCH * len(names))
        axes = figure.add_subplot()
        axes.axvline(0, color=LINE, linewidth=1)
        for position, row in zip(positions, permuted, strict=True):
            axes.plot(row, np.full(len(row), position), "|", color=GRAY, markersize=7, markeredgewidth=0.9)
        axes.errorbar(
            scores,
            positions,
            xerr=np.abs(limits.T - scores),
            fmt="o",
            color=BLUE,
            markersize=5,
            elinewidth=1.6,
            label=f"score, {100 * level:g} % interval",
        )
        axes.plot([], [], "|", color=GRAY, markersize=7, label="permuted training rows")
        for position, score, high in zip(positions, scores, limits[:, 1], strict=True):
            axes.annotate(
                f"{score:.2f}",
                (high, position),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=SOFT,
                fontsize=9,
            )
        if np.isfinite(ceiling):
            axes.axvline(ceiling, color=TEXT, linewidth=1, linestyle=(0, (4, 2.5)), label=f"ceiling {ceiling:.2f}")
        axes.set_yticks(positions, names)
        axes.tick_params(axis="y", length=0, labelcolor=TEXT)
        axes.set_ylim(positions[-1] - 0.6, 0.6)
        axes.set_xlim(min(-0.15, 1.1 * permuted.min(), 1.1 * limits.min()), 1.08)
        axes.set_xlabel("linear datamodeling score (Spearman correlation with retrained subsets)")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.4)
    return figure
