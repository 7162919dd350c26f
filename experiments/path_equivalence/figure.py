"""The figures: residuals of rules against the learning rate, and errors of kernel machines, one dot a seed."""

import io
import math

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from experiments.path_equivalence.configs import STEPS, TIME

__all__ = ["draw_machines", "draw_rules", "files"]

TEXT, GRAY, LINE = "#1d2433", "#5b6475", "#e5e7eb"
# Colors of Okabe and Ito 2008, told apart with every kind of color vision.
COLORS = {
    "left": "#999999",
    "trapezoid": "#cc79a7",
    "midpoint": "#d55e00",
    "GL2": "#e69f00",
    "GL3": "#009e73",
    "GL4": "#56b4e9",
    "GL5": "#0072b2",
    "event split": "#000000",
}
NAMES = {"midpoint": "midpoint = GL1", "event split": "km.ledger: split at kinks"}
BLUE, RED = "#0072b2", "#d55e00"
STYLE = {"svg.hashsalt": "path_equivalence", "svg.fonttype": "path", "text.parse_math": False, "font.size": 10}


def draw_rules(results: dict) -> Figure:
    """Median over seeds of the largest residual, for each activation and rule."""
    last = [float(np.median(own["change"][str(STEPS[-1])])) for own in results["residuals"].values()]
    changes = f"{min(last):.1g} to {max(last):.1g}"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08), facecolor="white")
        for axes, (activation, own) in zip(
            figure.subplots(1, 3, sharey=True), results["residuals"].items(), strict=True
        ):
            ends = []
            for rule, color in COLORS.items():
                if rule not in own:
                    continue
                values = [float(np.median(own[rule][str(steps)])) for steps in STEPS]
                rates = [TIME / steps for steps in STEPS]
                axes.plot(rates, values, "o-", color=color, lw=1.6, ms=4)
                ends.append((values[0], NAMES.get(rule, rule), color))
            _name(axes, ends)
            axes.set_title(activation, loc="left", color=TEXT)
            axes.set(
                xscale="log",
                yscale="log",
                xlabel="learning rate",
                xlim=(TIME / STEPS[-1] / 1.15, 1.1 * TIME / STEPS[0]),
            )
            axes.set_xticks([TIME / steps for steps in STEPS], [f"{TIME / steps:g}" for steps in STEPS])
            axes.set_xticks([], minor=True)
            axes.set_yticks([10.0**-k for k in range(2, 17, 2)])
            _plain(axes)
            axes.yaxis.set_major_formatter(FuncFormatter(_power))
            axes.set_ylim(4e-17, 1.0)
        figure.axes[0].set_ylabel("largest residual of the outputs")
        figure.supxlabel(
            f"64-32-32-10 on digits, gradient descent for a time of {TIME:g} (learning rate times steps), median of"
            f" {results['seeds']} seeds (km.ledger: {results['exact_seeds']}); outputs change by {changes}",
            x=0.01,
            ha="left",
            fontsize=9,
            color=GRAY,
        )
    return figure


def _name(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of curves, in decades of their own where curves meet."""
    ends = sorted(ends)
    placed = [math.log10(max(value, 1e-16)) for value, *_ in ends]
    for _ in range(200):
        for i in range(1, len(placed)):
            gap = 0.75 - (placed[i] - placed[i - 1])
            if gap > 0:
                placed[i - 1] -= gap / 2
                placed[i] += gap / 2
        placed = [min(max(place, -16.0), -0.4) for place in placed]
    right = 1.15 * TIME / STEPS[0]
    for place, (_, name, color) in zip(placed, ends, strict=True):
        axes.text(right, 10**place, name, color=color, va="center", fontsize=9)


def draw_machines(results: dict) -> Figure:
    """Relative L2 error of every machine, rich training at the left, lazy training at the right."""
    regimes = results["machines"]
    names = list(next(iter(regimes.values()))["errors"])
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(11.2, 0.42 * len(names) + 1.7),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
            facecolor="white",
        )
        for axes, (regime, own) in zip(figure.subplots(1, 2, sharey=True), regimes.items(), strict=True):
            for place, name in enumerate(names):
                values = own["errors"][name]["values"]
                dots = [value for value in values if not isinstance(value, str)]
                color = RED if name.startswith("null") else BLUE
                axes.plot(dots, [place] * len(dots), "o", color=color, alpha=0.45, ms=6, mew=0)
                if own["errors"][name]["diverged"]:
                    text = f"diverges for {own['errors'][name]['diverged']} of {len(values)} seeds"
                    axes.text(3e-16, place, text, color=RED, va="center", fontsize=9)
            axes.axvline(1.0, color=GRAY, lw=0.8, dashes=(4, 3))
            axes.set(xscale="log", xlim=(1e-16, 30), xlabel="relative L2 error on test rows")
            axes.set_xticks([10.0**-k for k in range(0, 16, 3)])
            axes.xaxis.set_major_formatter(FuncFormatter(_power))
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            share = 100 * own["movement"]["mean"]
            moved = f"{share:.0f}%" if share >= 10 else f"{share:.1f}%"
            axes.set_title(f"{regime}: the kernel moves by {moved} of its size", loc="left", color=TEXT, fontsize=10)
            _plain(axes)
        figure.supxlabel(
            f"One dot a seed, {results['seeds']} seeds; dashed: the error of predicting no change. The last three are"
            " sums over the run, no fits, the last two on 4 and 8 test rows.",
            x=0.01,
            ha="left",
            fontsize=9,
            color=GRAY,
        )
    return figure


def _power(value: float, _: int) -> str:
    return "1" if value == 1 else f"1e{round(math.log10(value))}".replace("-", "\N{MINUS SIGN}")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(left=False, color=LINE, labelcolor=TEXT)
    axes.tick_params(which="minor", left=False, bottom=False)
    axes.grid(axis="both", color=LINE, lw=0.7)
    axes.set_axisbelow(True)


def files(name: str, figure: Figure) -> dict[str, bytes]:
    """A figure as .svg and .png."""
    found = {}
    with mpl.rc_context(STYLE):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 110})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, facecolor=figure.get_facecolor(), **options)
            found[f"{name}.{kind}"] = stream.getvalue()
    return found
