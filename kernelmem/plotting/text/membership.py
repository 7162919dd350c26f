"""Figure of membership attacks on documents: AUROC of gates and scores, and ROC curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.plotting.style import (
    BLUE,
    DASHED,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SOFT,
    TEXT,
    new_figure,
    number_ticks,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (BLUE, ORANGE, GREEN, PURPLE, TEXT)
Area = tuple[float, float, float]  # AUROC, lower and upper limit


def text_membership_figure(
    gates: Sequence[tuple[str, Area, bool]],
    areas: Mapping[str, Area],
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    smallest: float,
    title: str,
) -> "Figure":
    """Draw the AUROC of gates and scores with intervals, and the ROC curve of every score on logarithmic axes.

    Args:
        gates: name, AUROC and failure of each gate.
        areas: name of each score to its AUROC; empty if a gate failed, and then no curve is drawn.
        curves: name of each score to false- and true-positive rates, increasing.
        smallest: smallest false-positive rate that is drawn, below 1.
        title: title of the figure.
    """
    with style():
        figure = new_figure(8.6 if areas else 6.4, 3.9)
        figure.suptitle(title, x=0.01, ha="left")
        all_axes = np.atleast_1d(figure.subplots(1, 2 if areas else 1))
        rows = [(f"gate: {name}", area, ORANGE if failed else GRAY) for name, area, failed in gates]
        colors = dict(zip(areas, COLORS * (1 + len(areas) // len(COLORS)), strict=False))
        rows += [(name, area, colors[name]) for name, area in areas.items()]
        _draw_areas(all_axes[0], rows)
        if areas:
            _draw_curves(all_axes[1], {name: (*curves[name], colors[name]) for name in areas}, smallest)
        else:
            all_axes[0].set_title("no score is drawn, since a gate failed (orange)", fontsize=9.5, color=SOFT)
    return figure


def _draw_areas(axes: "Axes", rows: Sequence[tuple[str, Area, str]]) -> None:
    """Draw one interval per row from the top, and a line at the AUROC of guessing."""
    axes.axvline(0.5, color=GRAY, linewidth=1, dashes=DASHED)
    for place, (_, (value, low, high), color) in enumerate(rows):
        axes.plot([low, high], [-place, -place], color=color, linewidth=2)
        axes.plot([value], [-place], "o", color=color, markersize=5)
    axes.set_yticks(-np.arange(len(rows)), [name for name, _, _ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=TEXT)
    ends = [end for _, area, _ in rows for end in area]
    axes.set_xlim(min(0.4, *ends) - 0.02, max(0.6, *ends) + 0.02)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("AUROC (0.5: guessing)")
    axes.grid(axis="x")


def _draw_curves(axes: "Axes", curves: Mapping[str, tuple[np.ndarray, np.ndarray, str]], smallest: float) -> None:
    """Draw true- against false-positive rates on logarithmic axes."""
    axes.plot([smallest, 1], [smallest, 1], color=GRAY, linewidth=1, dashes=DASHED, label="guessing")
    for name, (fpr, tpr, color) in curves.items():
        rates = np.geomspace(smallest, 1, 200)
        reached = tpr[np.searchsorted(fpr, rates, side="right") - 1]  # at the last threshold with at most this rate
        axes.plot(rates, np.where(reached > 0, reached, np.nan), color=color, linewidth=1.5, label=name)
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1.02), ylim=(smallest / 3, 1.1))
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    number_ticks(axes.xaxis, (smallest, 1))
    number_ticks(axes.yaxis, (smallest / 3, 1))
    axes.grid(visible=True)
    axes.legend(loc="lower right")
