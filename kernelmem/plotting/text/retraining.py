"""Figures of language models trained with and without documents: counterfactual memorization, capacity."""

from typing import TYPE_CHECKING

import numpy as np

from kernelmem.core.checks import ArrayLike
from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, SOFT, as_array, band, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def counterfactual_figure(
    bits_with: ArrayLike,
    bits_without: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    permuted: ArrayLike,
    *,
    level: float,
) -> "Figure":
    """Draw bits of n documents with and without training on them, and the differences in ascending order.

    Args:
        bits_with: mean bits of each document under models that were trained on it.
        bits_without: mean bits under models that were not.
        low: lower ends of the intervals of the difference.
        high: upper ends.
        permuted: differences with the masks of the models permuted, the control.
        level: confidence level of the intervals.
    """
    seen, unseen, low, high, permuted = map(as_array, (bits_with, bits_without, low, high, permuted))
    memorization = unseen - seen
    order, ranks = np.argsort(memorization, kind="stable"), np.arange(1, len(memorization) + 1)
    with style():
        figure = new_figure(8.6, 4.0)
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
        ends = [float(min(seen.min(), unseen.min())), float(max(seen.max(), unseen.max()))]
        left.plot(ends, ends, color=GRAY, linewidth=1, dashes=DASHED)
        left.plot(unseen, seen, "o", color=BLUE, markersize=3, alpha=0.7)
        left.set(xlabel="bits without training on it", ylabel="bits with training on it")
        left.set_title("Each document under the models")
        band(
            right, ranks, memorization[order], low[order], high[order],
            color=BLUE, label=f"memorization, {level:.0%} intervals",
        )  # fmt: skip
        right.plot(ranks, np.sort(permuted), color=SOFT, dashes=DASHED, label="control: masks of the models permuted")
        right.axhline(0.0, color=SOFT, linewidth=0.6)
        right.set_xlim(1, max(2, len(memorization)))
        right.set(xlabel="documents, least memorized first", ylabel="bits without minus bits with")
        right.set_title("Counterfactual memorization")
        right.legend(loc="upper left")
        return figure


def capacity_figure(
    strings: ArrayLike, memorized: ArrayLike, fresh: ArrayLike, offered: ArrayLike, *, parameters: int
) -> "Figure":
    """Draw memorized bits per parameter against the number of strings, with fresh strings as control.

    Args:
        strings: (A,) numbers of strings, increasing.
        memorized: (A, R) bits that R models memorized of the strings they were trained on.
        fresh: (A, R) the same of fresh strings.
        offered: (A,) information of the strings in bits.
        parameters: number of parameters of a model.
    """
    n, memorized, fresh, offered = map(as_array, (strings, memorized, fresh, offered))
    with style():
        figure = new_figure(6.2, 4.0)
        axes = figure.add_subplot()
        axes.plot(n, offered / parameters, color=GRAY, linewidth=1, dashes=DASHED, label="information of the strings")
        for values, color, label in ((memorized, BLUE, "memorized"), (fresh, ORANGE, "control: fresh strings")):
            axes.plot(n, values.mean(1) / parameters, "-o", color=color, label=label)
            axes.plot(n, values / parameters, ".", color=color, markersize=3, alpha=0.6)
        top = float(max(memorized.max(), fresh.max(), 0.0)) / parameters
        axes.set_ylim(min(0.0, float(fresh.min()) / parameters) - 0.05 * max(top, 1e-3), 1.25 * max(top, 1e-3))
        axes.set_xscale("log")
        number_ticks(axes.xaxis, (float(n[0]), float(n[-1])))
        axes.axhline(0.0, color=SOFT, linewidth=0.6)
        axes.set(xlabel="random strings trained on", ylabel="bits per parameter")
        axes.set_title("Capacity: memorized information")
        axes.legend(loc="best")
        return figure
