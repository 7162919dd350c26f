"""The picture of equivalent machines: errors beside nulls, and how the kernel moved."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kernelmem.kernel_machines.equivalence.result import KernelMachineComparison

__all__ = ["machines_figure"]

BLUE, ORANGE, GRAY, TEXT = "#3b6fc4", "#d9780f", "#aab1be", "#1d2433"


def machines_figure(found: "KernelMachineComparison") -> "Figure":
    """Draw the table: one row a machine; below, the movement of the kernel where it was computed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem"}):
        machines = found.machines[::-1]
        height = 0.32 * len(machines) + 1.1
        figure = Figure(figsize=(7.6, height + (2.4 if found.movement else 0)), layout="constrained")
        parts = 2 if found.movement else 1
        grid = figure.add_gridspec(parts, 2, height_ratios=[height, 2.4][:parts])
        axes = figure.add_subplot(grid[0, :])
        sizes = [own.error for own in machines if own.status == "computed" and 0 < own.error < math.inf]
        axes.set_xscale("log")
        axes.set_xlim(min([*sizes, 0.1]) / 3, 30)
        for place, own in enumerate(machines):
            if own.status != "computed":
                text = own.status if own.status == "undefined" else f"diverges ({own.stability:.3g})"
                axes.text(
                    0.98, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", color=ORANGE
                )
                continue
            null = own.name == "null"
            axes.plot([own.error], [place], "o", color=GRAY if null else BLUE, markersize=6)
            axes.plot([own.null_error], [place], "|", color=GRAY, markersize=11)
        axes.axvline(1.0, color=GRAY, linewidth=0.8, dashes=(4, 2.5))
        axes.set_yticks(range(len(machines)), [own.title for own in machines], color=TEXT)
        axes.set_ylim(-0.6, len(machines) - 0.4)
        axes.set_xlabel("relative error (1: no change predicted); bars: permuted outputs")
        axes.spines[["top", "right", "left"]].set_visible(False)
        if found.movement:
            steps = [own.step for own in found.movement]
            for column, (label, values) in enumerate(
                {
                    "change of the kernel, |K − K_0| / |K_0|": [own.change for own in found.movement],
                    "alignment with the targets": [own.alignment for own in found.movement],
                }.items()
            ):
                own = figure.add_subplot(grid[1, column])
                own.plot(steps, values, "o-", color=BLUE, markersize=3.5, linewidth=1.3)
                if column:
                    own.plot(steps, [at.null_alignment for at in found.movement], color=GRAY, linewidth=1.0)
                own.set_title(label, loc="left", fontsize=9)
                own.set_xlabel("step")
                own.spines[["top", "right"]].set_visible(False)
        return figure
