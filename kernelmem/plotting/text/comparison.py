"""Figure of a comparison of two models: gains of documents by group, and of the secrets of canaries by copies."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.core.checks import ArrayLike
from kernelmem.plotting.style import BLUE, GRAY, ORANGE, SOFT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 500  # per group: more hide each other


def change_figure(
    gains: Mapping[str, ArrayLike],
    means: Sequence[tuple[float, float, float]],
    canaries: Sequence[tuple[str, ArrayLike, ArrayLike]] = (),
    *,
    level: float = 0.95,
) -> "Figure":
    """Draw the gain per token of every document by group, and the gains of inserted secrets and their twins by copies.

    Args:
        gains: name of each group to the gains of its documents in bits per token, (n,).
        means: mean gain per token of each group, and its interval.
        canaries: name, copies (m,) and gains (m, 2) in bits of inserted canaries and of their twins.
        level: confidence level of the intervals.
    """
    widths = [1.2 + 0.9 * len(gains), *(1.6 + 0.55 * len(np.unique(as_array(copies))) for _, copies, _ in canaries)]
    widths = [max(width, 3.4) for width in widths]
    with style():
        figure = new_figure(sum(widths) + 0.4, 3.8)
        panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        _draw_groups(panels[0], gains, means, level)
        for axes, (name, copies, values) in zip(panels[1:], canaries, strict=True):
            _draw_canaries(axes, name, as_array(copies), as_array(values))
    return figure


def _draw_groups(
    axes: "Axes", gains: Mapping[str, ArrayLike], means: Sequence[tuple[float, float, float]], level: float
) -> None:
    axes.axhline(0, color=GRAY, linewidth=0.9)
    for place, (values, (mean, low, high)) in enumerate(zip(gains.values(), means, strict=True)):
        ordered = np.sort(as_array(values))
        shown = ordered[np.unique(np.linspace(0, len(ordered) - 1, MAX_POINTS).astype(int))]
        axes.plot(
            place - 0.14 + _spread(len(shown)), shown, "o", color=BLUE, alpha=0.35, markersize=3, markeredgewidth=0
        )
        axes.errorbar(
            [place + 0.16], [mean], [[mean - low], [high - mean]], fmt="o", color=ORANGE, capsize=3, markersize=5
        )
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in gains]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set(ylabel="gain (bits per token)")
    axes.set_title(f"Documents (orange: all tokens, {level:.0%} interval)")


def _draw_canaries(axes: "Axes", name: str, copies: np.ndarray, gains: np.ndarray) -> None:
    tiers = np.unique(copies)
    axes.axhline(0, color=GRAY, linewidth=0.9)
    for column, (color, label, side) in enumerate(((ORANGE, "inserted", -0.15), (BLUE, "twin", 0.15))):
        for place, tier in enumerate(tiers):
            values = np.sort(gains[copies == tier, column])
            axes.plot(
                place + side + _spread(len(values)),
                values,
                "o",
                color=color,
                alpha=0.4,
                markersize=3,
                markeredgewidth=0,
            )
        middle = [gains[copies == tier, column].mean() for tier in tiers]
        axes.plot(np.arange(len(tiers)) + side, middle, "-o", color=color, markersize=5, label=label)
    axes.set_xticks(range(len(tiers)), [f"{tier:g}" for tier in tiers])
    axes.set_xlim(-0.5, len(tiers) - 0.5)
    axes.set(xlabel="copies", ylabel="gain of the secret (bits)")
    axes.set_title(name if len(name) <= 30 else f"{name[:29]}…", color=SOFT)
    axes.legend(loc="best")


def _spread(n: int) -> np.ndarray:
    """Return horizontal offsets, so that equal values do not hide each other."""
    return 0.08 * np.sin(2.4 * np.arange(n))
