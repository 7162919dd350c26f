"""Figures of the report: static SVG with the colors of the page, light or dark."""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kernelmem.auditing.document import AuditDocument
from kernelmem.plotting.style import BLUE, DASHED, LINE, ORANGE, PAGE, SOFT, TEXT, new_figure, style

# One color per role, none twice: each becomes var(--figure-<role>), so that one SVG serves light and dark.
COLORS = {
    "text": TEXT,
    "soft": SOFT,
    "line": LINE,
    "train": BLUE,
    "memorized": ORANGE,
    "null": "#8a93a5",
    "recall": "#0d8577",
    "page": PAGE,
}
PARAMETERS: dict[str, object] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": LINE,
    "axes.labelsize": 10.5,
    "axes.spines.left": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "ytick.major.size": 0.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
}
# Inches of 72 units, chosen so that 10 units of text are some 14 px on a desktop and above 9 px on a phone
WIDE, HALF, NARROW = (10.2, 4.1), (6.6, 3.7), (4.7, 4.0)
MAX_DOTS = 500
SHARE_TICKS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def distribution(document: AuditDocument) -> Markup:
    """Return SVG of two histograms of memorization by the network: training rows upward, test rows downward."""
    memorization = document.memorization
    label = (
        f"Mirrored histogram: memorization of {len(memorization.network_memorization)} training rows by this network above"
        f" the axis, the same statistic on {len(memorization.null)} test rows below it,"
        f" and the threshold at {_format_number(memorization.threshold)}."
    )
    return _wide_and_narrow_svg("distribution", label, lambda axes, narrow: _draw_distribution(axes, document, narrow))


def two_statistics(document: AuditDocument) -> Markup:
    """Return SVG of the density of training rows over two statistics of memorization.

    The horizontal axis is the memorization by the label regression, the vertical axis the memorization by this network.
    """
    label = (
        "Scatter plot of the training rows: memorization by label regression (x) and by this network (y);"
        " memorized rows are single dots above the threshold line."
    )
    return _wide_and_narrow_svg("statistics", label, lambda axes, narrow: _draw_two_statistics(axes, document, narrow))


def flip_curves(document: AuditDocument) -> Markup:
    """Return SVG of precision and recall among the k most suspicious training rows against k.

    The result is empty if it is unknown which labels are wrong.
    """
    flips = document.flips
    if not (flips.n and flips.ranks and flips.precision and flips.recall):
        return Markup("")
    label = (
        f"Precision and recall of the k most suspicious of {document.data.n_train} training rows,"
        f" {flips.n} of them flipped, for k from {flips.ranks[0]} to {flips.ranks[-1]},"
        " and the precision of randomly drawn rows."
    )
    return _wide_and_narrow_svg("flips", label, lambda axes, _: _draw_flip_curves(axes, document), wide=HALF)


def distribution_figure(document: AuditDocument) -> Figure:
    """Draw the distribution figure of the report as a matplotlib figure with a light background."""
    with style(PARAMETERS):
        figure = new_figure(8.2, 4.1)
        _draw_distribution(figure.add_subplot(), document, False)
    return figure


