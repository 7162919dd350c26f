"""Figure of memorization by retraining: all rows in ascending order, with intervals and a control."""

from typing import TYPE_CHECKING

import numpy as np

from kernelmem.core.checks import ArrayLike
from kernelmem.plotting.style import BLUE, DASHED, SOFT, as_array, band, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def retraining_figure(
    values: ArrayLike, low: ArrayLike, high: ArrayLike, null: ArrayLike, *, unit: str, level: float
) -> "Figure":
    """Draw the memorization (n,) of n rows in ascending order, its intervals, and a control in ascending order.

    Args:
        values: memorization.
        low: lower ends of its intervals.
        high: upper ends.
        null: memorization with the subsets of the models permuted.
        unit: what the values measure.
        level: confidence level of the intervals.
    """
    values, low, high, null = (as_array(part) for part in (values, low, high, null))
    order = np.argsort(values, kind="stable")
    ranks = np.arange(1, len(values) + 1)
    with style():
        figure = new_figure(6.8, 4.0)
        axes = figure.add_subplot()
        band(
            axes,
            ranks,
            values[order],
            low[order],
            high[order],
            color=BLUE,
            label=f"memorization, {level:.0%} intervals",
        )
        axes.plot(ranks, np.sort(null), color=SOFT, dashes=DASHED, label="control: subsets of the models permuted")
        axes.axhline(0.0, color=SOFT, linewidth=0.6)
        axes.set_xlim(1, max(2, len(values)))
        axes.set(xlabel="training rows, least memorized first", ylabel="with the row minus without it")
        axes.set_title(f"Change of the {unit}")
        axes.legend(loc="upper left")
        return figure
