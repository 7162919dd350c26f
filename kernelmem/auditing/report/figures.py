"""Figures of the report: memorization of training and control rows, success of attacks, detection of known wrong labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kernelmem.auditing.report.formats import format_count, format_number, format_share
from kernelmem.auditing.report.svg import COLORS, HALF, PARAMETERS, wide_and_narrow
from kernelmem.auditing.report.wording import makes_claim
from kernelmem.auditing.schema import AttackResult, AuditDocument, Compression, RowTable
from kernelmem.core.errors import printable
from kernelmem.plotting.style import DASHED, new_figure, style

SHARE_TICKS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
LONGEST_NAME = 28  # characters of the name of an attack


def scores_figure(document: AuditDocument, rows: RowTable) -> Markup:
    """Return SVG of the distribution over training rows and control rows.

    It shows the negative leave-one-out margins, or, with retraining, the estimated memorization, which control rows lack.
    """
    has_control = _has_control(document, rows)
    label = (
        f"Histogram of the memorization of {len(rows.score)} training rows"
        f"{f' above the axis, and of {len(rows.control_margin)} control rows below it' if has_control else ''};"
        " flagged rows are highlighted."
    )
    return wide_and_narrow("scores", label, lambda axes, narrow: _draw_scores(axes, document, rows, narrow))


def plot_scores(document: AuditDocument, rows: RowTable) -> Figure:
    """Draw the first figure of the report as a matplotlib figure with a light background.

    If a gate failed, no row is highlighted.
    """
    with style(PARAMETERS):
        figure = new_figure(8.2, 3.9)
        _draw_scores(figure.add_subplot(), document, rows, False)
    return figure


def _has_control(document: AuditDocument, rows: RowTable) -> bool:
    """Return True if control rows have the number that is drawn for training rows: the leave-one-out margin."""
    return document.how_much.method == "kernel" and len(rows.control_margin) > 0


def _draw_scores(axes: Axes, document: AuditDocument, rows: RowTable, narrow: bool) -> None:
    """Draw on ``axes`` histograms of the scores of training rows (up) and control rows (down), flagged rows highlighted."""
    kernel = document.how_much.method == "kernel"
    score, has_control = _finite(-rows.loo_margin if kernel else rows.memorization), _has_control(document, rows)
    control = _finite(-rows.control_margin) if has_control else np.zeros(0)
    edges = bin_edges(np.concatenate([score, control]), 36 if narrow else 64)
    width, centers = edges[1] - edges[0], (edges[:-1] + edges[1:]) / 2
    claimed = makes_claim(document)
    groups = [(score, rows.flagged & claimed, 1, "train")]
    if has_control:
        groups.append((control, rows.control_flagged & claimed, -1, "null"))
    highest = 0.0
    for values, flagged, side, role in groups:
        for chosen, color in ((np.ones(len(values), bool), role), (flagged.astype(bool), "memorized")):
            # Square roots of shares: one row in a thousand stays visible next to the peak
            heights = np.sqrt(np.histogram(values[chosen], edges)[0] / len(values))
            highest = max(highest, float(heights.max()))
            shown = heights > 0  # an empty bar would still add its bytes to the page
            axes.bar(centers[shown], side * heights[shown], 0.86 * width, color=COLORS[color], linewidth=0)
    axes.axhline(0, color=COLORS["soft"], linewidth=0.8)
    low = -1.25 * highest if has_control else 0.0
    if kernel:
        axes.plot([0, 0], [low, 1.1 * highest], color=COLORS["text"], linewidth=0.9, dashes=DASHED)
    axes.set_ylim(low, 1.3 * highest)
    axes.set_xlim(edges[0] - width, edges[-1] + width)
    ticks = _thin_ticks([share**0.5 for share in SHARE_TICKS if share**0.5 <= 1.02 * highest], 0.17 * highest)
    axes.set_yticks([*(-tick for tick in reversed(ticks) if has_control), 0.0, *ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value * value:.2g}%"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y")
    axes.set_xlabel(
        "memorization by retraining"
        if not kernel
        else "negative leave-one-out margin"
        if narrow
        else "how strongly the other rows contradict the label (negative leave-one-out margin)"
    )
    axes.set_ylabel("share of rows")
    corners = [(0, 0.99, f"{format_count(len(score))} training rows", "train")]
    if has_control:
        corners.append((0, 0.01, f"{format_count(len(control))} control rows", "soft"))
    if claimed and rows.flagged.any():
        corners.append((1, 0.99, f"{format_count(int(rows.flagged.sum()))} flagged rows", "memorized"))
    for x, y, text, role in corners:
        alignment: dict[str, Any] = {"ha": "right" if x else "left", "va": "top" if y > 0.5 else "bottom"}
        axes.text(x, y, text, color=COLORS[role], weight="bold", transform=axes.transAxes, **alignment)


def _finite(values: np.ndarray) -> np.ndarray:
    """Return float64 values without infinities and NaN, whose place is the middle of the others."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    return np.where(finite, values, np.median(values[finite]) if finite.any() else 0.0)


def bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return increasing edges of equal bins that cover all ``values``, and 0; one edge lies at 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / bins or 1.0
    n_below, n_above = int(np.ceil(-low / width)) + 1, int(np.ceil(high / width)) + 1
    return width * np.arange(-n_below, n_above + 1)


def _thin_ticks(ticks: list[float], min_distance: float) -> list[float]:
    """Return the ticks that are at least ``min_distance`` from the next larger remaining tick and from 0.

    Ticks are removed from the largest down.
    """
    ticks_left: list[float] = []
    for tick in reversed(ticks):
        if tick >= min_distance and (not ticks_left or ticks_left[0] - tick >= min_distance):
            ticks_left.insert(0, tick)
    return ticks_left


def attacks_figure(attacks: Sequence[AttackResult]) -> Markup:
    """Return SVG with the interval of the AUC of each attack, and below each that of its null; empty without attacks."""
    if not attacks:
        return Markup("")
    described = "; ".join(
        f"{attack.name} {format_number(attack.auc.value)}, null {format_number(attack.null_auc.value)}"
        for attack in attacks
    )
    height = 1.25 + 0.52 * len(attacks)
    return wide_and_narrow(
        "attacks",
        printable(f"AUC of membership inference attacks with intervals: {described}"),
        lambda axes, narrow: _draw_attacks(axes, attacks, narrow),
        wide=(10.2, height),
        narrow=(4.7, height + 0.35 * len(attacks)),
    )


def _draw_attacks(axes: Axes, attacks: Sequence[AttackResult], narrow: bool) -> None:
    """Draw one interval per attack with its null below, and a line at the AUC of guessing."""
    step = 1.5 if narrow else 1.0  # the name has its own line on a phone
    positions = -step * np.arange(len(attacks))
    axes.axvline(0.5, color=COLORS["text"], linewidth=0.9, dashes=DASHED)
    for position, attack in zip(positions, attacks, strict=True):
        for interval, offset, role, width in (
            (attack.auc, 0.0, "memorized", 2.6),
            (attack.null_auc, -0.3, "null", 1.8),
        ):
            axes.plot([interval.low, interval.high], [position + offset] * 2, color=COLORS[role], linewidth=width)
            axes.plot([interval.value], [position + offset], "o", color=COLORS[role], markersize=3.2 * width**0.5)
    ends = [end for attack in attacks for i in (attack.auc, attack.null_auc) for end in (i.low, i.high)]
    axes.set_xlim(max(-0.02, min(0.4, *ends) - 0.02), min(1.02, max(0.7, *ends) + 0.02))
    axes.set_ylim(positions[-1] - 0.62, 0.75 if narrow else 0.55)
    names = [printable(f"{attack.name} ({attack.level})") for attack in attacks]
    names = [name if len(name) <= LONGEST_NAME + 12 else f"{name[: LONGEST_NAME + 11]}…" for name in names]
    if narrow:
        axes.set_yticks([])
        for position, name in zip(positions, names, strict=True):
            axes.text(0, position + 0.24, name, color=COLORS["text"], transform=axes.get_yaxis_transform(), va="bottom")
    else:
        axes.set_yticks(positions - 0.1, names)
        axes.tick_params(axis="y", labelcolor=COLORS["text"])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.set_xlabel("AUC of the attack (0.5: guessing)")


def bits_figure(compression: Compression) -> Markup:
    """Return SVG of the bar of all bits of the labels, with that of each null below it; empty if there are no numbers."""
    if compression.uniform is None or compression.left_out is None:
        return Markup("")
    bars = len(compression.nulls) + 1
    return wide_and_narrow(
        "bits",
        printable(f"Bars of the bits of the labels. {compression.sentence}"),
        lambda axes, narrow: _draw_bits(axes, compression, narrow),
        wide=(10.2, 1.7 + 0.5 * bars),
        narrow=(4.7, 1.9 + 0.72 * bars),
    )


