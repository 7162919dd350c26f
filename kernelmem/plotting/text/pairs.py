"""Figure of pairs of canaries: differences of scores, and bounds on the privacy loss next to their ceilings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, SOFT, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tier = tuple[str, np.ndarray, float, float]  # name, differences, bound, ceiling


def paired_test_figure(tiers: Sequence[Tier], *, title: str) -> "Figure":
    """Draw the differences between inserted canaries and their twins by number of copies, and the bounds with ceilings.

    Args:
        tiers: name, differences (k,) of scores, lower bound on epsilon, and its ceiling, of each number of copies; then the
            same of all pairs, whose differences are not drawn.
        title: title of the figure.
    """
    with style():
        figure = new_figure(8.6, 3.7)
        figure.suptitle(title, x=0.01, ha="left")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for place, (_, difference, _, _) in enumerate(tiers[:-1]):
            ordered = np.sort(difference)
            # so that equal values do not hide each other
            places = place + 0.1 * np.sin(2.4 * np.arange(len(ordered)))
            for chosen, color in ((ordered > 0, BLUE), (ordered == 0, GRAY), (ordered < 0, ORANGE)):
                left.plot(places[chosen], ordered[chosen], "o", color=color, alpha=0.6, markeredgewidth=0)
            text = f"{int((ordered > 0).sum())} of {int((ordered != 0).sum())}"
            left.text(
                place,
                1.0,
                text,
                color=SOFT,
                fontsize=8.5,
                ha="center",
                va="bottom",
                transform=left.get_xaxis_transform(),
            )
        left.axhline(0, color=GRAY, linewidth=1, dashes=DASHED)
        left.set_xticks(range(len(tiers) - 1), [name for name, _, _, _ in tiers[:-1]])
        left.set_xlim(-0.6, len(tiers) - 1.4)
        left.set(xlabel="copies (above: pairs in which the inserted canary has the larger score)")
        left.set(ylabel="score, inserted minus twin")
        places = np.arange(len(tiers))
        bounds, ceilings = [tier[2] for tier in tiers], [tier[3] for tier in tiers]
        right.bar(places, bounds, 0.55, color=BLUE, linewidth=0, label="lower bound on epsilon")
        right.hlines(ceilings, places - 0.4, places + 0.4, color=ORANGE, linewidth=1.8, label="if all pairs were right")
        right.set_xticks(places, [name for name, _, _, _ in tiers])
        right.set_ylim(0, 1.35 * max(0.5, *ceilings))
        right.set(xlabel="copies", ylabel="privacy loss (nats)")
        right.legend(loc="upper left")
    return figure
