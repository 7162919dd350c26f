"""Figure of a membership attack: ROC curve on logarithmic axes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float | None, float, float]]


def roc_figure(fprs: Sequence[float], attack: Curve, permuted: Curve, *, title: str) -> "Figure":
    """Draw true-positive rates with intervals against false-positive rates, on logarithmic axes.

    Args:
        fprs: (A,) false-positive rates, increasing.
        attack: (A,) estimate, lower and upper limit at each rate; an estimate of None is left out.
        permuted: the same for permuted memberships, drawn as control.
        title: title of the figure.
    """
    with style():
        figure = new_figure(5.6, 4.8)
        axes = figure.add_subplot()
        x = np.asarray(fprs, dtype=float)
        smallest = float(x[0])
        axes.plot([smallest, 1], [smallest, 1], color=GRAY, linewidth=1, dashes=DASHED, label="guessing")
        for curve, color, label in ((permuted, ORANGE, "membership permuted (control)"), (attack, BLUE, "attack")):
            middle = np.array([np.nan if value is None else value for value, _, _ in curve], dtype=float)
            low, high = (np.array([point[i] for point in curve], dtype=float) for i in (1, 2))
            floor = smallest / 10  # zero has no place on a logarithmic axis
            axes.plot(x, np.where(middle > 0, middle, np.nan), color=color, linewidth=1.6, label=label)
            axes.fill_between(x, np.maximum(low, floor), np.maximum(high, floor), color=color, alpha=0.16, linewidth=0)
        axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest / 3, 1.05))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title=title)
        number_ticks(axes.xaxis, (smallest, 1))
        number_ticks(axes.yaxis, (smallest / 3, 1))
        axes.grid(visible=True)
        axes.legend(loc="lower right")
        return figure
