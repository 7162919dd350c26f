"""The picture of a sweep: errors, losses and memorized flips along the axis, with intervals, control, threshold and theory."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from kernelmem.double_descent.sweeps.peak import mean_se
from kernelmem.double_descent.sweeps.result import AXES, Curves, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Theory", "figure_files", "sweep_figure"]

# (axis, values, label), drawn among the losses; with a fourth word, "test_error" or "test_loss", there.
Theory = Sequence[Any]
BLUE, ORANGE, GREEN, GRAY, PURPLE, TEXT = "#3b6fc4", "#d9780f", "#3d8b57", "#8a93a3", "#7b4fa3", "#1d2433"
PANELS = {"error": ("test_error", "train_error"), "loss": ("test_loss", "train_loss")}
TITLES = {
    "model": "Width of the network",
    "depth": "Depth of the network",
    "sample": "Number of training rows",
    "epoch": "Training steps",
    "noise": "Label noise",
    "ridge": "Ridge",
    "features": "Number of random features",
    "features_sample": "Random features: number of training rows",
    "features_ridge": "Random features: ridge",
    "features_noise": "Random features: label noise",
}


def sweep_figure(sweep: Sweep, *, theory: Sequence[Theory] = ()) -> "Figure":
    """Draw test and training error, the losses, and what became of flipped labels; bands are 95 % intervals over seeds.

    Args:
        sweep: what was found.
        theory: (axis, values, label) curves drawn among the losses, or (axis, values, label, "test_error").
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem", "font.size": 9}):
        flips = bool(np.isfinite(sweep.curves.memorized_flips.numpy()).any())
        figure = Figure(figsize=(11.4 if flips else 7.8, 3.9), layout="constrained")
        panels = figure.subplots(1, 3 if flips else 2)
        for axes, (name, (test, train)) in zip(panels, PANELS.items(), strict=False):
            _band(
                axes, sweep, sweep.curves, test, BLUE, "test" if sweep.control is None else "test, trained with noise"
            )
            _band(axes, sweep, sweep.curves, train, ORANGE, "training")
            if sweep.control is not None:
                _band(axes, sweep, sweep.control, test, GRAY, "test, trained without (control)", style="--")
            for own in theory:
                if (own[3] if len(own) > 3 else "test_loss") == test:
                    axes.plot(own[0], own[1], color=PURPLE, linewidth=1.2, label=own[2])
            axes.set_title(name, loc="left", color=TEXT)
            _scale(axes, sweep, name)
        if flips:
            _band(panels[2], sweep, sweep.curves, "memorized_flips", BLUE, "said as trained (memorized)")
            _band(panels[2], sweep, sweep.curves, "recovered_flips", GREEN, "said as they truly are")
            panels[2].set_title("share of flipped training rows", loc="left", color=TEXT)
            panels[2].set_ylim(-0.03, 1.03)
            _scale(panels[2], sweep, "flips")
        for k, axes in enumerate(panels):
            _mark(axes, sweep, label=k == 0)
            if k == 1:  # its lines are those of the first panel, save for the theory
                own = [line for line in axes.lines if line.get_color() == PURPLE]
                axes.legend(handles=own, frameon=False, fontsize=7.5) if own else None
            elif k == 2:
                axes.legend(frameon=False, fontsize=7.5)
        # Below, since no corner is free of curves in all kinds.
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
        figure.suptitle(f"{TITLES[sweep.kind]}, {sweep.curves.shape[0]} seeds", x=0.01, ha="left", color=TEXT)
        return figure


def figure_files(figure: "Figure", name: str) -> dict[str, bytes]:
    """The figure as SVG and PNG: file name -> bytes, the same bytes for the same figure."""
    import matplotlib as mpl

    files = {}
    for kind, options in {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 130}}.items():
        stream = io.BytesIO()
        with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem"}):
            figure.savefig(stream, format=kind, **options)
        files[str(Path(f"{name}.{kind}"))] = stream.getvalue()
    return files


def _band(axes: "Axes", sweep: Sweep, curves: Curves, metric: str, color: str, label: str, *, style: str = "-") -> None:
    mean, se = mean_se(curves.tensors()[metric].numpy())
    shown = np.isfinite(mean)
    x = np.array(sweep.axis)[shown]
    reach = float(stdtrit(max(1, curves.shape[0] - 1), 0.975)) * np.nan_to_num(se[shown])
    dots = "o" if len(x) <= 30 else ""
    axes.plot(x, mean[shown], style + dots, color=color, markersize=2.8, linewidth=1.4, label=label)
    low = np.maximum(
        mean[shown] - reach, min(mean[shown].min(), 0) if mean[shown].min() <= 0 else mean[shown].min() / 3
    )
    high = mean[shown] + reach if metric.endswith("loss") else np.minimum(mean[shown] + reach, 1)  # shares end at 1
    axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)


def _mark(axes: "Axes", sweep: Sweep, *, label: bool) -> None:
    at = sweep.threshold or sweep.interpolation()
    if not at.found:
        return
    first, last = sweep.axis[0], sweep.axis[-1]
    low, high = max(at.low, first), min(at.high, last)
    own = "threshold N = n" if at.low == at.value == at.high else f"training error {at.epsilon:g}"
    axes.axvline(at.value, color=TEXT, linewidth=0.9, linestyle=":", label=own if label else None)
    if high > low:
        axes.axvspan(low, high, color=TEXT, alpha=0.06, linewidth=0)


def _scale(axes: "Axes", sweep: Sweep, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    positive = [own for own in sweep.axis if own > 0]
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if len(positive) == len(sweep.axis) and positive[-1] / positive[0] >= 8 and sweep.kind not in ("depth", "noise"):
        axes.set_xscale("log")
        decades = positive[-1] / positive[0]
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 300 else (1,)))
        axes.xaxis.set_major_formatter(plain)
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    if name == "loss":
        parts = [own.test_loss.numpy() for own in (sweep.curves, sweep.control) if own is not None]
        means = np.concatenate([own.mean(0) for own in parts])
        if means.min() > 0 and means.max() / means.min() > 30:
            axes.set_yscale("log")
            axes.set_ylim(bottom=means.min() / 3)
            axes.yaxis.set_major_formatter(plain)
    axes.set_xlabel(AXES[sweep.kind][0])
    axes.spines[["top", "right"]].set_visible(False)
