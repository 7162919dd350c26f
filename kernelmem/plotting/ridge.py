"""Figure of a ridge choice: leave-one-out error against ridge, with the chosen ridge."""

# ruff: noqa: D102 (attributes of protocols)

from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kernelmem.plotting.style import BLUE, ORANGE, PALE, SOFT, as_array, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RidgeChoiceLike(Protocol):
    """Fields of a choice of ridge that :func:`ridge_figure` reads.

    ``grid`` and ``errors`` (G,) are the G ridges tried and their errors; the chosen ridge and its index in the grid are
    separate fields.
    """

    @property
    def ridge(self) -> float: ...
    @property
    def index(self) -> int: ...
    @property
    def grid(self) -> Tensor: ...
    @property
    def errors(self) -> Tensor: ...
    @property
    def at_edge(self) -> bool: ...


def ridge_figure(choice: RidgeChoiceLike) -> "Figure":
    """Draw error against ridge on logarithmic axes; ridges with infinite error (kernel not positive definite) are shaded."""
    with style():
        figure = new_figure(6.4, 3.8)
        axes = figure.add_subplot()
        grid, errors = as_array(choice.grid), as_array(choice.errors)
        usable = np.isfinite(errors)
        axes.set_xscale("log")
        if (errors[usable] > 0).all():
            axes.set_yscale("log")
        axes.plot(grid[usable], errors[usable], "o-", color=BLUE, markersize=3)
        axes.plot([choice.ridge], [float(errors[choice.index])], "o", color=ORANGE, markersize=8)
        if not usable.all():
            axes.axvspan(float(grid[0]) / 2, float(grid[usable][0]), color=PALE, linewidth=0)
            axes.text(
                0.02,
                0.04,
                "ridge too small for the\nnegative eigenvalues",
                transform=axes.transAxes,
                fontsize=9,
                color=SOFT,
            )
        axes.set_xlim(float(grid[0]) / 2, float(grid[-1]) * 2)
        axes.set(xlabel="ridge (units of the kernel)", ylabel="leave-one-out mean squared error")
        axes.set_title(f"Chosen ridge: {choice.ridge:.3g}{' (edge of the usable grid)' if choice.at_edge else ''}")
        number_ticks(axes.xaxis, axes.get_xlim())
        number_ticks(axes.yaxis, axes.get_ylim())
        return figure
