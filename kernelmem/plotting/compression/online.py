"""Figure of an online code: bits of each label in the order of the code, and their sum."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def online_code_figure(bits: Tensor, wrong: Tensor, position: Tensor, uniform: float) -> "Figure":
    """Draw the cumulative bits of an online code over its rows, and the bits of each row.

    Args:
        bits: (n,) bits of each row.
        wrong: (n,) bool, True where the most probable class was not the label.
        position: (n,) place of each row in the order of the code.
        uniform: bits of all labels before anything is known, n log₂ C.
    """
    order = np.argsort(as_array(position), kind="stable")
    ordered, missed = as_array(bits)[order], as_array(wrong)[order]
    n, total = len(ordered), float(ordered.sum())
    places = np.arange(1, n + 1)
    with style():
        figure = new_figure(9.4, 3.6)
        cumulative, single = figure.subplots(1, 2)
        cumulative.plot([0, n], [0, uniform], color=GRAY, dashes=DASHED, label=f"uniform labels: {uniform:,.0f} bits")
        cumulative.plot(
            np.arange(n + 1), np.append(0, ordered.cumsum()), color=BLUE, label=f"online code: {total:,.0f} bits"
        )
        cumulative.set(
            xlabel="labels coded", ylabel="bits so far", xlim=(0, n), ylim=(0, 1.05 * max(uniform, total, 1))
        )
        cumulative.set_title("Cumulative length")
        cumulative.legend(loc="upper left")
        for chosen, label, color, size in (
            (~missed, "predicted correctly", BLUE, 2.2),
            (missed, "predicted wrongly", ORANGE, 3),
        ):
            single.plot(
                places[chosen], ordered[chosen], "o", color=color, markersize=size, markeredgewidth=0, alpha=0.7,
                label=f"{label}: {int(chosen.sum()):,}, {float(ordered[chosen].sum()):,.0f} bits",
            )  # fmt: skip
        single.axhline(uniform / n, color=GRAY, dashes=DASHED, linewidth=1.1)
        single.set(xlabel="place in the code", ylabel="bits of the label", xlim=(0, n + 1))
        single.set_title("Bits of each label")
        single.legend(loc="upper right")
        single.set_ylim(0, 1.3 * max(float(ordered.max()), uniform / n, 1))
        return figure