def _draw_distribution(axes: Axes, document: AuditDocument, narrow: bool) -> None:
    """Draw on ``axes`` the histograms of training rows (up) and test rows (down), and the threshold.

    The number of memorized rows is written in the upper right corner unless the verdict makes no claim; ``narrow``
    selects the version for phones.
    """
    memorization = document.memorization
    network, null = np.asarray(memorization.network_memorization), np.asarray(memorization.null)
    bin_edges = _bin_edges(network, null, memorization.threshold, 36 if narrow else 64)
    width = bin_edges[1] - bin_edges[0]
    centers = (bin_edges[:-1] + bin_edges[1:]) / 2
    # Square roots of shares: one row in a thousand stays visible next to the peak.
    train_heights = np.sqrt(np.histogram(network, bin_edges)[0] / len(network))
    test_heights = np.sqrt(np.histogram(null, bin_edges)[0] / len(null))
    highest = float(max(train_heights.max(), test_heights.max()))
    above = centers > memorization.threshold
    claimed = document.verdict.status != "no-claim"
    above_role = "memorized" if claimed else "train"
    bar_style = {"width": 0.86 * width, "linewidth": 0}
    all_bins = np.ones_like(above)
    for heights, selected, role in (
        (train_heights, ~above, "train"),
        (train_heights, above, above_role),
        (-test_heights, all_bins, "null"),
    ):
        visible = selected & (heights != 0)  # an empty bar would still add its bytes to the page
        axes.bar(centers[visible], heights[visible], color=COLORS[role], **bar_style)
    axes.axhline(0, color=COLORS["soft"], linewidth=0.8)
    axes.plot(
        [memorization.threshold] * 2,
        [-1.3 * highest, 1.12 * highest],
        color=COLORS["text"],
        linewidth=0.9,
        dashes=DASHED,
    )
    axes.set_ylim(-1.3 * highest, 1.6 * highest)  # labels above the line, not across it
    axes.set_xlim(bin_edges[0] - width, bin_edges[-1] + width)

    ticks = _thin_ticks([share**0.5 for share in SHARE_TICKS if share**0.5 <= 1.02 * highest], 0.17 * highest)
    axes.set_yticks([-t for t in reversed(ticks)] + [0.0, *ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value * value:.2g}%"))
    axes.grid(axis="y")
    axes.set_xlabel("memorization by this network (margin difference, logits)")
    axes.set_ylabel("share of rows")

    corners = [
        (0, 0.99, f"{len(network):,} training rows", "train", "bold"),
        (0, 0.01, f"{len(null):,} test rows (null)", "soft", "bold"),
        (1, 0.01, f"threshold {_format_number(memorization.threshold)}", "soft", "normal"),
    ]
    if claimed:
        count, chance = len(memorization.memorized), memorization.expected_by_chance
        corners += [
            (1, 0.99, f"{count:,} rows above: {_format_percent(count / len(network))}", "memorized", "bold"),
            (1, 0.925, f"by chance: {_format_percent(chance / len(network))}", "soft", "normal"),
        ]
    for x, y, text, role, weight in corners:
        alignment: dict[str, Any] = {"ha": "right" if x else "left", "va": "top" if y > 0.5 else "bottom"}
        axes.text(x, y, text, color=COLORS[role], weight=weight, transform=axes.transAxes, **alignment)


def _bin_edges(network: np.ndarray, null: np.ndarray, threshold: float, bins: int) -> np.ndarray:
    """Return increasing edges of equal bins that cover all values of ``network`` and ``null``.

    One edge lies at ``threshold``, so that no bar contains rows of both sides.
    """
    low = min(network.min(), null.min(), threshold)
    high = max(network.max(), null.max(), threshold)
    width = (high - low) / bins or 1.0
    n_below, n_above = int(np.ceil((threshold - low) / width)) + 1, int(np.ceil((high - threshold) / width)) + 1
    return threshold + width * np.arange(-n_below, n_above + 1)


def _thin_ticks(ticks: list[float], min_distance: float) -> list[float]:
    """Return the ticks that are at least ``min_distance`` from the next larger remaining tick and from 0.

    Ticks are removed from the largest down.
    """
    ticks_left: list[float] = []
    for tick in reversed(ticks):
        if tick >= min_distance and (not ticks_left or ticks_left[0] - tick >= min_distance):
            ticks_left.insert(0, tick)
    return ticks_left


def _draw_two_statistics(axes: Axes, document: AuditDocument, narrow: bool) -> None:
    """Draw on ``axes`` the training rows as hexagons colored by their number, and memorized rows as dots.

    If the verdict makes no claim, there are no dots. ``narrow`` selects the version for phones.
    """
    memorization = document.memorization
    by_label, network = np.asarray(memorization.label_memorization), np.asarray(memorization.network_memorization)
    claimed = document.verdict.status != "no-claim"
    dot_rows = np.asarray(memorization.memorized[:MAX_DOTS] if claimed else (), dtype=int)
    in_density = np.ones(len(network), bool)
    in_density[dot_rows] = False
    axes.axhline(memorization.threshold, color=COLORS["text"], linewidth=0.9, dashes=DASHED)
    axes.axvline(0, color=COLORS["line"], linewidth=0.8)
    axes.axhline(0, color=COLORS["line"], linewidth=0.8)
    if in_density.any():
        grid_size = (32, 15) if narrow else (66, 13)  # regular hexagons at either shape of the axes
        cells = axes.hexbin(by_label[in_density], network[in_density], gridsize=grid_size, mincnt=1, linewidths=0.2)
        counts = np.asarray(cells.get_array(), dtype=float)
        cells.set_array(None)
        cells.set_facecolor([to_rgba(COLORS["train"], alpha) for alpha in _opacities(counts)])
        cells.set_edgecolor("none")
    if len(dot_rows):
        axes.scatter(by_label[dot_rows], network[dot_rows], s=11, color=COLORS["memorized"], linewidths=0, alpha=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.04)
    axes.set_xlabel("memorization by label regression")
    axes.set_ylabel("memorization by this network (logits)")
    _annotate(axes, "threshold", (by_label.max(), memorization.threshold), (0, 3), "soft", ha="right")


def _opacities(counts: np.ndarray) -> np.ndarray:
    """Return opacities in [0.25, 1] for the numbers of rows per hexagon, (cells,): six steps of the logarithm.

    Steps of opacity instead of a color map let the hue follow the page's theme.
    """
    steps = np.ceil(5 * np.log(counts) / max(np.log(counts.max()), 1e-9))
    return 0.25 + 0.75 * np.minimum(steps, 5) / 5  # 5 log(m) / log(m) is above 5 by rounding for some m


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
    axes.plot(ranks, flips.precision or (), color=COLORS["train"], **line_style)
    axes.plot(ranks, flips.recall or (), color=COLORS["recall"], **line_style)
    axes.set_ylim(0, 1.12)
    axes.set_xlim(0, ranks.max() * 1.01)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y")
    axes.set_xlabel("k rows with the lowest leave-one-out margin")
    label_rank = 0.62 * ranks.max()  # where the curves are far apart
    precision, recall = (
        float(np.interp(label_rank, ranks, curve)) for curve in (flips.precision or (), flips.recall or ())
    )
    _annotate(axes, "precision", (label_rank, precision), (3, 4), "train", weight="bold")
    _annotate(axes, "recall", (label_rank, recall), (3, 4), "recall", weight="bold")
    label_below = flip_share > 0.1  # room for the label between the line and the axis
    alignment = {"ha": "right", "va": "top" if label_below else "bottom"}
    _annotate(
        axes,
        f"by chance {_format_percent(flip_share)}",
        (ranks.max(), flip_share),
        (0, -4 if label_below else 4),
        "soft",
        **alignment,
    )
    _annotate(axes, f"k = {n_flips:,} flips", (n_flips, 0), (5, 5), "soft")


def _annotate(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], role: str, **text_options: Any
) -> None:
    """Write ``text`` next to ``point`` (data coordinates), shifted by ``offset`` in typographic points.

    ``role`` names the color.
    """
    text_options = {"va": "bottom", "textcoords": "offset points", **text_options}
    axes.annotate(text, point, offset, color=COLORS[role], **text_options)


