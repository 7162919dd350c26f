"""Drawings as SVG inside the page: colors follow the theme, one version for desktops and one for phones."""

import io
import re
from collections.abc import Callable

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kernelmem.plotting.style import BLUE, LINE, ORANGE, PAGE, SOFT, TEXT, style

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
WIDE, HALF, NARROW = (10.2, 3.9), (6.6, 3.7), (4.7, 3.8)

Draw = Callable[[Axes, bool], None]
"""Function that draws on axes; its second argument is True for the version for phones."""


def wide_and_narrow(
    name: str,
    label: str,
    draw: Draw,
    *,
    wide: tuple[float, float] = WIDE,
    narrow: tuple[float, float] = NARROW,
) -> Markup:
    """Return SVG with a wide drawing for desktops and a narrow one for phones.

    The style sheet of the page shows the one that fits the screen. ``name`` prefixes the ids in the drawing, ``label`` is its
    description for screen readers, and the sizes are in inches.
    """
    return _render(f"{name}-wide", label, draw, wide, False) + _render(f"{name}-narrow", label, draw, narrow, True)


def _render(name: str, label: str, draw: Draw, size: tuple[float, float], narrow: bool) -> Markup:
    """Return one drawing as SVG whose fixed colors are replaced by the color variables of the page."""
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
