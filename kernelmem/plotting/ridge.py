"""The picture of a ridge choice: the error of every ridge that was tried, and the one that was taken."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kernelmem.kernel_machines.model_selection.ridge_selection import RidgeChoice

__all__ = ["ridge_figure"]

BLUE, ORANGE, GRAY, PALE, TEXT = "#3b6fc4", "#d9780f", "#5b6475", "#eef0f4", "#1d2433"


def ridge_figure(choice: "RidgeChoice") -> "Figure":
    """Draw error against ridge on logarithmic axes; ridges that do not count (infinite error) are shaded."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem"}):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        grid, errors = choice.grid.cpu(), choice.errors.cpu()
        counted = torch.isfinite(errors)
        axes.set_xscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        if bool((errors[counted] > 0).all()):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(plain)  # the error may stay within a decade, where no major tick is
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
        axes.plot(grid[counted].numpy(), errors[counted].numpy(), "o-", color=BLUE, markersize=3, linewidth=1.3)
        axes.plot([choice.ridge], [float(errors[choice.index])], "o", color=ORANGE, markersize=8)
        left, right = float(grid[0]) / 2, float(grid[-1]) * 2
        if not bool(counted.all()):
            end = float(grid[counted][0])
            axes.axvspan(left, end, color=PALE, linewidth=0)
            axes.text(
                0.02, 0.04, "too small for the\nnegative eigenvalues", transform=axes.transAxes, fontsize=9, color=GRAY
            )
        axes.set_xlim(left, right)
        edge = ", at the edge of what was tried" if choice.at_edge else ""
        axes.set_title(f"ridge {choice.ridge:.3g}{edge}", loc="left", fontsize=10, color=TEXT)
        axes.set_xlabel("ridge, in units of the kernel")
        axes.set_ylabel("estimated error on new rows")
        axes.spines[["top", "right"]].set_visible(False)
        return figure
