"""Figures of a risk curve predicted by theory, alone or with its simulation."""

# ruff: noqa: D102 (attributes of protocols)

from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, SOFT, as_array, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class CurveLike(Protocol):
    """Fields of a theoretical curve that :func:`curve_figure` reads.

    ``axis``, ``test`` and ``train`` (G,) are the G values of the horizontal axis, the test risk and the training risk.
    """

    @property
    def name(self) -> str: ...
    @property
    def axis_name(self) -> str: ...
    @property
    def axis(self) -> Tensor: ...
    @property
    def test(self) -> Tensor: ...
    @property
    def train(self) -> Tensor | None: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def exact(self) -> bool: ...


def curve_figure(curve: CurveLike) -> "Figure":
    """Return a figure of test and training risk against the values of ``curve.axis``."""
    with style():
        figure = new_figure(6.4, 3.8)
        _draw_curve(figure.add_subplot(), curve)
        return figure


def simulation_figure(curve: CurveLike, mean: Tensor, se: Tensor, *, repetitions: int) -> "Figure":
    """Return a figure of the theoretical risks and of simulated test risks.

    ``mean`` and ``se`` (G,) are the mean and standard error over ``repetitions`` simulations at the G values of the
    axis; bars show two standard errors.
    """
    with style():
        figure = new_figure(6.4, 3.8)
        axes = figure.add_subplot()
        label = f"simulated, {repetitions} draws, ± 2 standard errors"
        error_bar_style = {"yerr": 2 * as_array(se), "fmt": "o", "color": ORANGE, "linewidth": 1.2, "label": label}
        axes.errorbar(as_array(curve.axis), as_array(mean), **error_bar_style)
        _draw_curve(axes, curve)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)  # below: the bars leave no free corner
        return figure


def _draw_curve(axes: "Axes", curve: CurveLike) -> None:
    """Draw test and training risk and the interpolation threshold of a theoretical curve.

    The vertical axis is logarithmic; the horizontal axis is too, except near 0 if its first value is 0.
    """
    axis, test_risk = as_array(curve.axis), as_array(curve.test)
    if axis[0] > 0:
        axes.set_xscale("log")
    elif len(axis) > 1:  # time 0 is shown, the rest is logarithmic
        axes.set_xscale("symlog", linthresh=float(axis[1]))
    axes.set_yscale("log")
    if curve.train is not None:
        _draw_line(axes, axis, as_array(curve.train), "training rows", GRAY)
    _draw_line(axes, axis, test_risk, "new rows", BLUE)
    finite_test = test_risk[np.isfinite(test_risk)]
    if len(finite_test):
        axes.set_ylim(bottom=max(axes.get_ylim()[0], float(finite_test.min()) / 30))
    if curve.threshold is not None:
        axes.axvline(curve.threshold, color=SOFT, linewidth=0.8, dashes=DASHED, label="threshold")
    axes.set(xlabel=curve.axis_name, ylabel="mean squared error")
    axes.set_title(f"{curve.name[:1].upper()}{curve.name[1:]} ({'exact' if curve.exact else 'asymptotic'})")
    number_ticks(axes.xaxis, axes.get_xlim())
    number_ticks(axes.yaxis, axes.get_ylim())
    axes.legend()


def _draw_line(axes: "Axes", x: np.ndarray, values: np.ndarray, label: str, color: str) -> None:
    # Zeros have no place on a logarithmic axis, infinities none on any: the line has a gap there.
    drawable = np.isfinite(values) & (values > 0)
    if drawable.any():
        axes.plot(x, np.where(drawable, values, np.nan), color=color, label=label)
