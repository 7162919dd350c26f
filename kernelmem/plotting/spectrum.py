"""Figure of the eigenvalues of a kernel."""

# ruff: noqa: D102 (attributes of protocols)

from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, SOFT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PowerLaw(Protocol):
    """A fit λ_k ≈ scale · k^(−exponent) over ranks first..last, with the standard error of the exponent."""

    @property
    def exponent(self) -> float: ...
    @property
    def se(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...


def spectrum_figure(eigenvalues: Tensor, rounding: float, *, fit: PowerLaw | None = None) -> "Figure":
    """Draw eigenvalues against rank on logarithmic axes.

    Args:
        eigenvalues: eigenvalues (n,) in decreasing order.
        rounding: largest eigenvalue that is indistinguishable from 0; smaller ones are drawn at this level.
        fit: a power law to draw over them.
    """
    with style():
        figure = new_figure(6.4, 4.0)
        axes = figure.add_subplot()
        values = as_array(eigenvalues)
        axes.set(xlabel="rank k", ylabel="eigenvalue of K")
        above_rounding = values > rounding
        rank = int(above_rounding.sum())
        if not rank:
            axes.text(0.5, 0.5, "all eigenvalues are 0", ha="center", transform=axes.transAxes)
            return figure
        ranks = np.arange(1, len(values) + 1)
        axes.loglog(
            ranks[above_rounding], values[above_rounding], "o", markersize=3, color=BLUE, label=f"{rank:,} eigenvalues"
        )
        if not above_rounding.all():
            label = f"{(~above_rounding).sum():,} at or below rounding"
            drawn_level = np.full(len(values) - rank, rounding)
            axes.loglog(ranks[~above_rounding], drawn_level, "v", markersize=4, color=GRAY, label=label)
        # The level is drawn only where it is near: far below a well-conditioned kernel it would squeeze the curve flat.
        elif rounding > values[-1] / 1e3:
            axes.axhline(rounding, color=SOFT, linewidth=0.9, dashes=DASHED, label="rounding")
        if fit is not None:
            rank_range = np.array([fit.first, fit.last])
            label = f"power law k^−{fit.exponent:.2f} (± {fit.se:.2g}), ranks {fit.first} to {fit.last}"
            axes.loglog(rank_range, fit.scale * rank_range**-fit.exponent, color=ORANGE, linewidth=1.6, label=label)
        axes.set_title("Spectrum of the kernel")
        axes.legend(loc="upper right" if rank > 2 else "best")
        return figure
