"""A matplotlib figure that notebooks display without a magic command."""

import io

from matplotlib.figure import Figure

SCREEN = 96  # CSS pixels per inch
DPI = 2 * SCREEN  # sharp on screens of double density


class NotebookFigure(Figure):
    """``matplotlib.figure.Figure`` with a PNG representation; it works without pyplot and without a display."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the PNG file and its size in CSS pixels (called by notebooks)."""
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=DPI)
        width, height = self.get_size_inches()
        return stream.getvalue(), {"width": round(SCREEN * width), "height": round(SCREEN * height)}
