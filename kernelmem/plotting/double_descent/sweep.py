"""Figure of a sweep: errors, losses and memorized flips along the axis, with intervals, control, threshold and theory."""

# ruff: noqa: D102 (attributes of protocols)

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.plotting.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    TEXT,
    as_array,
    band,
    new_figure,
    number_ticks,
    style,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# (axis, values, label), drawn among the losses; a fourth entry, "test_error" or "test_loss", names the panel.
Theory = tuple[ArrayLike, ArrayLike, str] | tuple[ArrayLike, ArrayLike, str, str]
PANELS = {"Error": ("test_error", "train_error"), "Loss": ("test_loss", "train_loss")}
TITLES = {
    "model": "Width of the network",
    "depth": "Depth of the network",
    "sample": "Number of training examples",
    "epoch": "Training steps",
    "noise": "Label noise",
    "ridge": "Ridge",
    "features": "Number of random features",
    "features_sample": "Random features: number of training examples",
    "features_ridge": "Random features: ridge",
    "features_noise": "Random features: label noise",
}


class CurvesLike(Protocol):
    """Metrics by name, each of shape (S, A) for S seeds and A values of the axis."""

    def tensors(self) -> Mapping[str, Tensor]: ...


class ThresholdLike(Protocol):
    """An interpolation threshold ``value`` with its confidence interval; ``value`` is NaN if it was not found."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def epsilon(self) -> float: ...


class SweepLike(Protocol):
    """Fields of a double-descent sweep that :func:`sweep_figure` reads."""

    @property
    def kind(self) -> str: ...
    @property
    def axis(self) -> Sequence[float]: ...
    @property
    def curves(self) -> CurvesLike: ...
    @property
    def control(self) -> CurvesLike | None: ...


def sweep_figure(
    sweep: SweepLike, axis_label: str, threshold: ThresholdLike, *, theory: Sequence[Theory] = ()
) -> "Figure":
    """Return a figure of test and training error, losses, and predictions of flipped labels along the axis of a sweep.

    Lines are means over seeds, with bands that are 95 % intervals.

    Args:
        sweep: result of a double-descent sweep: metrics, metrics of the control without label noise, values of the axis.
        axis_label: label of the horizontal axis.
        threshold: interpolation threshold, marked by a vertical line.
        theory: theoretical curves (axis, values, label), drawn among the losses, or (axis, values, label, "test_error"),
            drawn among the errors.
    """
    curves, control = (
        {} if metrics is None else {name: as_array(values) for name, values in metrics.tensors().items()}
        for metrics in (sweep.curves, sweep.control)
    )
    axis = np.asarray(sweep.axis, dtype=np.float64)
    with style({"font.size": 9}):
        has_flips = bool(np.isfinite(curves["memorized_flips"]).any())
        figure = new_figure(11.4 if has_flips else 7.8, 3.9)
        panels = figure.subplots(1, 3 if has_flips else 2)
        for axes, (title, (test_metric, train_metric)) in zip(panels, PANELS.items(), strict=False):
            _draw_mean_with_interval(
                axes, axis, curves, test_metric, BLUE, "test, trained with label noise" if control else "test"
            )
            _draw_mean_with_interval(axes, axis, curves, train_metric, ORANGE, "training")
            if control:
                _draw_mean_with_interval(
                    axes, axis, control, test_metric, GRAY, "test, trained without (control)", linestyle="--"
                )
            for x, values, label, *panel in theory:
                if (panel[0] if panel else "test_loss") == test_metric:
                    axes.plot(as_array(x), as_array(values), color=PURPLE, linewidth=1.2, label=label)
            axes.set_title(title)
        if has_flips:
            _draw_mean_with_interval(
                panels[2], axis, curves, "memorized_flips", BLUE, "predicted as the wrong label (memorized)"
            )
            _draw_mean_with_interval(panels[2], axis, curves, "recovered_flips", GREEN, "predicted as the true label")
            panels[2].set_title("Share of flipped training examples")
            panels[2].set_ylim(-0.03, 1.03)
            figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower right")
        losses = np.concatenate([metrics["test_loss"].mean(0) for metrics in (curves, control) if metrics])
        if losses.min() > 0 and losses.max() / losses.min() > 30:
            panels[1].set_yscale("log")
            panels[1].set_ylim(bottom=losses.min() / 3)
            number_ticks(panels[1].yaxis, panels[1].get_ylim())
        for axes in panels:
            _draw_threshold(axes, axis, threshold)
            _set_axis_scale(axes, axis, sweep.kind)
            axes.set_xlabel(axis_label)
        # The legends lie below the panels, where they cover no curve. Panel 2 has the lines of panel 1, except for the theory.
        if theory_lines := [line for line in panels[1].lines if line.get_color() == PURPLE]:
            panels[1].legend(handles=theory_lines)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=5)
        n_seeds = len(curves["test_error"])
        figure.suptitle(f"{TITLES[sweep.kind]}: {n_seeds} seed{'s' * (n_seeds != 1)}", x=0.01, ha="left")
        return figure


def _draw_mean_with_interval(
    axes: "Axes", axis: np.ndarray, curves: Mapping[str, np.ndarray], metric: str, color: str, label: str,
    *, linestyle: str = "-",
) -> None:  # fmt: skip
    """Draw the mean over seeds of ``curves[metric]`` (S, A) with its 95 % interval (Student's t).

    S is the number of seeds and A the number of values in ``axis``.
    """
    values = curves[metric]
    n_seeds = len(values)
    mean = values.mean(0)
    finite = np.isfinite(mean)
    mean, x = mean[finite], axis[finite]
    if not len(x):
        return
    half_width = (
        stdtrit(n_seeds - 1, 0.975) * values[:, finite].std(0, ddof=1) / n_seeds**0.5
        if n_seeds > 1
        else np.zeros_like(mean)
    )
    # On a logarithmic axis a band down to 0 would fill the panel.
    low = np.maximum(mean - half_width, min(mean.min(), 0) if mean.min() <= 0 else mean.min() / 3)
    high = mean + half_width if metric.endswith("loss") else np.minimum(mean + half_width, 1)  # shares end at 1
    band(axes, x, mean, low, high, color=color, label=label, linestyle=linestyle)


def _draw_threshold(axes: "Axes", axis: np.ndarray, threshold: ThresholdLike) -> None:
    """Draw a vertical line at the interpolation threshold and shade its interval.

    Nothing is drawn if the threshold was not found (NaN).
    """
    if not np.isfinite(threshold.value):
        return
    low, high = max(threshold.low, axis[0]), min(threshold.high, axis[-1])
    is_exact = threshold.low == threshold.value == threshold.high
    label = "threshold N = n" if is_exact else f"training error {threshold.epsilon:g}"
    axes.axvline(threshold.value, color=TEXT, linewidth=0.9, linestyle=":", label=label)
    if high > low:
        axes.axvspan(low, high, color=TEXT, alpha=0.06, linewidth=0)


def _set_axis_scale(axes: "Axes", axis: np.ndarray, kind: str) -> None:
    """Make the horizontal axis logarithmic if the values of ``axis`` span a factor of 8 or more."""
    from matplotlib.ticker import LogLocator

    if (axis > 0).all() and axis[-1] / axis[0] >= 8 and kind not in ("depth", "noise"):
        axes.set_xscale("log")
        number_ticks(axes.xaxis, axes.get_xlim())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis[-1] / axis[0] < 300 else (1,)))
