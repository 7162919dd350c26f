"""The maps of an atlas: what happens over pairs of axes, and where training labels begin to be fitted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kernelmem.double_descent.sweeps.phase_diagram import PhaseDiagram

__all__ = ["atlas_figure"]

TEXT = "#1d2433"


def atlas_figure(found: "PhaseDiagram") -> "Figure":
    """Draw test error (above) and memorized flips (below) over width and rows, steps or noise; last, the kernel.

    The other axes stand at their last value. The line is the training error epsilon: labels are fitted to its right. Colors
    of the test error end at its 90 % quantile: the least networks would take all of them.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    pairs: tuple[tuple[str, Sequence[float], tuple[object, ...]], ...] = (
        ("training rows", found.samples, (-1, slice(None), slice(None), -1)),
        ("step", found.steps, (-1, -1, slice(None), slice(None))),
        ("share of wrong labels", found.noise, (slice(None), -1, slice(None), -1)),
    )
    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem", "font.size": 9}):
        figure = Figure(figsize=(13.2, 6.2), layout="constrained")
        panels = figure.subplots(2, 4)
        for line, (name, cube, scale) in enumerate(
            (("test error", found.test_error, "viridis"), ("flipped labels memorized", found.memorized_flips, "magma"))
        ):
            top = float(np.nanquantile(cube.mean(0)[-1].numpy(), 0.9)) if line == 0 else 1.0
            for axes, (label, values, where) in zip(panels[line], pairs, strict=False):
                own, fitted = (_map(z, where, turned=label == "step") for z in (cube, found.train_error))
                axes.imshow(own, origin="lower", aspect="auto", cmap=scale, vmin=0, vmax=top)
                if (fitted <= found.epsilon).any() and (fitted > found.epsilon).any() and min(fitted.shape) > 1:
                    axes.contour(fitted, levels=[found.epsilon], colors="white", linewidths=1.6)
                _ticks(axes, found.widths, values, label)
                axes.set_title(name, loc="left", color=TEXT)
            figure.colorbar(panels[line, 2].images[0], ax=panels[line, 2])
        for axes, (label, values, where) in zip(panels[:, 3], (pairs[0], pairs[2]), strict=True):
            own = _map(found.kernel_flips, where[:-1], turned=False)
            image = axes.imshow(own, origin="lower", aspect="auto", cmap="magma")
            figure.colorbar(image, ax=axes)
            _ticks(axes, found.widths, values, label)
            axes.set_title("flips memorized by the initial tangent kernel", loc="left", color=TEXT, fontsize=8)
        figure.suptitle(
            f"noise {found.noise[-1]:g}, {found.samples[-1]} rows, step {found.steps[-1]} where they are not an axis;"
            f" white line: training error {found.epsilon:g}",
            x=0.01, ha="left", color=TEXT,
        )  # fmt: skip
        return figure


def _map(cube: Tensor, where: tuple[object, ...], *, turned: bool) -> np.ndarray:
    """Mean over seeds at some values; lines are the other axis, columns widths."""
    own = cube.mean(0)[where].numpy()  # pyright: ignore[reportArgumentType, reportCallIssue]
    return own.T if turned else own


def _ticks(axes: object, widths: Sequence[float], values: Sequence[float], label: str) -> None:
    axes.set_xticks(range(len(widths)), [f"{own:g}" for own in widths])  # type: ignore[attr-defined]
    axes.set_yticks(range(len(values)), [f"{own:g}" for own in values])  # type: ignore[attr-defined]
    axes.set_xlabel("width")  # type: ignore[attr-defined]
    axes.set_ylabel(label)  # type: ignore[attr-defined]
