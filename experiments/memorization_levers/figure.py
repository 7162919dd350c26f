"""Figure: memorization and leakage against each lever, mean and 95 % interval over seeds."""

from collections.abc import Mapping

import pandas as pd

from kernelmem.plotting import BLUE, GREEN, ORANGE, figure_files, figure_style, new_figure
from kernelmem.statistics import mean_interval

__all__ = ["draw"]


def draw(frame: pd.DataFrame, names: Mapping[str, str]) -> dict[str, bytes]:
    """Draw one column per lever: memorization of clean and flipped rows above, AUC of the attack below."""
    levers = list(frame.lever.unique())
    with figure_style():
        figure = new_figure(2.5 * len(levers) + 1, 5.0)
        axes = figure.subplots(2, len(levers), sharex="col", sharey="row", squeeze=False)
        for column, lever in enumerate(levers):
            runs = frame[frame.lever == lever]
            values = list(runs.value.unique())
            for metric, color, row in (("flipped", ORANGE, 0), ("clean", BLUE, 0), ("auc", GREEN, 1)):
                intervals = [mean_interval(runs.loc[runs.value == value, metric].tolist()) for value in values]
                means = [interval.value for interval in intervals]
                errors = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
                axes[row, column].errorbar(
                    range(len(values)), means, errors, color=color, marker="o", capsize=2, label=names[metric]
                )
            axes[1, column].axhline(0.5, color="#8a93a3", lw=0.8, ls=(0, (4, 2.5)))
            axes[1, column].set(xlabel=lever, xticks=range(len(values)))
            axes[1, column].set_xticklabels([f"{value:g}" for value in values])
        axes[0, 0].set_ylabel("memorization")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        axes[1, 0].set_ylabel("AUC of LiRA (0.5: guessing)")
        return figure_files(figure, "figure")
