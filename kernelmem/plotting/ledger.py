"""Figure of one prediction's ledger: the largest positive and negative contributions, and all other terms."""

# ruff: noqa: D102 (attributes of protocols)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.plotting.style import BLUE, LINE, ORANGE, SOFT, TEXT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UP, DOWN = BLUE, ORANGE
PARAMETERS: dict[str, object] = {
    "font.size": 10.5,
    "axes.titlecolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.spines.left": False,
    "ytick.labelcolor": TEXT,
}
BAR_PITCH = 0.33  # inches per bar
THUMBNAIL_SIZE = 19.0  # points
MAX_CURVES = 3  # positive, and as many negative
LINE_STYLES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
TERMS = ("decay", "rounding", "buffers", "residual")


class LedgerLike(Protocol):
    """Fields of a ledger that :func:`ledger_figure` reads.

    ``contributions`` is (m, n, k) for m explained rows, n sources (for example training examples) and k outputs; the
    other tensors are (m, k).
    """

    @property
    def contributions(self) -> Tensor: ...
    @property
    def initial(self) -> Tensor: ...
    @property
    def final(self) -> Tensor: ...
    @property
    def decay(self) -> Tensor: ...
    @property
    def rounding(self) -> Tensor: ...
    @property
    def buffers(self) -> Tensor: ...
    @property
    def residual(self) -> Tensor: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def by(self) -> str: ...
    @property
    def sources(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class _Content:
    """Validated content of the figure of one output of one row.

    ``contributions`` (n,) holds the contribution of each of n sources, and ``terms`` the (name, value) pairs from the
    output before training to the output after training. ``shown_sources`` are the sources drawn as bars, from the
    largest positive contribution to the largest negative one. ``by`` is the kind of source, and ``labels_are_names`` is
    True if ``labels`` are the names of the sources.
    """

    contributions: np.ndarray
    terms: list[tuple[str, float]]
    shown_sources: list[int]
    images: np.ndarray | None
    image: np.ndarray | None
    labels: list[object] | None
    steps: np.ndarray | None
    by: str
    labels_are_names: bool

    def name(self, source: int) -> str:
        """Return the label of source number ``source`` in the figure."""
        number = f"step {source}" if self.by == "step" else f"no. {source}"
        if self.labels is None:
            return number
        return str(self.labels[source]) if self.labels_are_names else f"{self.labels[source]} · {number}"


def ledger_figure(
    ledger: LedgerLike,
    row: int,
    *,
    output: int | None = None,
    image: ArrayLike | None = None,
    images: ArrayLike | None = None,
    labels: ArrayLike | Sequence[object] | None = None,
    n: int = 8,
    steps: ArrayLike | None = None,
) -> "Figure":
    """Draw the ledger of one row's output: the largest positive and negative contributions, and the other terms.

    Args:
        ledger: result of :func:`kernelmem.ledger`.
        row: index of the row.
        output: index of the output; None: the one that is largest after training.
        image: image of the row itself, (h, w) or (h, w, 3).
        images: images of the training examples (or other sources), (N, h, w) or (N, h, w, 3) for N sources.
        labels: one integer or string per source.
        n: maximum number of bars for positive contributions, and the same for negative ones.
        steps: cumulative contributions up to each of T steps: (T, N) for N sources, of which the largest are drawn, or (T,)
            for their sum over sources.

    Raises:
        InputError: row or output is out of range; images, labels or steps have the wrong shape.
    """
    m, _, n_outputs = ledger.contributions.shape
    _check_index(row, m, "row")
    output_index = int(ledger.final[row].argmax()) if output is None else output
    _check_index(output_index, n_outputs, "output")
    content = _validated_content(ledger, row, output_index, n, _Extras(image, images, labels, steps))
    n_bars = max(len(content.shown_sources), 3)
    height = BAR_PITCH * (n_bars + len(content.terms)) + 2.1
    with_image, with_curves = content.image is not None, content.steps is not None
    panel_widths = [1.25] * with_image + [5.2] + [4.3] * with_curves
    with style(PARAMETERS):
        figure = new_figure(sum(panel_widths) + 1.9, height)
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        grid = figure.add_gridspec(
            2, len(panel_widths), width_ratios=panel_widths, height_ratios=[n_bars + 1.0, len(content.terms) + 0.6]
        )
        if with_image:
            _draw_image(figure.add_subplot(grid[0, 0]), content)
        _draw_contributions(figure.add_subplot(grid[0, int(with_image)]), content)
        _draw_terms(figure.add_subplot(grid[1, int(with_image)]), content)
        if with_curves:
            _draw_curves(figure.add_subplot(grid[:, -1]), content)
        change = float(ledger.final[row, output_index] - ledger.initial[row, output_index])
        output_name = ledger.names[output_index]
        output_name = f"output {output_name}" if output_name.isdigit() else output_name.replace("_", " ")
        title = f"Contributions to {output_name} of row {row}: {_number(change, sign=True)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        figure.supxlabel(_caption(content), x=0.01, ha="left", fontsize=10, color=SOFT)
    return figure


@dataclass(frozen=True)
class _Extras:
    """Images, labels and cumulative contributions as the user passed them to :func:`ledger_figure`."""

    image: ArrayLike | None
    images: ArrayLike | None
    labels: ArrayLike | Sequence[object] | None
    steps: ArrayLike | None


def _validated_content(ledger: LedgerLike, row: int, output_index: int, n: int, extras: _Extras) -> _Content:
    """Return the validated arrays for one output of one row, and the choice of sources to draw as bars.

    At most ``n`` positive and ``n`` negative contributions are chosen. An InputError is raised for images, labels or
    steps of a wrong shape.
    """
    contributions = as_array(ledger.contributions[row, :, output_index])
    n_sources = len(contributions)
    if n < 1:
        raise InputError(f"n={n}", expected="at least one bar per direction", hint="pass n=8")
    image, images, steps = (
        None if values is None else as_array(values) for values in (extras.image, extras.images, extras.steps)
    )
    labels = None if extras.labels is None else list(as_array(extras.labels).tolist())  # pyright: ignore[reportArgumentType]
    if images is not None and (len(images) != n_sources or images.ndim not in (3, 4)):
        raise _shape_error("images", images.shape, f"({n_sources}, h, w) or ({n_sources}, h, w, 3)")
    if labels is not None and len(labels) != n_sources:
        raise _shape_error("labels", (len(labels),), f"({n_sources},)")
    if steps is not None and not (steps.ndim == 1 or (steps.ndim == 2 and steps.shape[1] == n_sources)):
        raise _shape_error("steps", steps.shape, f"(T, {n_sources}) or (T,)")
    if image is not None and image.ndim not in (2, 3):
        raise _shape_error("image", image.shape, "(h, w) or (h, w, 3)")
    descending = np.argsort(-contributions, kind="stable")
    positive = [int(source) for source in descending[:n] if contributions[source] > 0]
    negative = [int(source) for source in descending[::-1][:n] if contributions[source] < 0]
    terms = [
        ("before training", float(ledger.initial[row, output_index])),
        (f"{ledger.by}s, positive", float(contributions[contributions > 0].sum())),
        (f"{ledger.by}s, negative", float(contributions[contributions < 0].sum())),
        *((name, float(getattr(ledger, name)[row, output_index])) for name in TERMS),
        ("after training", float(ledger.final[row, output_index])),
    ]
    labels_are_names = bool(ledger.sources) and labels == list(ledger.sources)
    return _Content(
        contributions, terms, positive + negative[::-1], images, image, labels, steps, ledger.by, labels_are_names
    )


def _draw_image(axes: "Axes", content: _Content) -> None:
    assert content.image is not None
    axes.imshow(content.image, cmap="gray", interpolation="nearest")
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(True)
    axes.set_title("this row")


def _draw_contributions(axes: "Axes", content: _Content) -> None:
    """Draw one bar per chosen source, with a small image of the source if there are images."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    values = content.contributions[content.shown_sources]
    bar_positions = np.arange(len(values)) + 0.6 * (values < 0)  # a gap between positive and negative
    axes.barh(bar_positions, values, height=0.72, color=[UP if value > 0 else DOWN for value in values], linewidth=0)
    _label_bars(axes, bar_positions, values, [content.name(source) for source in content.shown_sources])
    axes.set_title(f"largest contributions of {'training examples' if content.by == 'example' else f'{content.by}s'}")
    if len(values) == 0:
        axes.text(0.5, 0.5, "all contributions are zero", ha="center", color=SOFT, transform=axes.transAxes)
    if content.images is None:
        return
    axes.tick_params(axis="y", pad=THUMBNAIL_SIZE + 7)
    low, high = float(content.images.min()), float(content.images.max())
    for y, source in zip(bar_positions, content.shown_sources, strict=True):
        pixels = content.images[source]
        thumbnail = OffsetImage(
            pixels, zoom=THUMBNAIL_SIZE / max(pixels.shape[:2]), cmap="gray", interpolation="nearest"
        )
        thumbnail.image.set_clim(low, high)
        box = AnnotationBbox(
            thumbnail, (0, y), (-THUMBNAIL_SIZE / 2 - 3, 0), xycoords=axes.get_yaxis_transform(), boxcoords="offset points",
            frameon=False, pad=0, annotation_clip=False,
        )  # fmt: skip
        axes.add_artist(box)


def _draw_terms(axes: "Axes", content: _Content) -> None:
    """Draw one bar per term of the change, from the output before training to the output after training."""
    names, values = [name for name, _ in content.terms], np.array([value for _, value in content.terms])
    colors = {"before training": TEXT, "after training": TEXT, names[1]: UP, names[2]: DOWN}
    bar_positions = np.arange(len(names))
    axes.barh(bar_positions, values, height=0.6, color=[colors.get(name, SOFT) for name in names], linewidth=0)
    _label_bars(axes, bar_positions, values, names)
    axes.set_title("all terms")


def _label_bars(axes: "Axes", bar_positions: np.ndarray, values: np.ndarray, names: list[str]) -> None:
    """Write ``names`` at the left of horizontal bars and their values at the ends, and widen the axes for both."""
    axes.set_yticks(bar_positions, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim((bar_positions[-1] if len(bar_positions) else 0) + 0.6, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    low, high = min(0.0, float(values.min(initial=0.0))), max(0.0, float(values.max(initial=0.0)))
    label_width = 0.3 * ((high - low) or largest)  # for a value next to a bar that reaches an end
    axes.set_xlim(low - (label_width if low < 0 else 0.02 * label_width), high + label_width)
    for y, value in zip(bar_positions, values, strict=True):
        side = -1 if value < 0 else 1
        axes.annotate(
            _number(value, sign=True), (value, y), (4 * side, 0), textcoords="offset points",
            ha="left" if side > 0 else "right", va="center", fontsize=9.5, color=SOFT,
        )  # fmt: skip


def _draw_curves(axes: "Axes", content: _Content) -> None:
    """Draw the cumulative contributions over steps: one curve per large source, or one for the sum of all sources."""
    assert content.steps is not None
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.grid(axis="y")
    axes.set_xlabel("training step")
    axes.tick_params(axis="y", labelcolor=SOFT, length=0)
    step = np.arange(len(content.steps) + 1)
    cumulative = np.concatenate([np.zeros_like(content.steps[:1]), content.steps])
    if cumulative.ndim == 1:
        axes.plot(step, cumulative, color=TEXT, linewidth=1.8)
        axes.set_title("cumulative contribution of all examples")
        return
    axes.set_title("largest contributions, cumulative")
    positive = [source for source in content.shown_sources if content.contributions[source] > 0][:MAX_CURVES]
    negative = [source for source in content.shown_sources if content.contributions[source] < 0][::-1][:MAX_CURVES]
    for color, sources in ((UP, positive), (DOWN, negative)):
        for source, line_style in zip(sources, LINE_STYLES, strict=False):
            axes.plot(step, cumulative[:, source], color=color, linewidth=1.6, linestyle=line_style)
    low, high = axes.get_ylim()
    sources = positive + negative
    final_values = [float(cumulative[-1, source]) for source in sources]
    for source, final_value, label_y in zip(
        sources, final_values, _spread_apart(final_values, 0.045 * (high - low)), strict=True
    ):
        axes.annotate(
            content.name(source), (float(step[-1]), final_value), (1.05, label_y),
            textcoords=axes.get_yaxis_transform(), va="center",
            color=UP if content.contributions[source] > 0 else DOWN, fontsize=9.5,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1},
        )  # fmt: skip


def _spread_apart(positions: list[float], min_distance: float) -> list[float]:
    """Return the positions in the same order, moved slightly until neighbors are at least ``min_distance`` apart.

    Neighbors that overlap move apart by equal amounts, in at most 100 iterations.
    """
    order = np.argsort(positions)
    moved = np.array(positions)[order]
    for _ in range(100):
        overlap = np.maximum(min_distance - np.diff(moved), 0.0) / 2
        if not (overlap > 1e-6 * min_distance).any():
            break
        moved[:-1] -= overlap
        moved[1:] += overlap
    spread = np.empty(len(positions))
    spread[order] = moved
    return spread.tolist()


def _caption(content: _Content) -> str:
    """Return a caption that states how much the contributions cancel, and what share of them the bars show."""
    contributions = content.contributions
    sum_of_magnitudes, total = float(np.abs(contributions).sum()), float(contributions.sum())
    share = float(np.abs(contributions[content.shown_sources]).sum()) / sum_of_magnitudes if sum_of_magnitudes else 0.0
    cancellation = f"{sum_of_magnitudes / abs(total):.1f} times |Σc|" if total else "and Σc is zero"
    return (
        f"Σ|c| over the {len(contributions):,} {content.by}s is {_number(sum_of_magnitudes)}, {cancellation};"
        f" the bars hold {share:.0%} of it.\n"
        "The ledger describes the recorded run; for counterfactuals use kernelmem.influence."
    )


def _number(value: float, *, sign: bool = False) -> str:
    text = "0" if value == 0 else f"{value:+#.3g}" if sign else f"{value:#.3g}"
    return text.rstrip(".").replace("-", "\N{MINUS SIGN}")


def _check_index(value: int, size: int, name: str) -> None:
    if not 0 <= value < size:
        raise InputError(f"{name}={value}", expected=f"0..{size - 1}", hint="see ledger.contributions.shape")


def _shape_error(name: str, shape: Sequence[int], expected: str) -> InputError:
    return InputError(f"{name} of shape {tuple(shape)}", expected=expected, hint="pass one per source of the ledger")