def _draw_bits(axes: Axes, compression: Compression, narrow: bool) -> None:
    """Draw one bar per network, of length ``uniform``: from the other rows, memorized with label noise hatched, in neither."""
    uniform, left_out = compression.uniform or 0.0, compression.left_out or 0.0
    follows = uniform - left_out
    rows = [("this network", compression.memorized or 0.0), *compression.nulls]
    step = 1.5 if narrow else 1.0  # the name has its own line on a phone
    positions = -step * np.arange(len(rows))
    handles: dict[str, Any] = {}
    for position, (name, memorized) in zip(positions, rows, strict=True):
        memorized = min(max(memorized, 0.0), left_out)
        parts = [(0.0, follows, "train"), (follows, memorized, "memorized")]
        parts.append((follows + memorized, left_out - memorized, "null"))
        for start, width, role in parts:
            handles.setdefault(role, axes.barh(position, width, 0.62, left=start, color=COLORS[role], linewidth=0))
        if position == 0 and compression.noise is not None and compression.noise <= memorized:
            hatched: dict[str, Any] = {
                "hatch": "////",
                "edgecolor": COLORS["page"],
                "linewidth": 0,
                "facecolor": COLORS["memorized"],
            }
            handles["noise"] = axes.barh(position, compression.noise, 0.62, left=follows, **hatched)
        if narrow:
            text = printable(name)
            axes.text(0, position + 0.38, text, color=COLORS["text"], transform=axes.get_yaxis_transform(), va="bottom")
    if compression.online is not None:
        known = uniform - compression.online
        handles["online"] = axes.plot([known] * 2, [-0.42, 0.42], color=COLORS["text"], linewidth=1.8)[0]
    names = {
        "train": f"follow from the other rows: {follows:,.0f}",
        "memorized": f"memorized: {compression.memorized:,.0f}",
        "noise": f"of them label noise, about {compression.noise or 0:,.0f}",
        "null": f"in neither: {compression.network:,.0f}",
        "online": f"known to a decoder without the network: {uniform - (compression.online or 0):,.0f}",
    }
    shown = [role for role in names if role in handles]
    figure = axes.get_figure(root=True)
    assert figure is not None
    legend = figure.legend(  # below the axes, in the room that the layout keeps for it
        [handles[role] for role in shown], [names[role].replace("-", "\N{MINUS SIGN}") for role in shown],
        loc="outside lower left", ncols=1 if narrow else 2, fontsize=10.0, handlelength=1.4, columnspacing=2.0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_color(COLORS["text"])
    axes.set_xlim(0, 1.001 * uniform)
    axes.set_ylim(positions[-1] - 0.5, 1.0 if narrow else 0.5)
    if narrow:
        axes.set_yticks([])
    else:
        axes.set_yticks(positions, [printable(name) for name, _ in rows])
        axes.tick_params(axis="y", labelcolor=COLORS["text"])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("bits of the training labels")


def flip_curves(document: AuditDocument) -> Markup:
    """Return SVG of precision and recall among the k most suspicious training rows against k.

    The result is empty if it is unknown which labels are wrong.
    """
    flips = document.flips
    if not (flips.n and flips.ranks and flips.precision and flips.recall):
        return Markup("")
    label = (
        f"Precision and recall of the k most suspicious of {document.data.n_train} training rows,"
        f" {flips.n} of which have a known wrong label."
    )
    return wide_and_narrow("flips", label, lambda axes, _: _draw_flip_curves(axes, document), wide=HALF)


def _draw_flip_curves(axes: Axes, document: AuditDocument) -> None:
    """Draw on ``axes`` precision and recall among the k most suspicious training rows against k.

    The precision of rows in random order and the position k = number of flipped labels are marked.
    """
    flips = document.flips
    ranks, n_flips = np.asarray(flips.ranks), int(flips.n or 0)
    flip_share = n_flips / document.data.n_train
    axes.axhline(flip_share, color=COLORS["soft"], linewidth=0.9, dashes=DASHED)
    axes.axvline(n_flips, color=COLORS["line"], linewidth=0.9)
    line_style: dict[str, Any] = {"linewidth": 2, "markersize": 4.5, "marker": "o" if len(ranks) <= 40 else ""}
    axes.plot(ranks, flips.precision, color=COLORS["train"], **line_style)
    axes.plot(ranks, flips.recall, color=COLORS["recall"], **line_style)
    axes.set_ylim(0, 1.12)
    axes.set_xlim(0, ranks.max() * 1.01)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y")
    axes.set_xlabel("k rows whose labels the other rows contradict most")
    label_rank = 0.62 * ranks.max()  # where the curves are far apart
    precision, recall = (float(np.interp(label_rank, ranks, curve)) for curve in (flips.precision, flips.recall))
    _annotate(axes, "precision", (label_rank, precision), (3, 4), "train", weight="bold")
    _annotate(axes, "recall", (label_rank, recall), (3, 4), "recall", weight="bold")
    below = flip_share > 0.1  # room for the label between the line and the axis
    alignment = {"ha": "right", "va": "top" if below else "bottom"}
    by_chance = f"by chance {format_share(flip_share)}"
    _annotate(axes, by_chance, (ranks.max(), flip_share), (0, -4 if below else 4), "soft", **alignment)
    _annotate(axes, f"k = {n_flips:,} flips", (n_flips, 0), (5, 5), "soft")


def _annotate(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], role: str, **text_options: Any
) -> None:
    """Write ``text`` next to ``point`` (data coordinates), shifted by ``offset`` in points, in the color of ``role``."""
    text_options = {"va": "bottom", "textcoords": "offset points", **text_options}
    axes.annotate(text, point, offset, color=COLORS[role], **text_options)
