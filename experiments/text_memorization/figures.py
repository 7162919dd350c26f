"""Figure: greedy recall of secrets against the number of copies, by size of the model and by epochs."""

import pandas as pd

from kernelmem.plotting import BLUE, GRAY, ORANGE, figure_files, figure_style, new_figure

__all__ = ["dose_figure"]

COLORS = (GRAY, BLUE, ORANGE)


def dose_figure(records: pd.DataFrame) -> dict[str, bytes]:
    """Return dose.svg and dose.png; points are seeds, lines their means."""
    inserted = records[records.copies != "twins"].copy()
    inserted["copies"] = inserted.copies.astype(int)
    size, epochs = _most_frequent(inserted.hidden), _most_frequent(inserted.epochs)
    panels = [
        (inserted[inserted.epochs == epochs], "hidden", f"Size of the state, {epochs} epochs"),
        (inserted[inserted.hidden == size], "epochs", f"Epochs, state of {size}"),
    ]
    with figure_style({}):
        figure = new_figure(7.6, 3.2)
        for axes, (cells, column, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            for color, (value, cell) in zip(COLORS, cells.groupby(column), strict=False):
                mean = cell.groupby("copies").greedy.mean()
                axes.plot(mean.index, mean, "-", color=color, label=f"{value}")
                axes.plot(cell.copies, cell.greedy, "o", color=color, ms=3, alpha=0.7)
            axes.set_xscale("log", base=2)
            ticks = sorted(set(cells.copies))
            axes.set_xticks(ticks, [str(k) for k in ticks])
            axes.set(xlabel="copies of a canary", ylim=(-0.03, 1.03), title=title)
            axes.legend()
        figure.axes[0].set_ylabel("secrets recalled greedily")
        return figure_files(figure, "dose")


def _most_frequent(values: pd.Series) -> int:
    """Return the value in most cells, which the other variable is varied at."""
    return int(values.mode()[0])