def _wide_and_narrow_svg(
    name: str, label: str, draw: Callable[[Axes, bool], None], wide: tuple[float, float] = WIDE
) -> Markup:
    """Return SVG with a wide drawing for desktops and a narrow one for phones.

    ``draw(axes, narrow)`` draws each of them. The style sheet of the page shows the one that fits the screen.
    """
    return _render_svg(f"{name}-wide", label, draw, wide, False) + _render_svg(
        f"{name}-narrow", label, draw, NARROW, True
    )


def _render_svg(
    name: str, label: str, draw: Callable[[Axes, bool], None], size: tuple[float, float], narrow: bool
) -> Markup:
    """Return one drawing as SVG for the HTML page.

    ``draw(axes, narrow)`` makes the drawing of ``size`` inches. Its fixed colors are replaced by the color variables of
    the page.
    """
    with style(PARAMETERS):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot(), narrow)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*"([^>]*?) (?:height|width)="[^"]*"', r"\1\2", svg, count=1)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # the HTML parser supplies the namespaces
    # Ids are unique within one drawing only, so they are prefixed with its name
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    for role, color in COLORS.items():
        svg = svg.replace(color, f"var(--figure-{role})")
    opening = f'<svg class="{"narrow" if narrow else "wide"}" role="img" aria-label="{escape(label)}"'
    return Markup(svg.replace("<svg", opening, 1).strip())


def _format_number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _format_percent(value: float) -> str:
    return f"{100 * value:.1f}%"
