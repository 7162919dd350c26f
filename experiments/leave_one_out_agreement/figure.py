"""Figure: retraining against every score, one dot per example (top) or per pair of example and test row (bottom)."""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.leave_one_out_agreement.configs import SCORES
from experiments.leave_one_out_agreement.training import Problem

__all__ = ["draw"]

BLUE, RED, GRAY = "#2b6cb0", "#c2410c", "#6b7280"


def draw(
    problem: Problem, truth: tuple[Tensor, Tensor], scores: dict[str, tuple[Tensor, Tensor]], figures: dict[str, Any]
) -> dict[str, bytes]:
    """Draw seed 0 with the correlations of all seeds, as figure.svg and figure.png."""
    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    axes = figure.subplots(2, len(SCORES), sharey="row")
    colors = [RED if flag else BLUE for flag in problem.flipped.tolist()]
    for column, (name, title) in enumerate(SCORES.items()):
        for row, kind in enumerate(("self", "test")):
            panel: Axes = axes[row, column]
            score, effect = scores[name][row], truth[row]
            if row == 0:
                panel.scatter(score, effect, c=colors, s=14, alpha=0.7, lw=0)
            else:
                pairs = [part.flatten() for part in (score, effect)]
                panel.scatter(*pairs, c=[*colors] * len(score), s=3, alpha=0.25, lw=0, rasterized=True)
            if name == "unrolled":
                low, high = float(score.min()), float(score.max())
                panel.axline((0, 0), slope=1, color=GRAY, lw=0.8, zorder=1)
                panel.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
            summary = figures[f"{name}_{kind}"]
            error = f" ± {summary['se']:.3f}" if summary["se"] == summary["se"] else ""
            panel.set_title(f"Spearman {summary['mean']:.3f}{error}", fontsize=9, color=GRAY, loc="left")
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8, color="#d1d5db")
            panel.locator_params(axis="x", nbins=4)
            panel.grid(color="#eef0f3", lw=0.8)
            panel.set_axisbelow(True)
        axes[1, column].set_xlabel(title, fontsize=9)
    axes[0, 0].set_ylabel("on the example itself\nchange when retrained without it", fontsize=9)
    axes[1, 0].set_ylabel("on test rows\nchange when retrained without it", fontsize=9)
    seeds = problem.options.seeds
    figure.supxlabel(
        "change of the own-label logit without the example, by each score (line: equal). Dots: seed 0;"
        f" Spearman: mean ± standard error over {seeds} seeds",
        fontsize=9,
    )
    for y, color, text in ((0.17, BLUE, "right label"), (0.06, RED, "wrong label")):
        axes[0, 0].text(0.97, y, text, color=color, fontsize=9, ha="right", transform=axes[0, 0].transAxes)
    files = {}
    with mpl.rc_context({"svg.hashsalt": "leave_one_out_agreement", "svg.fonttype": "path"}):
        for kind, options in (("svg", {"metadata": {"Date": None}, "dpi": 200}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files
