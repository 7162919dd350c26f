"""Figures of the text report: exposure by copies, extraction and membership next to their controls."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kernelmem.auditing.report import COLORS, format_number, format_share, wide_and_narrow
from kernelmem.auditing.text.schema import CanaryAnswer, ExtractionAnswer, MembershipAnswer
from kernelmem.core.errors import printable
from kernelmem.plotting.style import DASHED
from kernelmem.statistics import Interval

Row = tuple[str, Interval, Interval | None]  # name, estimate, the same of the control
Z95 = 1.96


def exposure_figure(canaries: CanaryAnswer) -> Markup:
    """Return SVG of mean exposure with intervals by number of copies, with the band of the twins by theory."""
    means = "; ".join(
        f"{'twins' if tier.copies == 0 else f'{tier.copies} copies'} {format_number(tier.exposure.value)} bits"
        for tier in canaries.tiers
    )
    return wide_and_narrow("exposure", f"Mean exposure of canaries with intervals: {means}", _Exposure(canaries))


class _Exposure:
    """Drawing of the exposure."""

    def __init__(self, canaries: CanaryAnswer) -> None:
        self.canaries = canaries

    def __call__(self, axes: Axes, narrow: bool) -> None:
        tiers = self.canaries.tiers
        sd = self.canaries.null_se * next((tier.n for tier in tiers if tier.copies == 0), 1) ** 0.5
        for place, tier in enumerate(tiers):
            error = Z95 * sd / tier.n**0.5
            low, high = max(0.0, self.canaries.null_mean - error), self.canaries.null_mean + error
            axes.fill_between([place - 0.36, place + 0.36], low, high, color=COLORS["line"], linewidth=0)
            color = COLORS["memorized" if tier.copies else "null"]
            axes.plot([place, place], [tier.exposure.low, tier.exposure.high], color=color, linewidth=2.4)
            axes.plot([place], [tier.exposure.value], "o", color=color, markersize=6)
        largest = self.canaries.largest_exposure
        axes.axhline(largest, color=COLORS["soft"], linewidth=0.9, dashes=DASHED)
        axes.text(
            0, largest, f"largest that can be measured: {format_number(largest)}", color=COLORS["soft"],
            transform=axes.get_yaxis_transform(), va="bottom",
        )  # fmt: skip
        axes.set_xticks(range(len(tiers)), ["twins" if tier.copies == 0 else f"{tier.copies:,}" for tier in tiers])
        axes.tick_params(axis="x", labelcolor=COLORS["text"])
        axes.set_xlim(-0.6, len(tiers) - 0.4)
        axes.set_ylim(0, 1.12 * max(largest, *(tier.exposure.high for tier in tiers)))
        axes.grid(axis="y")
        axes.set_xlabel("copies in the training data")
        axes.set_ylabel("exposure (bits)")


def extraction_figure(extraction: ExtractionAnswer) -> Markup:
    """Return SVG with the extraction rates of training documents, and below each that of unseen ones."""
    rows = [(rate.method, rate.members, rate.unseen) for rate in extraction.rates]
    described = "; ".join(
        f"{name} {format_share(members.value)}, unseen {format_share(unseen.value)}" for name, members, unseen in rows
    )
    return _interval_rows(
        "extraction", f"Share of documents that are extracted, with intervals: {described}", list(rows), None,
        "share of documents that the model emits",
    )  # fmt: skip


def membership_figure(membership: MembershipAnswer) -> Markup:
    """Return SVG with the AUROC of every membership score."""
    rows: list[Row] = [(printable(attack.name), attack.auc, None) for attack in membership.attacks]
    described = "; ".join(f"{name} {format_number(interval.value)}" for name, interval, _ in rows)
    return _interval_rows(
        "membership", f"AUROC of membership scores with intervals: {described}", rows, 0.5, "AUROC (0.5: guessing)"
    )


def _interval_rows(name: str, label: str, rows: Sequence[Row], guess: float | None, xlabel: str) -> Markup:
    """Return SVG with one interval per row, and its control below it; empty without rows."""
    if not rows:
        return Markup("")

    def draw(axes: Axes, narrow: bool) -> None:
        step = 1.5 if narrow else 1.0  # the name has its own line on a phone
        positions = -step * np.arange(len(rows))
        if guess is not None:
            axes.axvline(guess, color=COLORS["text"], linewidth=0.9, dashes=DASHED)
        for position, (_, estimate, control) in zip(positions, rows, strict=True):
            for interval, offset, role, width in ((estimate, 0.0, "memorized", 2.6), (control, -0.3, "null", 1.8)):
                if interval is not None:
                    place = position + offset
                    axes.plot([interval.low, interval.high], [place] * 2, color=COLORS[role], linewidth=width)
                    axes.plot([interval.value], [place], "o", color=COLORS[role], markersize=3.2 * width**0.5)
        ends = [end for _, *pair in rows for i in pair if i is not None for end in (i.low, i.high)]
        if guess is None:
            axes.set_xlim(0, 1.08 * max(0.01, *ends))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        else:
            axes.set_xlim(max(-0.02, min(0.4, *ends) - 0.02), min(1.02, max(0.7, *ends) + 0.02))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        axes.set_ylim(positions[-1] - 0.62, 0.75 if narrow else 0.55)
        if narrow:
            axes.set_yticks([])
            for position, (text, _, _) in zip(positions, rows, strict=True):
                axes.text(
                    0, position + 0.24, text, color=COLORS["text"], transform=axes.get_yaxis_transform(), va="bottom"
                )
        else:
            axes.set_yticks(positions - 0.1, [text for text, _, _ in rows])
            axes.tick_params(axis="y", labelcolor=COLORS["text"])
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(axis="x")
        axes.set_xlabel(xlabel)

    height = 1.25 + 0.52 * len(rows)
    sizes = {"wide": (10.2, height), "narrow": (4.7, height + 0.35 * len(rows))}
    return wide_and_narrow(name, label, draw, wide=sizes["wide"], narrow=sizes["narrow"])
