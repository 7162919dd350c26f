"""Figures: bits over width as stacked bars, next to the test loss; recall of labels over bits per weight."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kernelmem.plotting import BLUE, GRAY, GREEN, ORANGE, PURPLE, figure_files, figure_style, new_figure
from kernelmem.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["quantization_figure", "width_figure"]

NEITHER = "#d5d9e1"


def width_figure(frame: pd.DataFrame) -> dict[str, bytes]:
    """Draw for every width of the noisy networks where the bits of the labels are, the test loss and bits per parameter."""
    runs = frame.query("rate > 0")
    means = pd.DataFrame(runs.groupby("width").mean(numeric_only=True))
    place = -np.arange(len(means))
    uniform, left_out, estimated = (means[name].to_numpy() for name in ("uniform", "left_out", "noise"))
    follows, memorized = uniform - left_out, means["memorized"].to_numpy().clip(min=0)
    noise = np.minimum(estimated, memorized)
    with figure_style({"axes.spines.left": False, "hatch.linewidth": 0.6}):
        figure = new_figure(10.2, 1.7 + 0.23 * len(means))
        bars, loss, density = figure.subplots(1, 3, sharey=True, gridspec_kw={"width_ratios": [3, 1.2, 1.2]})
        start = np.zeros(len(means))
        for length, options in (
            (follows, {"color": BLUE, "label": "follows from the other rows"}),
            (
                noise,
                {
                    "color": ORANGE,
                    "hatch": "////",
                    "edgecolor": "#fefefd",
                    "label": "memorized, up to the label noise n H(r)",
                },
            ),
            (memorized - noise, {"color": ORANGE, "label": "memorized beyond it"}),
            (uniform - follows - memorized, {"color": NEITHER, "label": "in neither"}),
        ):
            bars.barh(place, length, left=start, height=0.72, linewidth=0, **options)
            start = start + length
        bars.set(xlabel="bits of the labels", ylabel="hidden units", title="Where the bits of the labels are")
        bars.set_yticks(place, [f"{width:g}" for width in means.index])
        bars.tick_params(axis="y", length=0)
        bars.set_xlim(0, uniform.max())
        _points(loss, runs, "test_loss", BLUE)
        loss.set(xlabel="bits per test row", title="Test loss")
        _points(density, runs, "alone_per_parameter", GREEN)
        density.set(xlabel="bits of the labels per parameter", title="In the network alone")
        figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure_files(figure, "width")


def _points(axes: "Axes", runs: pd.DataFrame, name: str, color: str) -> None:
    """Draw the mean of a column for every width, from top to bottom, with its 95 % interval over seeds."""
    middle, errors = _intervals(runs, "width", name)
    axes.errorbar(middle, -np.arange(len(middle)), xerr=errors, color=color, marker="o", capsize=2)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.grid(axis="x")


def quantization_figure(frame: pd.DataFrame) -> dict[str, bytes]:
    """Draw recall of flipped and of clean rows, their difference and the memorized bits, over bits per weight."""
    flips, control = frame.query("step > 0 and labels == 'flips'"), frame.query("step > 0 and labels == 'control'")
    with figure_style():
        figure = new_figure(10.4, 3.9)
        recall, difference, memorized = figure.subplots(1, 3)
        for axes, runs, name, color, label in (
            (recall, flips, "recall_clean", BLUE, "rows with their own label"),
            (recall, flips, "recall_flipped", ORANGE, "flipped rows"),
            (difference, flips, "difference", ORANGE, "clean minus flipped"),
            (difference, flips, "matched_difference", PURPLE, "the same, rows of equal margin"),
            (difference, control, "difference", GRAY, "network without flips, same rows"),
            (memorized, flips, "memorized", ORANGE, "network with flips"),
            (memorized, control, "memorized", GRAY, "network without flips"),
        ):
            middle, errors = _intervals(runs, "step", name)
            x = runs.pivot_table(index="seed", columns="step", values="bits_per_weight").to_numpy().mean(0)
            axes.errorbar(x, middle, errors, color=color, marker="o", capsize=2, label=label)
        for axes in (recall, difference, memorized):
            axes.set_xlabel("bits per weight")
            axes.legend(loc="lower right" if axes is recall else "best")
        recall.set(ylim=(0, 1.04), title="Labels that the network still gives", ylabel="share of rows")
        difference.axhline(0, color=GRAY, linewidth=0.8)
        difference.set(
            ylim=(-0.06, 0.52), title="Lost more often if flipped", ylabel="difference of shares, 95 % interval"
        )
        memorized.set(title="Memorized", ylabel="bits of the labels")
        return figure_files(figure, "quantization")


def _intervals(runs: pd.DataFrame, by: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return for each value of the column ``by`` the mean of another over seeds, (A,), and its error bars, (2, A)."""
    table = runs.pivot_table(index="seed", columns=by, values=name)
    intervals = [mean_interval(column) for column in table.to_numpy().T]
    middle = np.array([interval.value for interval in intervals])
    errors = np.array([[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]])
    return middle, errors
