"""Figure: AUROC of every score by kind and rate of noise, one dot per seed and a bar at the mean."""

import io

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.flip_detection.configs import KINDS, SCORES, Cell

__all__ = ["draw"]

GRAY = "#6b7280"
SHOWN = {
    "suspicion": "#3b6fc4",
    "margin": "#d9780f",
    "cumulative_loss": "#3d8b57",
    "el2n": "#7b4fa3",
    "area_under_margin": "#8a93a3",
}


def draw(frame: pd.DataFrame, cells: list[Cell], seeds: int) -> dict[str, bytes]:
    """Draw one panel per kind of noise, with a group of dots per rate, as figure.svg and figure.png."""
    kinds = [kind for kind in KINDS if any(cell.kind == kind for cell in cells)]
    figure = Figure(figsize=(2.6 * len(kinds) + 0.6, 4.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        rates = [cell for cell in cells if cell.kind == kind]
        for place, cell in enumerate(rates):
            for k, (score, color) in enumerate(SHOWN.items()):
                values = frame[(frame.cell == cell.name) & (frame.score == score)].auroc
                x = place + (k - (len(SHOWN) - 1) / 2) * 0.16
                axes.plot([x] * len(values), values, "o", color=color, alpha=0.45, ms=4, mew=0)
                axes.plot([x - 0.06, x + 0.06], [values.mean()] * 2, color=color, lw=2)
        axes.axhline(0.5, color=GRAY, lw=0.8, dashes=(4, 2.5))
        axes.set_xticks(range(len(rates)), [f"{cell.rate:.0%}" for cell in rates])
        axes.set(xlim=(-0.5, len(rates) - 0.5), xlabel="labels flipped")
        axes.set_title(f"{kind} flips", fontsize=10, loc="left")
        axes.tick_params(left=False, bottom=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb", lw=0.8)
        axes.set_axisbelow(True)
    panels[0].set(ylim=(0.48, 1.01), ylabel="AUROC for the flips (dashed: chance)")
    handles = [Line2D([], [], color=color, marker="o", ms=4) for color in SHOWN.values()]
    figure.legend(handles, [SCORES[score] for score in SHOWN], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"Flipped labels of digits found by each score: one dot per seed ({seeds}), bar at the mean", fontsize=11
    )
    files = {}
    with mpl.rc_context({"svg.hashsalt": "flip_detection", "svg.fonttype": "path"}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files
