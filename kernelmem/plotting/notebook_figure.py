"""A matplotlib figure that notebooks display without a magic command."""

import io

from matplotlib.figure import Figure

SCREEN = 96  # CSS pixels per inch
DPI = 2 * SCREEN  # sharp on screens of double density


class NotebookFigure(Figure):
    """A ``matplotlib.figure.Figure`` that notebooks display as PNG; it needs neither pyplot nor a display."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return (content of the PNG file, metadata with the size in CSS pixels); notebooks call this method."""
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=DPI)
        width, height = self.get_size_inches()
        return stream.getvalue(), {"width": round(SCREEN * width), "height": round(SCREEN * height)}
