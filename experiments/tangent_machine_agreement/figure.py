"""Figure: agreement of each kernel machine with the network, one dot per seed."""

import io
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.tangent_machine_agreement.configs import CLAIM

__all__ = ["draw"]

BLUE, RED, GRAY = "#2b6cb0", "#c2410c", "#6b7280"


def draw(frame: pd.DataFrame, titles: dict[str, str], facts: dict[str, Any]) -> dict[str, bytes]:
    """Draw agreement on held-out rows (left) and on those where the network errs (right), as figure.svg and figure.png."""
    names = [name for name in titles if not name.startswith("ridge")]
    with mpl.rc_context({"svg.hashsalt": "tangent_machines", "svg.fonttype": "path", "text.parse_math": False}):
        figure = Figure(figsize=(10.0, 0.36 * len(names) + 1.3), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for place, name in enumerate(names):
            runs = frame[frame.machine == name]
            color = GRAY if name == "another" or name.startswith("permuted") else BLUE
            for axes, shares in ((left, 100 * runs.agreement), (right, 100 * runs.agreement_on_errors)):
                axes.plot(shares, [place] * len(runs), "o", color=color, alpha=0.45, ms=5, mew=0)
                axes.plot([shares.mean()] * 2, [place - 0.3, place + 0.3], color=color, lw=1.8)
            if name.startswith("permuted"):  # far below the axis
                text = f"mean {100 * runs.agreement.mean():.1f} %, below the axis"
                style = {"fontsize": 8, "va": "center", "transform": left.get_yaxis_transform()}
                left.text(0.01, place, text, color=GRAY, bbox={"fc": "white", "ec": "none", "pad": 1.5}, **style)
        name, claim = CLAIM
        left.plot([100 * claim] * 2, [names.index(name) - 0.45, names.index(name) + 0.45], color=RED, lw=1.8)
        kept = frame[frame.machine.isin(names) & ~frame.machine.str.startswith("permuted")]
        low = 100 * min(float(kept.agreement.min()), claim)
        left.set(yticks=range(len(names)), xlim=(low - 0.04 * (100 - low), 100 + 0.04 * (100 - low)))
        left.set_yticklabels([titles[name] for name in names], fontsize=9)
        left.set_ylim(len(names) - 0.5, -0.6)
        right.set_xlim(-3, 103)
        _named(
            left, "same label as the network, % of held-out rows", "One dot a seed, bar: mean; red: claimed of the mean"
        )
        _named(right, "same label where the network errs, %", f"{facts['errors']['mean']:.1f} rows a seed")
        files = {}
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor="white", **options)
            files[f"figure.{kind}"] = stream.getvalue()
    return files


def _named(axes: Axes, label: str, title: str) -> None:
    axes.set_xlabel(label, fontsize=9)
    axes.set_title(title, fontsize=9, loc="left", color=GRAY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelsize=8.5)
    axes.grid(axis="y", color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
