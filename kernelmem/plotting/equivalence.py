"""Figure of a comparison of kernel machines with a network: relative errors with their nulls, movement of the kernel."""

# ruff: noqa: D102 (attributes of protocols)

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kernelmem.plotting.style import BLUE, DASHED, GRAY, ORANGE, TEXT, new_figure, number_ticks, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class FitLike(Protocol):
    """Fields of one kernel machine that :func:`comparison_figure` reads."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def error(self) -> float: ...
    @property
    def null_error(self) -> float: ...
    @property
    def stability(self) -> float: ...


class MovementLike(Protocol):
    """Fields of the kernel at one checkpoint that :func:`comparison_figure` reads."""

    @property
    def step(self) -> int: ...
    @property
    def change(self) -> float: ...
    @property
    def alignment(self) -> float: ...
    @property
    def null_alignment(self) -> float: ...


def comparison_figure(fits: Sequence[FitLike], movement: Sequence[MovementLike] = ()) -> "Figure":
    """Return a figure with one line per kernel machine, from top to bottom.

    A panel below shows how much the kernel changed during training, if ``movement`` is not empty.
    """
    with style():
        errors_height = 0.32 * len(fits) + 1.3
        figure = new_figure(8.4, errors_height + (2.4 if movement else 0))
        n_rows = 2 if movement else 1
        grid = figure.add_gridspec(n_rows, 2, height_ratios=[errors_height, 2.4][:n_rows])
        _draw_errors(figure.add_subplot(grid[0, :]), fits[::-1])
        if movement:
            steps = [checkpoint.step for checkpoint in movement]
            change_axes = figure.add_subplot(grid[1, 0])
            change_axes.plot(steps, [checkpoint.change for checkpoint in movement], "o-", color=BLUE, markersize=3.5)
            change_axes.set(title="Change of the kernel |K − K₀| / |K₀|", xlabel="step")
            alignment_axes = figure.add_subplot(grid[1, 1])
            alignment_axes.plot(
                steps, [checkpoint.alignment for checkpoint in movement], "o-", color=BLUE, markersize=3.5
            )
            alignment_axes.plot(
                steps,
                [checkpoint.null_alignment for checkpoint in movement],
                color=GRAY,
                linewidth=1.0,
                label="targets permuted",
            )
            alignment_axes.set(title="Alignment with the targets", xlabel="step")
            alignment_axes.legend()
        return figure


def _draw_errors(axes: "Axes", fits: Sequence[FitLike]) -> None:
    """Draw the relative error of every kernel machine and of its null control.

    For a machine without an error, the reason is written instead.
    """
    computed_errors = [fit.error for fit in fits if fit.status == "computed" and 0 < fit.error < math.inf]
    axes.set_xscale("log")
    axes.set_xlim(min([*computed_errors, 0.1]) / 3, 30)
    for y, fit in enumerate(fits):
        if fit.status != "computed":
            text = (
                fit.status
                if fit.status == "undefined"
                else f"diverges (learning rate × curvature = {fit.stability:.3g})"
            )
            axes.text(0.02, y, text, transform=axes.get_yaxis_transform(), va="center", color=ORANGE)
            continue
        axes.plot([fit.error], [y], "o", color=GRAY if fit.name == "null" else BLUE, markersize=6)
        axes.plot([fit.null_error], [y], "|", color=GRAY, markersize=11)
    axes.axvline(1.0, color=GRAY, linewidth=0.8, dashes=DASHED)
    axes.set_yticks(range(len(fits)), [fit.title for fit in fits], color=TEXT)
    axes.set_ylim(-0.6, len(fits) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Relative error on test rows (1: no change predicted)")
    axes.set_xlabel("relative error; gray bars: null, outputs permuted")
    number_ticks(axes.xaxis, axes.get_xlim())
