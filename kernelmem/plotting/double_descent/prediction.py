"""Figure of a predicted learning curve: expected error, range over initial networks, GCV, measurements."""

# ruff: noqa: D102 (attributes of protocols)

import textwrap
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.plotting.style import BLUE, GRAY, ORANGE, as_array, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS_LABELS = {"samples": "training examples"}
TICKS = 9
TITLE_WIDTH = 80  # characters


class PredictionLike(Protocol):
    """Fields of a prediction that :func:`prediction_figure` reads.

    The tensors have one value for each of the A points of ``axis``; ``by_seed`` is (S, A) for S seeds.
    """

    @property
    def axis_name(self) -> str: ...
    @property
    def axis(self) -> Tensor: ...
    @property
    def expected(self) -> Tensor: ...
    @property
    def low(self) -> Tensor: ...
    @property
    def high(self) -> Tensor: ...
    @property
    def noisy(self) -> Tensor: ...
    @property
    def gcv(self) -> Tensor | None: ...
    @property
    def by_seed(self) -> Tensor: ...
    @property
    def setting(self) -> str: ...


def prediction_figure(prediction: PredictionLike, measured: ArrayLike | None = None) -> "Figure":
    """Draw the predicted curve and the measured errors, (A,) or (runs, A), as means with 95 % intervals over runs (Student's t).

    Raises:
        InputError: ``measured`` does not have one of these shapes.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    runs = None if measured is None else _as_runs(measured, len(prediction.axis))
    axis = as_array(prediction.axis)
    with style():
        figure = new_figure(6.4, 3.8)
        axes = figure.add_subplot()
        axes.set_xscale("log" if axis[0] > 0 else "linear")
        axes.set_yscale("log")
        if len(prediction.by_seed) > 1:
            low, high = _with_gaps(prediction.low), _with_gaps(prediction.high)
            axes.fill_between(axis, low, high, color=BLUE, alpha=0.18, linewidth=0, label="range over initial networks")
        axes.plot(axis, _with_gaps(prediction.expected), "-", color=BLUE, label="expected, clean labels")
        if prediction.gcv is not None:
            axes.plot(
                axis, _with_gaps(prediction.noisy), "--", color=GRAY, linewidth=1.1, label="expected, noisy labels"
            )
            axes.plot(
                axis, _with_gaps(prediction.gcv), "x", color=GRAY, markersize=5, label="GCV of the training examples"
            )
        if runs is not None:
            n_runs = len(runs)
            error_bars = stdtrit(n_runs - 1, 0.975) * runs.std(0, ddof=1) / n_runs**0.5 if n_runs > 1 else None
            label = f"measured, {n_runs} run{'s' * (n_runs != 1)}" + (", 95 % intervals" if n_runs > 1 else "")
            axes.errorbar(axis, runs.mean(0), yerr=error_bars, fmt="o", color=ORANGE, linewidth=1.2, label=label)
        number_ticks(axes.xaxis, axes.get_xlim())
        number_ticks(axes.yaxis, axes.get_ylim())
        axes.xaxis.set_major_locator(FixedLocator(axis[:: -(-len(axis) // TICKS)].tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(textwrap.fill(f"Predicted before training: {prediction.setting}", TITLE_WIDTH))
        axes.set(xlabel=AXIS_LABELS.get(prediction.axis_name, prediction.axis_name), ylabel="mean squared error")
        axes.legend()
        return figure


def _as_runs(measured: ArrayLike, n_points: int) -> np.ndarray:
    """Return ``measured`` as an array (runs, n_points); a vector (n_points,) becomes one run.

    An InputError is raised for other shapes.
    """
    runs = as_array(as_tensor(measured, "measured", dtype=torch.float64))
    runs = runs[None] if runs.ndim == 1 else runs
    if runs.ndim != 2 or runs.shape[1] != n_points:
        raise InputError(
            f"measured of shape {runs.shape}",
            expected=f"({n_points},) or (runs, {n_points})",
            hint="pass one value for each point of the predicted axis",
        )
    return runs


def _with_gaps(values: Tensor) -> np.ndarray:
    """Return the values as an array in which infinite values are NaN, so that the line has a gap there."""
    array = as_array(values)
    return np.where(np.isfinite(array), array, np.nan)
