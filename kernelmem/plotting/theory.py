"""The pictures of the theory: a curve, and a curve with its simulation."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kernelmem.double_descent.theory.curve import Curve, Simulated

__all__ = ["curve_figure", "simulated_figure"]

BLUE, ORANGE, GRAY, TEXT = "#3b6fc4", "#d9780f", "#5b6475", "#1d2433"


def curve_figure(curve: "Curve") -> "Figure":
    """Draw test and training risk against the axis."""
    return _figure(curve, None)


def simulated_figure(simulated: "Simulated") -> "Figure":
    """Draw the simulated means with bars of two standard errors over the theory's curve."""
    return _figure(simulated.theory, simulated)


def _figure(curve: "Curve", simulated: "Simulated | None") -> "Figure":
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "kernelmem"}):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        if float(curve.axis[0]) > 0:
            axes.set_xscale("log")
        elif len(curve.axis) > 1:  # time 0 is shown, the rest is logarithmic
            axes.set_xscale("symlog", linthresh=float(curve.axis[1]))
        axes.set_yscale("log")
        if curve.train is not None:
            _line(axes, curve.axis, curve.train, "training rows", GRAY)
        _line(axes, curve.axis, curve.test, "new rows", BLUE)
        if simulated is not None:
            axes.errorbar(
                simulated.axis.numpy(),
                simulated.mean.numpy(),
                yerr=2 * simulated.se.numpy(),
                fmt="o",
                color=ORANGE,
                markersize=4,
                linewidth=1.2,
                label=f"simulated, {simulated.repetitions} draws, ± 2 standard errors",
            )
        seen = curve.test[torch.isfinite(curve.test)]
        if len(seen):
            axes.set_ylim(bottom=max(axes.get_ylim()[0], float(seen.min()) / 30))
        if curve.threshold is not None:
            axes.axvline(curve.threshold, color=GRAY, linewidth=0.8, dashes=(4, 2.5), label="threshold")
        for own, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            own.set_major_formatter(plain)
            own.set_minor_formatter(FuncFormatter(lambda *_: ""))
            if low > 0 and high < 100 * low:  # one or two decades have too few powers of ten
                own.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
        kind = "exact" if curve.exact else "asymptotic"
        axes.set_title(f"{curve.name} ({kind})", loc="left", fontsize=10, color=TEXT)
        axes.set_xlabel(curve.axis_name)
        axes.set_ylabel("mean squared error")
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def _line(axes: "Axes", axis: torch.Tensor, values: torch.Tensor, label: str, color: str) -> None:
    # Zeros have no place on a logarithmic axis, infinities none on any: the line has a gap there.
    shown = torch.where(torch.isfinite(values) & (values > 0), values, torch.nan)
    if bool(torch.isfinite(shown).any()):
        axes.plot(axis.numpy(), shown.numpy(), color=color, linewidth=1.5, label=label)
