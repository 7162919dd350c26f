"""Figure of extraction: shares of documents by context, next to those of controls."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.plotting.style import BLUE, GRAY, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rate = tuple[float, float, float]  # estimate, lower and upper limit
LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GRAY, "D"))  # of documents, unseen documents, reference


def extraction_figure(
    panels: Mapping[str, Mapping[str, Sequence[Rate]]], contexts: Sequence[str], *, title: str
) -> "Figure":
    """Draw shares of documents with an extracted window, with intervals, for every context.

    Args:
        panels: name of each panel (such as "greedy") to name of each group of documents (at most 3) to one rate per context.
        contexts: names of contexts.
        title: title of the figure.
    """
    with style():
        figure = new_figure(max(4.2, 1.2 + (0.6 + 0.42 * len(contexts)) * 2) * max(1, len(panels)) / 1.25, 3.7)
        figure.suptitle(title, x=0.01, ha="left")
        all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axes, (panel, groups) in zip(all_axes, panels.items(), strict=True):
            for k, ((name, rates), (color, marker)) in enumerate(zip(groups.items(), LOOKS, strict=False)):
                value, low, high = np.array(rates, dtype=float).T
                places = np.arange(len(contexts)) + 0.2 * (k - (len(groups) - 1) / 2)
                error = [value - low, high - value]
                axes.errorbar(
                    places,
                    value,
                    error,
                    fmt=marker,
                    color=color,
                    capsize=2.5,
                    markersize=4.5,
                    linewidth=1.4,
                    label=name,
                )
            axes.set_xticks(range(len(contexts)), contexts)
            axes.set_xlim(-0.6, len(contexts) - 0.4)
            axes.set(xlabel="text before the prefix", title=panel)
            axes.grid(axis="y")
        all_axes[0].set_ylim(0, None)
        all_axes[0].set_ylabel("share of documents")
        all_axes[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=len(LOOKS))
    return figure
