"""Figure: linear datamodeling scores of all attributions, one panel per setting, with ceiling and permuted rows."""

import io
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kernelmem.memorization import LDS

__all__ = ["draw"]

BLUE, GRAY, TEXT, LINE = "#3b6fc4", "#8a93a3", "#1d2433", "#d5d9e1"


def draw(scores: Mapping[str, LDS]) -> dict[str, bytes]:
    """Return figure.svg and figure.png."""
    figure = Figure(figsize=(2.2 + 2.1 * len(scores), 3.6), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (title, score) in zip(panels, scores.items(), strict=True):
        positions = -np.arange(len(score.names))
        axes.axvline(0, color=LINE, lw=1)
        for position, name, null in zip(positions, score.names, score.null, strict=True):
            interval = score.interval(name)
            axes.plot(null, np.full(len(null), position), "|", color=GRAY, ms=6, mew=0.7)
            axes.plot([interval.low, interval.high], [position, position], color=BLUE, lw=1.6)
            axes.plot(interval.value, position, "o", color=BLUE, ms=4.5)
        axes.axvline(score.ceiling, color=TEXT, lw=1, ls=(0, (4, 2.5)))
        axes.set_title(title, fontsize=9, loc="left", color=TEXT)
        axes.set_yticks(positions, score.names)
        axes.tick_params(labelsize=8.5, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlim(-0.3, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    figure.supxlabel(
        "linear datamodeling score with 95 % interval; gray: permuted training rows; dashed: ceiling", fontsize=9
    )
    files = {}
    with mpl.rc_context({"svg.hashsalt": "attribution", "svg.fonttype": "path"}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 130})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files
