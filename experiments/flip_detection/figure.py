"""Figure: AUROC of every score by kind and rate of noise, one dot per seed and a bar at the mean."""

import pandas as pd
from matplotlib.lines import Line2D

from experiments.flip_detection.configs import KINDS, SCORES, Cell
from kernelmem.plotting import BLUE, GRAY, GREEN, ORANGE, PURPLE, figure_files, figure_style, new_figure

__all__ = ["draw"]

SHOWN = {"suspicion": BLUE, "margin": ORANGE, "cumulative_loss": GREEN, "el2n": PURPLE, "area_under_margin": GRAY}


def draw(frame: pd.DataFrame, cells: list[Cell], seeds: int) -> dict[str, bytes]:
    """Draw one panel per kind of noise, with a group of dots per rate, as figure.svg and figure.png."""
    kinds = [kind for kind in KINDS if any(cell.kind == kind for cell in cells)]
    with figure_style():
        figure = new_figure(2.6 * len(kinds) + 0.6, 4.4)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            rates = [cell for cell in cells if cell.kind == kind]
            for place, cell in enumerate(rates):
                for k, (score, color) in enumerate(SHOWN.items()):
                    values = frame[(frame.cell == cell.name) & (frame.score == score)].auroc
                    x = place + (k - (len(SHOWN) - 1) / 2) * 0.16
                    axes.plot([x] * len(values), values, "o", color=color, alpha=0.45, markeredgewidth=0)
                    axes.plot([x - 0.06, x + 0.06], [values.mean()] * 2, color=color, linewidth=2)
            axes.axhline(0.5, color=GRAY, linewidth=0.8, dashes=(4, 2.5))
            axes.set_xticks(range(len(rates)), [f"{cell.rate:.0%}" for cell in rates])
            axes.set(xlim=(-0.5, len(rates) - 0.5), xlabel="labels flipped", title=f"{kind} flips")
            axes.tick_params(left=False, bottom=False)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="y")
        panels[0].set(ylim=(0.48, 1.01), ylabel="AUROC for the flips (dashed: chance)")
        handles = [Line2D([], [], color=color, marker="o") for color in SHOWN.values()]
        figure.legend(handles, [SCORES[score] for score in SHOWN], loc="outside lower center", ncols=3)
        figure.suptitle(f"Flipped labels found by each score: one dot per seed ({seeds}), bar at the mean", fontsize=11)
        return figure_files(figure, "figure")
