"""Figure: AUROC against angle and distance, harder tasks, and the most unusual held-out digits."""

import io
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.out_of_distribution.configs import ERRORS_ON, SCORES, SHIFTS

__all__ = ["Pictured", "draw"]

BLUE, RED, GRAY = "#2b6cb0", "#c2410c", "#6b7280"
DRAWN = {
    "gp_tangent_relative": ("#1e3a8a", "-"),
    "gp_tangent": (BLUE, "--"),
    "gp_initial_relative": ("#7c9cc9", ":"),
    "gp_rbf": ("#0f766e", "-"),
    "neighbor_pixels": ("#a16207", "-"),
    "softmax": (RED, "-"),
    "energy": (RED, ":"),
}
HARDER = (
    ("shift", "rotated and back", GRAY, "s"),
    ("errors", ERRORS_ON[0], BLUE, "o"),
    ("errors", ERRORS_ON[1], RED, "D"),
)
SHOWN = 16  # images per line


@dataclass(frozen=True)
class Pictured:
    """Held-out digits of seed 0, (m, 64), labels, the network's labels and the relative posterior deviation."""

    x: Tensor
    labels: Tensor
    predicted: Tensor
    deviation: Tensor


def draw(results: dict[str, Any], pictured: Pictured) -> dict[str, bytes]:
    """Draw means over seeds with 95 % intervals, and images of seed 0, as figure.svg and figure.png."""
    with mpl.rc_context({"svg.hashsalt": "out_of_distribution", "svg.fonttype": "path", "text.parse_math": False}):
        figure = Figure(figsize=(12.4, 7.4), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(2.4, 1.0), hspace=0.04)
        axes = above.subplots(1, 3, width_ratios=(1.05, 1.0, 1.05))
        _curves(axes[0], results, "rotated", "angle, degrees")
        _curves(axes[1], results, "shifted", "moved by, pixels")
        for place, (name, (color, style)) in enumerate(DRAWN.items()):
            height = 0.66 - 0.062 * place
            axes[1].plot([0.82, 1.1], [height, height], color=color, ls=style, lw=1.6)
            axes[1].text(1.18, height, SCORES[name], color=color, fontsize=8, va="center")
        axes[0].set_ylabel("AUROC, changed against unchanged held-out digits", fontsize=9)
        axes[1].tick_params(labelleft=False)
        _harder(axes[2], results)
        _pictures(below, pictured)
        seeds = results["options"]["seeds"]
        above.suptitle(
            f"Mean over {seeds} seeds with 95 % interval. At 0, other digits that were not changed; dashed: AUROC of chance",
            fontsize=9,
            color=GRAY,
        )
        files = {}
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files


def _curves(axes: Axes, results: dict[str, Any], kind: str, label: str) -> None:
    places = [("unchanged", 0), *((shift.name, shift.size) for shift in SHIFTS if shift.kind == kind)]
    sizes = np.array([size for _, size in places], dtype=float)
    step = 0.006 * sizes.max()
    for place, (name, (color, style)) in enumerate(DRAWN.items()):
        aurocs = [results["shift"][where][name]["auroc"] for where, _ in places]
        means = np.array([auroc["mean"] for auroc in aurocs])
        reach = np.array([[a["mean"] - a["low"], a["high"] - a["mean"]] for a in aurocs]).T
        x = sizes + step * (place - len(DRAWN) / 2)  # shifted, so that intervals do not hide each other
        if not np.isnan(reach).any():
            axes.errorbar(x, means, yerr=reach, fmt="none", ecolor=color, elinewidth=1.0, alpha=0.7)
        axes.plot(x, means, color=color, ls=style, lw=1.6, marker="o", ms=3)
    axes.axhline(0.5, color=GRAY, lw=0.8, ls="--", zorder=0)
    axes.set(xticks=sizes, ylim=(0.17, 1.03))
    axes.set_xlabel(label, fontsize=9)
    _plain(axes, "y")


def _harder(axes: Axes, results: dict[str, Any]) -> None:
    for place, name in enumerate(SCORES):
        for offset, (kind, where, color, marker) in zip((-0.2, 0.0, 0.2), HARDER, strict=True):
            auroc = results[kind][where][name]["auroc"]
            if auroc is None:
                continue
            if auroc["se"] == auroc["se"]:
                axes.plot([auroc["low"], auroc["high"]], [place + offset] * 2, color=color, lw=1.2, alpha=0.7)
            axes.plot(auroc["mean"], place + offset, marker, color=color, ms=4)
    axes.plot([0.5, 0.5], [-0.6, len(SCORES) - 0.4], color=GRAY, lw=0.8, ls="--", zorder=0)
    axes.set(yticks=range(len(SCORES)), xlim=(0, 1.02))
    axes.set_ylim(len(SCORES) - 0.4, -2.6)
    axes.set_yticklabels(SCORES.values(), fontsize=8)
    axes.set_xlabel("AUROC", fontsize=9)
    titles = ("rotated by 45° and back: blurred only", "errors on held-out digits", "errors on digits rotated by 30°")
    for place, ((_, _, color, marker), title) in enumerate(zip(HARDER, titles, strict=True)):
        axes.plot(0.03, -2.3 + 0.62 * place, marker, color=color, ms=4)
        axes.text(0.07, -2.3 + 0.62 * place, title, color=color, fontsize=8, va="center")
    _plain(axes, "x")


def _plain(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color="#d1d5db")
    axes.grid(axis=grid, color="#eef0f3", lw=0.8)
    axes.set_axisbelow(True)


def _pictures(figure: Any, pictured: Pictured) -> None:
    order = pictured.deviation.argsort(descending=True, stable=True)
    rows = (order[:SHOWN], order[-SHOWN:].flip(0))
    axes = figure.subplots(2, SHOWN)
    for line, (indices, title) in enumerate(zip(rows, ("most unusual", "most usual"), strict=True)):
        for panel in axes[line]:
            panel.set_axis_off()
        for panel, i in zip(axes[line], indices.tolist(), strict=False):
            label, predicted = int(pictured.labels[i]), int(pictured.predicted[i])
            panel.imshow(pictured.x[i].reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            wrong = label != predicted
            text = f"{label}, read {predicted}" if wrong else f"{label}"
            panel.set_title(
                f"{float(pictured.deviation[i]):.2f}\n{text}", fontsize=7.5, color=RED if wrong else GRAY, pad=2
            )
        axes[line][0].text(
            -0.25, 0.5, title, fontsize=8.5, ha="right", va="center", color="black", transform=axes[line][0].transAxes
        )
    figure.suptitle(
        "Held-out digits of seed 0 with posterior over prior deviation under the trained tangent kernel, and label",
        fontsize=9,
        color=GRAY,
    )
