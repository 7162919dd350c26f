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
MOST_DOTS = 500
SHARE_TICKS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def distribution(document: AuditDocument) -> Markup:
    """Draw a histogram of the network's memorization of training rows (up), and of the null, test rows (down)."""
    memorization = document.memorization
    label = (
        f"Mirrored histogram: memorization of {len(memorization.network_memorization)} training rows by this network above"
        f" the axis, the same statistic on {len(memorization.null)} test rows below it,"
        f" and the threshold at {_number(memorization.threshold)}."
    )
    return _both_widths("distribution", label, lambda axes, narrow: _distribution(axes, document, narrow))


def two_statistics(document: AuditDocument) -> Markup:
    """Draw the density of training rows: memorization by label regression (x) and by this network (y)."""
    label = (
        "Scatter plot of the training rows: memorization by label regression (x) and by this network (y);"
        " memorized rows are single dots above the threshold line."
    )
    return _both_widths("statistics", label, lambda axes, narrow: _two_statistics(axes, document, narrow))


def flip_curves(document: AuditDocument) -> Markup:
    """Draw precision and recall of the k most suspicious rows against k; empty if flips are unknown."""
    flips = document.flips
    if not (flips.n and flips.ranks and flips.precision and flips.recall):
        return Markup("")
    label = (
        f"Precision and recall of the k most suspicious of {document.data.n_train} training rows,"
        f" {flips.n} of them flipped, for k from {flips.ranks[0]} to {flips.ranks[-1]},"
        " and the precision of randomly drawn rows."
    )
    return _both_widths("flips", label, lambda axes, _: _flip_curves(axes, document), wide=HALF)


def plot(document: AuditDocument) -> Figure:
    """Draw the distribution figure of the report as a matplotlib figure with a light background."""
    with style(PARAMETERS):
        figure = new_figure(8.2, 4.1)
        _distribution(figure.add_subplot(), document, False)
    return figure


