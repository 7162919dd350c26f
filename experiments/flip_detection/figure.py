"""Figure: AUROC and share of memorized rows, one dot per seed."""

import io

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from experiments.flip_detection.configs import Cell

__all__ = ["draw"]

BLUE, RED, GRAY = "#2b6cb0", "#c2410c", "#6b7280"


def draw(frame: pd.DataFrame, cells: list[Cell]) -> dict[str, bytes]:
    """Draw AUROC (left) and the share of rows above the null threshold (right), as figure.svg and figure.png."""
    figure = Figure(figsize=(8.4, 0.5 * len(cells) + 1.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, cell in enumerate(cells):
        runs = frame[frame.cell == cell.name]
        left.plot(runs.auroc, [place] * len(runs), "o", color=BLUE, alpha=0.5, ms=5, mew=0)
        if cell.claim:
            left.plot([cell.claim] * 2, [place - 0.35, place + 0.35], color=GRAY, lw=1.5)
        for name, color in (("memorized_clean", BLUE), ("memorized_flipped", RED)):
            right.plot(100 * runs[name], [place] * len(runs), "o", color=color, alpha=0.5, ms=5, mew=0)
    left.set(xlabel="AUROC of the leave-one-out margin for the flips", yticks=range(len(cells)))
    left.set_yticklabels([f"{cell.kind} {cell.rate:.0%}" if cell.rate else "no flips" for cell in cells])
    left.set_ylim(len(cells) - 0.5, -0.5)
    left.set_title("One dot a seed; bar: what is claimed of every seed", fontsize=9, loc="left", color=GRAY)
    right.set(xlabel="rows above the null's 99th percentile, %", xlim=(-3, 103))
    right.set_title("Memorized by the network", fontsize=9, loc="left", color=GRAY)
    for color, text, x in ((BLUE, "clean rows", 0.74), (RED, "flipped rows", 1.0)):
        right.text(x, 1.02, text, color=color, fontsize=9, ha="right", transform=right.transAxes)
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        axes.grid(axis="y", color="#e5e7eb", lw=0.8)
        axes.set_axisbelow(True)
    files = {}
    with mpl.rc_context({"svg.hashsalt": "flip_detection", "svg.fonttype": "path"}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files
