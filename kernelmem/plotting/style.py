"""The common look of all figures: palette, matplotlib parameters, ticks, error bands, files.

matplotlib is imported when the first figure is drawn, since it is slow to import.
"""

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kernelmem.core.checks import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Blue and orange are distinguishable with every kind of color vision; they carry the main contrast of every figure.
BLUE, ORANGE, GREEN, PURPLE = "#3b6fc4", "#d9780f", "#3d8b57", "#7b4fa3"
TEXT, SOFT, GRAY, LINE, PALE, PAGE = "#1d2433", "#5b6475", "#8a93a3", "#d5d9e1", "#eef0f4", "#fefefd"
DASHED = (4, 2.5)
RC: Mapping[str, Any] = {
    "svg.hashsalt": "kernelmem",  # equal figures give equal files
    "text.parse_math": False,  # labels come from users
    "font.size": 10,
    "text.color": TEXT,
    "figure.facecolor": PAGE,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.8,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titlecolor": TEXT,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}


def style(changes: Mapping[str, object] = MappingProxyType({})) -> AbstractContextManager[None]:
    """Return a context manager that sets the matplotlib parameters of all figures, overridden by ``changes``."""
    import matplotlib as mpl

    return mpl.rc_context({**RC, **changes})  # pyright: ignore[reportArgumentType]


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of ``width`` × ``height`` inches that notebooks display. Call it within :func:`style`."""
    from kernelmem.plotting.notebook_figure import NotebookFigure

    return NotebookFigure(figsize=(width, height), layout="constrained")


def as_array(values: ArrayLike) -> np.ndarray:
    """Return the values as a NumPy array; tensors may be on any device and are detached."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def band(
    axes: "Axes", x: np.ndarray, middle: np.ndarray, low: np.ndarray, high: np.ndarray, *,
    color: str, label: str, linestyle: str = "-",
) -> None:  # fmt: skip
    """Draw the curve ``middle`` over ``x`` and fill the region between ``low`` and ``high``.

    All four arrays are (A,); with at most 30 points each point has a marker.
    """
    marker = "o" if len(x) <= 30 else ""
    axes.plot(x, middle, linestyle, marker=marker, markersize=2.8, linewidth=1.4, color=color, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)


def number_ticks(axis: "Axis", limits: tuple[float, float]) -> None:
    """Label an axis with plain numbers, also if it is logarithmic and spans less than two decades.

    ``limits`` are its smallest and largest value.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    low, high = limits
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}")))
    if axis.get_scale() != "linear":
        axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        if low > 0 and high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))


def figure_files(figure: "Figure", name: str) -> dict[str, bytes]:
    """Return {file name: content} with the figure as SVG and PNG; the same figure gives the same bytes."""
    files = {}
    for kind, options in {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 130}}.items():
        stream = io.BytesIO()
        with style():
            figure.savefig(stream, format=kind, **options)
        files[f"{name}.{kind}"] = stream.getvalue()
    return files
