"""Figure of the rank agreement of memorization scores, with each other and with a reference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernelmem.core.checks import ArrayLike
from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, PAGE, TEXT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.46  # inches
DARK = 0.55  # correlation from which the number in a cell is light


def score_table_figure(
    names: Sequence[str],
    correlation: ArrayLike,
    *,
    agreement: ArrayLike | None = None,
    reference_name: str = "",
    ceiling: float | None = None,
) -> "Figure":
    """Draw the Spearman correlations of k scores as a matrix, and next to it the agreement with a reference.

    Args:
        names: of the k scores, the rows of the matrix.
        correlation: (k, k).
        agreement: (k, 3) correlation with the reference, and its interval; None: no second panel.
        reference_name: label of the second panel.
        ceiling: largest correlation that the noise of the reference admits, drawn as a line.
    """
    matrix = as_array(correlation)
    k = len(names)
    label_width = max(0.075 * max(len(name) for name in names), 2.9 - CELL * k)  # at least as wide as the title
    panel = 0 if agreement is None else 3.4
    with style():
        figure = new_figure(CELL * k + label_width + panel + 0.8, CELL * k + 1.3)
        widths = [CELL * k] if agreement is None else [CELL * k, panel]
        panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        _draw_matrix(panels[0], names, matrix)
        if agreement is not None:
            _draw_agreement(panels[1], as_array(agreement), reference_name, ceiling)
        return figure


def _draw_matrix(axes: "Axes", names: Sequence[str], matrix: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    k = len(names)
    colors = LinearSegmentedColormap.from_list("agreement", [ORANGE, PAGE, BLUE])
    axes.imshow(matrix, cmap=colors, vmin=-1, vmax=1, aspect="auto")
    for i in range(k):
        for j in range(k):
            light = abs(matrix[i, j]) > DARK
            text = (
                f"{round(float(matrix[i, j]), 2) + 0.0:.2f}".replace("0.", ".")
                .replace("-", "\N{MINUS SIGN}")
                .replace("1.00", "1")
            )
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=PAGE if light else TEXT)
    axes.set_yticks(range(k), names)
    axes.set_xticks(range(k), [str(i + 1) for i in range(k)])
    axes.set_yticklabels([f"{name}  {i + 1}" for i, name in enumerate(names)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Rank correlation of the scores", loc="right" if k < 5 else "left")


def _draw_agreement(axes: "Axes", agreement: np.ndarray, reference_name: str, ceiling: float | None) -> None:
    k = len(agreement)
    places = np.arange(k)
    axes.hlines(places, agreement[:, 1], agreement[:, 2], color=BLUE, linewidth=1.4)
    axes.plot(agreement[:, 0], places, "o", color=BLUE, markersize=5)
    axes.axvline(0, color=GRAY, linewidth=0.8)
    if ceiling is not None:
        axes.axvline(ceiling, color=ORANGE, linewidth=1.2, dashes=DASHED)
    axes.set_ylim(k - 0.5, -0.5)  # the rows of the matrix
    axes.set_xlim(min(-0.05, float(agreement[:, 1].min()) - 0.05), 1.03)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_title(f"Agreement with {reference_name}" if len(reference_name) < 30 else "Agreement with the reference")
    note = "" if ceiling is None else f"\ndashed: ceiling {ceiling:.2f}, by the noise of the reference"
    axes.set_xlabel(f"Spearman correlation, 95 % interval{note}")
