"""The picture of a prediction: the expected error, its range over initial networks, GCV, and what was measured."""

import textwrap
from typing import TYPE_CHECKING, Any

import torch

from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kernelmem.double_descent.prediction.predict import Prediction

__all__ = ["prediction_figure"]

BLUE, ORANGE, GRAY, TEXT = "#3b6fc4", "#d9780f", "#5b6475", "#1d2433"
NAMES = {"width": "width", "samples": "training rows", "ridge": "ridge"}
TICKS = 9
WIDTH = 80  # letters in a line of the title


def prediction_figure(prediction: "Prediction", measured: Any = None) -> "Figure":
    """Draw it; ``measured`` (A,) or (runs, A) as means with bars of two standard errors."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    runs = None if measured is None else as_tensor(measured, "measured", dtype=torch.float64)
    if runs is not None:
        runs = runs[None] if runs.ndim == 1 else runs
        if runs.ndim != 2 or runs.shape[1] != len(prediction.axis):
            raise InputError(
                f"measured of shape {tuple(runs.shape)}", expected=f"(runs, {len(prediction.axis)})", hint="check it"
            )
    axis = prediction.axis.numpy()
    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem"}):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log" if axis[0] > 0 else "linear")
        axes.set_yscale("log")

        def shown(values: torch.Tensor) -> Any:  # infinite at a threshold: a gap in the line
            return torch.where(torch.isfinite(values), values, torch.nan).numpy()

        low, high = shown(prediction.low), shown(prediction.high)
        if len(prediction.by_seed) > 1:
            axes.fill_between(axis, low, high, color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(axis, shown(prediction.expected), "-", color=BLUE, linewidth=1.6, label="expected, clean labels")
        if prediction.gcv is not None:
            axes.plot(axis, shown(prediction.noisy), "--", color=GRAY, linewidth=1.1, label="expected, noisy labels")
            axes.plot(axis, shown(prediction.gcv), "x", color=GRAY, markersize=5, label="GCV of the training rows")
        if runs is not None:
            R = len(runs)
            error = 2 * runs.std(0, correction=1).numpy() / R**0.5 if R > 1 else None
            label = f"measured, {R} run{'s' * (R != 1)}" + (", ± 2 standard errors" if R > 1 else "")
            axes.errorbar(
                axis, runs.mean(0).numpy(), yerr=error, fmt="o", color=ORANGE, markersize=4, linewidth=1.2, label=label
            )
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        step = -(-len(axis) // TICKS)
        axes.xaxis.set_major_locator(FixedLocator(axis[::step].tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        bottom, top = axes.get_ylim()
        for own in (axes.xaxis, axes.yaxis):
            own.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(plain if top < 10 * bottom else FuncFormatter(lambda *_: ""))
        title = textwrap.fill(f"before training: {prediction.setting}", WIDTH)
        axes.set_title(title, loc="left", fontsize=10, color=TEXT)
        axes.set_xlabel(NAMES[prediction.axis_name])
        axes.set_ylabel("mean squared error")
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        return figure
