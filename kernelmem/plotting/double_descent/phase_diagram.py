"""Figure of a phase diagram: maps over pairs of axes, with the line where training labels begin to be fitted."""

# ruff: noqa: D102 (attributes of protocols)

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kernelmem.plotting.style import PALE, TEXT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class PhaseDiagramLike(Protocol):
    """Fields of a phase diagram that :func:`phase_diagram_figure` reads.

    The metrics are (S, R, N, W, T) for S seeds, R noise rates, N numbers of training rows, W widths and T steps;
    ``kernel_flips`` is (S, R, N, W). ``noise``, ``samples``, ``widths`` and ``steps`` are the values of the last four
    axes.
    """

    @property
    def noise(self) -> Sequence[float]: ...
    @property
    def samples(self) -> Sequence[int]: ...
    @property
    def widths(self) -> Sequence[int]: ...
    @property
    def steps(self) -> Sequence[int]: ...
    @property
    def test_error(self) -> Tensor: ...
    @property
    def train_error(self) -> Tensor: ...
    @property
    def memorized_flips(self) -> Tensor: ...
    @property
    def kernel_flips(self) -> Tensor: ...
    @property
    def epsilon(self) -> float: ...


def phase_diagram_figure(diagram: PhaseDiagramLike) -> "Figure":
    """Draw test error (top) and memorized flips (bottom) over width and rows, steps or noise; at the right, the kernel.

    The other axes are fixed at their last value. On the white line the training error is ``diagram.epsilon``; networks to
    its right fit their labels. The color scale of the test error ends at its 90 % quantile, since the smallest networks
    would use all of it.
    """
    last, whole_axis = -1, slice(None)
    # indices into (noise, samples, widths, steps): the map of each pair of axes
    axis_pairs: tuple[tuple[str, Sequence[float], tuple[int | slice, ...]], ...] = (
        ("training examples", diagram.samples, (last, whole_axis, whole_axis, last)),
        ("step", diagram.steps, (last, last, whole_axis, whole_axis)),
        ("share of wrong labels", diagram.noise, (whole_axis, last, whole_axis, last)),
    )
    test_error, memorized, train_error, kernel_flips = (
        as_array(values).mean(0)
        for values in (diagram.test_error, diagram.memorized_flips, diagram.train_error, diagram.kernel_flips)
    )
    with style({"font.size": 9, "axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(13.2, 6.2)
        panels = figure.subplots(2, 4)
        rows = (
            ("Test error", test_error, "viridis", float(np.nanquantile(test_error[last], 0.9))),
            ("Flipped labels memorized", memorized, "magma", 1.0),
        )
        for row, (title, metric, colormap, color_maximum) in enumerate(rows):
            for axes, (label, values, index) in zip(panels[row], axis_pairs, strict=False):
                image, train_error_map = metric[index], train_error[index]
                if label == "step":  # (widths, steps) -> (steps, widths)
                    image, train_error_map = image.T, train_error_map.T
                axes.imshow(image, origin="lower", aspect="auto", cmap=colormap, vmin=0, vmax=color_maximum)
                if (
                    (train_error_map <= diagram.epsilon).any()
                    and (train_error_map > diagram.epsilon).any()
                    and min(train_error_map.shape) > 1
                ):
                    for color, linewidth in ((TEXT, 3.0), ("white", 1.6)):  # a dark rim, for light cells
                        axes.contour(train_error_map, levels=[diagram.epsilon], colors=color, linewidths=linewidth)
                _label_axes(axes, diagram.widths, values, label)
                axes.set_title(title)
            figure.colorbar(panels[row, 2].images[0], ax=panels[row, 2])
        for axes, (label, values, index) in zip(panels[:, 3], (axis_pairs[0], axis_pairs[2]), strict=True):
            image = axes.imshow(kernel_flips[index[:-1]], origin="lower", aspect="auto", cmap="magma")
            figure.colorbar(image, ax=axes)
            _label_axes(axes, diagram.widths, values, label)
            axes.set_title("Flips memorized by the\ninitial tangent kernel")
        figure.suptitle(
            f"Noise {diagram.noise[-1]:g}, {diagram.samples[-1]:,} rows, step {diagram.steps[-1]:,} where not on an axis."
            f" White line: training error {diagram.epsilon:g}",
            x=0.01, ha="left",
        )  # fmt: skip
        return figure


def _label_axes(axes: "Axes", widths: Sequence[float], values: Sequence[float], label: str) -> None:
    axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.set_yticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set(xlabel="width", ylabel=label, facecolor=PALE)  # no color where undefined: flips without noise