def _distribution(axes: Axes, document: AuditDocument, narrow: bool) -> None:
    memorization = document.memorization
    network, null = np.asarray(memorization.network_memorization), np.asarray(memorization.null)
    edges = _edges(network, null, memorization.threshold, 36 if narrow else 64)
    width = edges[1] - edges[0]
    centers = (edges[:-1] + edges[1:]) / 2
    # Square roots of shares: one row in a thousand stays visible next to the peak.
    train = np.sqrt(np.histogram(network, edges)[0] / len(network))
    test = np.sqrt(np.histogram(null, edges)[0] / len(null))
    top = float(max(train.max(), test.max()))
    above = centers > memorization.threshold
    claimed = document.verdict.status != "no-claim"
    over = "memorized" if claimed else "train"
    bar = {"width": 0.86 * width, "linewidth": 0}
    everywhere = np.ones_like(above)
    for heights, where, role in (
        (train, ~above, "train"),
        (train, above, over),
        (-test, everywhere, "null"),
    ):
        drawn = where & (heights != 0)  # an empty bar would still add its bytes to the page
        axes.bar(centers[drawn], heights[drawn], color=COLORS[role], **bar)
    axes.axhline(0, color=COLORS["soft"], linewidth=0.8)
    axes.plot(
        [memorization.threshold] * 2, [-1.3 * top, 1.12 * top], color=COLORS["text"], linewidth=0.9, dashes=DASHED
    )
    axes.set_ylim(-1.3 * top, 1.6 * top)  # labels above the line, not across it
    axes.set_xlim(edges[0] - width, edges[-1] + width)

    ticks = _thinned([share**0.5 for share in SHARE_TICKS if share**0.5 <= 1.02 * top], 0.17 * top)
    axes.set_yticks([-t for t in reversed(ticks)] + [0.0, *ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value * value:.2g}%"))
    axes.grid(axis="y")
    axes.set_xlabel("memorization by this network (margin difference, logits)")
    axes.set_ylabel("share of rows")

    corners = [
        (0, 0.99, f"{len(network):,} training rows", "train", "bold"),
        (0, 0.01, f"{len(null):,} test rows (null)", "soft", "bold"),
        (1, 0.01, f"threshold {_number(memorization.threshold)}", "soft", "normal"),
    ]
    if claimed:
        count, chance = len(memorization.memorized), memorization.expected_by_chance
        corners += [
            (1, 0.99, f"{count:,} rows above: {_share(count / len(network))}", "memorized", "bold"),
            (1, 0.925, f"by chance: {_share(chance / len(network))}", "soft", "normal"),
        ]
    for x, y, text, role, weight in corners:
        place: dict[str, Any] = {"ha": "right" if x else "left", "va": "top" if y > 0.5 else "bottom"}
        axes.text(x, y, text, color=COLORS[role], weight=weight, transform=axes.transAxes, **place)


def _edges(network: np.ndarray, null: np.ndarray, threshold: float, bins: int) -> np.ndarray:
    """Return equal bins over all rows with one edge at the threshold, so that no bar has two colors."""
    low = min(network.min(), null.min(), threshold)
    high = max(network.max(), null.max(), threshold)
    width = (high - low) / bins or 1.0
    before, after = int(np.ceil((threshold - low) / width)) + 1, int(np.ceil((high - threshold) / width)) + 1
    return threshold + width * np.arange(-before, after + 1)


def _thinned(ticks: list[float], apart: float) -> list[float]:
    """Drop ticks, from the largest down, that are closer than ``apart`` to the last one kept, or to 0."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if tick >= apart and (not kept or kept[0] - tick >= apart):
            kept.insert(0, tick)
    return kept


def _two_statistics(axes: Axes, document: AuditDocument, narrow: bool) -> None:
    memorization = document.memorization
    by_label, network = np.asarray(memorization.label_memorization), np.asarray(memorization.network_memorization)
    claimed = document.verdict.status != "no-claim"
    dots = np.asarray(memorization.memorized[:MOST_DOTS] if claimed else (), dtype=int)
    rest = np.ones(len(network), bool)
    rest[dots] = False
    axes.axhline(memorization.threshold, color=COLORS["text"], linewidth=0.9, dashes=DASHED)
    axes.axvline(0, color=COLORS["line"], linewidth=0.8)
    axes.axhline(0, color=COLORS["line"], linewidth=0.8)
    if rest.any():
        grid = (32, 15) if narrow else (66, 13)  # regular hexagons at either shape of the axes
        cells = axes.hexbin(by_label[rest], network[rest], gridsize=grid, mincnt=1, linewidths=0.2)
        counts = np.asarray(cells.get_array(), dtype=float)
        # Six steps of opacity instead of a color map: the hue can then follow the page's theme
        opacity = 0.25 + 0.75 * np.ceil(5 * np.log(counts) / max(np.log(counts.max()), 1e-9)) / 5
        cells.set_array(None)
        cells.set_facecolor([to_rgba(COLORS["train"], alpha) for alpha in opacity])
        cells.set_edgecolor("none")
    if len(dots):
        axes.scatter(by_label[dots], network[dots], s=11, color=COLORS["memorized"], linewidths=0, alpha=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.04)
    axes.set_xlabel("memorization by label regression")
    axes.set_ylabel("memorization by this network (logits)")
    _label(axes, "threshold", (by_label.max(), memorization.threshold), (0, 3), "soft", ha="right")


def _flip_curves(axes: Axes, document: AuditDocument) -> None:
    flips = document.flips
    ranks, n = np.asarray(flips.ranks), int(flips.n or 0)
    base = n / document.data.n_train
    axes.axhline(base, color=COLORS["soft"], linewidth=0.9, dashes=DASHED)
    axes.axvline(n, color=COLORS["line"], linewidth=0.9)
    line: dict[str, Any] = {"linewidth": 2, "markersize": 4.5, "marker": "o" if len(ranks) <= 40 else ""}
    axes.plot(ranks, flips.precision or (), color=COLORS["train"], **line)
    axes.plot(ranks, flips.recall or (), color=COLORS["recall"], **line)
    axes.set_ylim(0, 1.12)
    axes.set_xlim(0, ranks.max() * 1.01)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y")
    axes.set_xlabel("k rows with the lowest leave-one-out margin")
    far = 0.62 * ranks.max()  # where the curves are far apart
    precision, recall = (float(np.interp(far, ranks, curve)) for curve in (flips.precision or (), flips.recall or ()))
    _label(axes, "precision", (far, precision), (3, 4), "train", weight="bold")
    _label(axes, "recall", (far, recall), (3, 4), "recall", weight="bold")
    below = base > 0.1  # room for the label between the line and the axis
    place = {"ha": "right", "va": "top" if below else "bottom"}
    _label(axes, f"by chance {_share(base)}", (ranks.max(), base), (0, -4 if below else 4), "soft", **place)
    _label(axes, f"k = {n:,} flips", (n, 0), (5, 5), "soft")


def _label(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], role: str, **place: Any
) -> None:
    place = {"va": "bottom", "textcoords": "offset points", **place}
    axes.annotate(text, at, offset, color=COLORS[role], **place)


def _both_widths(name: str, label: str, draw: Callable[[Axes, bool], None], wide: tuple[float, float] = WIDE) -> Markup:
    """Return two drawings, for desktop and phone; the style sheet shows one."""
    return _svg(f"{name}-wide", label, draw, wide, False) + _svg(f"{name}-narrow", label, draw, NARROW, True)


def _svg(name: str, label: str, draw: Callable[[Axes, bool], None], size: tuple[float, float], narrow: bool) -> Markup:
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


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"
