"""Figure of token losses: bits along documents, and bits per token of every document."""

from typing import TYPE_CHECKING

import numpy as np

from kernelmem.plotting.style import BLUE, DASHED, ORANGE, SOFT, band, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = 40  # of positions, at most
FEWEST = 5  # documents in a block, below which quartiles say nothing


def token_losses_figure(bits: np.ndarray, positions: np.ndarray, documents: np.ndarray, *, title: str) -> "Figure":
    """Draw mean bits of tokens against their position, with quartiles of documents, and bits per token of all documents.

    Args:
        bits: (N,) bits of N tokens.
        positions: (N,) number of each token in its document, from 0.
        documents: (N,) number of its document, from 0.
        title: title of the figure.
    """
    with style():
        figure = new_figure(8.6, 3.6)
        along, per_document = figure.subplots(1, 2, width_ratios=[3, 2])
        figure.suptitle(title, x=0.01, ha="left")
        if len(bits):
            _draw_along(along, bits, positions, documents)
            counts = np.bincount(documents)
            means = (np.bincount(documents, weights=bits) / np.maximum(counts, 1))[counts > 0]
            per_document.hist(means, bins=min(40, max(5, len(means) // 8)), color=BLUE, linewidth=0)
            middle = float(np.median(means))
            per_document.axvline(middle, color=ORANGE, linewidth=1.2, dashes=DASHED)
            right = middle < (means.min() + means.max()) / 2
            per_document.text(
                middle, 1.0, f" median {middle:.2f} ", color=SOFT, fontsize=9, va="bottom",
                ha="left" if right else "right", transform=per_document.get_xaxis_transform(),
            )  # fmt: skip
        along.set(xlabel="position in the document (tokens)", ylabel="bits per token", ylim=(0, None))
        along.grid(axis="y")
        per_document.set(xlabel="bits per token of a document", ylabel="documents")
        per_document.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_along(axes, bits: np.ndarray, positions: np.ndarray, documents: np.ndarray) -> None:
    """Draw mean and quartiles of the documents' bits per token in blocks of positions; blocks of few documents end it."""
    edges = np.unique(np.linspace(0, int(positions.max()) + 1, BLOCKS + 1).round().astype(int))
    block = np.searchsorted(edges, positions, side="right") - 1
    middles, means, quartiles = [], [], []
    for k in range(len(edges) - 1):
        chosen = block == k
        counts = np.bincount(documents[chosen])
        if (counts > 0).sum() < FEWEST:
            continue
        values = (np.bincount(documents[chosen], weights=bits[chosen]) / np.maximum(counts, 1))[counts > 0]
        middles.append(float(positions[chosen].mean()))
        means.append(float(bits[chosen].mean()))
        quartiles.append(np.quantile(values, [0.25, 0.75]))
    if middles:
        low, high = np.array(quartiles).T
        band(axes, np.array(middles), np.array(means), low, high, color=BLUE, label="mean, and quartiles of documents")
        axes.legend(loc="lower right")
        number_ticks(axes.xaxis, (0.0, float(edges[-1])))
    else:
        axes.plot(positions, bits, ".", color=BLUE)
