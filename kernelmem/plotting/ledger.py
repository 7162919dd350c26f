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
PITCH = 0.33  # inches per bar
THUMBNAIL = 19.0  # points
CURVES = 3  # positive, and as many negative
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
TERMS = ("decay", "rounding", "buffers", "residual")


class LedgerLike(Protocol):
    """What is drawn of a ledger: ``contributions`` (m, n, k); the other tensors (m, k)."""

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
    """Validated content of the figure.

    ``contributions`` (n,) of all sources; ``terms`` (name, value) of the whole change; ``shown`` the sources with a bar, the
    largest positive contribution first and the largest negative one last; ``by`` the kind of source; ``named`` says that
    ``labels`` are the names of the sources.
    """

    contributions: np.ndarray
    terms: list[tuple[str, float]]
    shown: list[int]
    images: np.ndarray | None
    image: np.ndarray | None
    labels: list[object] | None
    steps: np.ndarray | None
    by: str
    named: bool

    def name(self, source: int) -> str:
        """Return the label of a source in the figure."""
        number = f"step {source}" if self.by == "step" else f"no. {source}"
        if self.labels is None:
            return number
        return str(self.labels[source]) if self.named else f"{self.labels[source]} · {number}"


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
        ledger: what :func:`kernelmem.ledger` returns.
        row: index of the row.
        output: index of the output; None: the one that is largest after training.
        image: the image of the row itself, (h, w) or (h, w, 3).
        images: images of the training examples (or other sources), (n, h, w) or (n, h, w, 3).
        labels: one integer or string per source.
        n: largest number of positive bars, and of negative ones.
        steps: contributions summed up to each step, (T, n), for curves of the largest; or of all examples together, (T,).

    Raises:
        InputError: no such row or output; images, labels or steps of the wrong shape.
    """
    n_rows, _, n_outputs = ledger.contributions.shape
    _check_index(row, n_rows, "row")
    output = int(ledger.final[row].argmax()) if output is None else output
    _check_index(output, n_outputs, "output")
    content = _content(ledger, row, output, n, _Extras(image, images, labels, steps))
    bars = max(len(content.shown), 3)
    height = PITCH * (bars + len(content.terms)) + 2.1
    with_image, with_curves = content.image is not None, content.steps is not None
    widths = [1.25] * with_image + [5.2] + [4.3] * with_curves
    with style(PARAMETERS):
        figure = new_figure(sum(widths) + 1.9, height)
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        grid = figure.add_gridspec(
            2, len(widths), width_ratios=widths, height_ratios=[bars + 1.0, len(content.terms) + 0.6]
        )
        if with_image:
            _draw_image(figure.add_subplot(grid[0, 0]), content)
        _draw_contributions(figure.add_subplot(grid[0, int(with_image)]), content)
        _draw_terms(figure.add_subplot(grid[1, int(with_image)]), content)
        if with_curves:
            _draw_curves(figure.add_subplot(grid[:, -1]), content)
        change = float(ledger.final[row, output] - ledger.initial[row, output])
        name = ledger.names[output]
        name = f"output {name}" if name.isdigit() else name.replace("_", " ")
        title = f"Contributions to {name} of row {row}: {_number(change, sign=True)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        figure.supxlabel(_caption(content), x=0.01, ha="left", fontsize=10, color=SOFT)
    return figure


@dataclass(frozen=True)
class _Extras:
    """Images, labels and cumulative steps as the user passed them."""

    image: ArrayLike | None
    images: ArrayLike | None
    labels: ArrayLike | Sequence[object] | None
    steps: ArrayLike | None


def _content(ledger: LedgerLike, row: int, output: int, n: int, extras: _Extras) -> _Content:
    contributions = as_array(ledger.contributions[row, :, output])
    N = len(contributions)
    if n < 1:
        raise InputError(f"n={n}", expected="at least one bar per direction", hint="pass n=8")
    image, images, steps = (None if v is None else as_array(v) for v in (extras.image, extras.images, extras.steps))
    labels = None if extras.labels is None else list(as_array(extras.labels).tolist())  # pyright: ignore[reportArgumentType]
    if images is not None and (len(images) != N or images.ndim not in (3, 4)):
        raise _misfit("images", images.shape, f"({N}, h, w) or ({N}, h, w, 3)")
    if labels is not None and len(labels) != N:
        raise _misfit("labels", (len(labels),), f"({N},)")
    if steps is not None and not (steps.ndim == 1 or (steps.ndim == 2 and steps.shape[1] == N)):
        raise _misfit("steps", steps.shape, f"(T, {N}) or (T,)")
    if image is not None and image.ndim not in (2, 3):
        raise _misfit("image", image.shape, "(h, w) or (h, w, 3)")
    ranked = np.argsort(-contributions, kind="stable")
    up = [int(i) for i in ranked[:n] if contributions[i] > 0]
    down = [int(i) for i in ranked[::-1][:n] if contributions[i] < 0]
    terms = [
        ("before training", float(ledger.initial[row, output])),
        (f"{ledger.by}s, positive", float(contributions[contributions > 0].sum())),
        (f"{ledger.by}s, negative", float(contributions[contributions < 0].sum())),
        *((name, float(getattr(ledger, name)[row, output])) for name in TERMS),
        ("after training", float(ledger.final[row, output])),
    ]
    named = bool(ledger.sources) and labels == list(ledger.sources)
    return _Content(contributions, terms, up + down[::-1], images, image, labels, steps, ledger.by, named)


def _draw_image(axes: "Axes", content: _Content) -> None:
    assert content.image is not None
    axes.imshow(content.image, cmap="gray", interpolation="nearest")
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(True)
    axes.set_title("this row")


def _draw_contributions(axes: "Axes", content: _Content) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    values = content.contributions[content.shown]
    places = np.arange(len(values)) + 0.6 * (values < 0)  # a gap between positive and negative
    axes.barh(places, values, height=0.72, color=[UP if value > 0 else DOWN for value in values], linewidth=0)
    _label_bars(axes, places, values, [content.name(i) for i in content.shown])
    axes.set_title(f"largest contributions of {'training examples' if content.by == 'example' else f'{content.by}s'}")
    if len(values) == 0:
        axes.text(0.5, 0.5, "all contributions are zero", ha="center", color=SOFT, transform=axes.transAxes)
    if content.images is None:
        return
    axes.tick_params(axis="y", pad=THUMBNAIL + 7)
    low, high = float(content.images.min()), float(content.images.max())
    for place, source in zip(places, content.shown, strict=True):
        pixels = content.images[source]
        thumbnail = OffsetImage(pixels, zoom=THUMBNAIL / max(pixels.shape[:2]), cmap="gray", interpolation="nearest")
        thumbnail.image.set_clim(low, high)
        box = AnnotationBbox(
            thumbnail, (0, place), (-THUMBNAIL / 2 - 3, 0), xycoords=axes.get_yaxis_transform(), boxcoords="offset points",
            frameon=False, pad=0, annotation_clip=False,
        )  # fmt: skip
        axes.add_artist(box)


def _draw_terms(axes: "Axes", content: _Content) -> None:
    names, values = [name for name, _ in content.terms], np.array([value for _, value in content.terms])
    colors = {"before training": TEXT, "after training": TEXT, names[1]: UP, names[2]: DOWN}
    places = np.arange(len(names))
    axes.barh(places, values, height=0.6, color=[colors.get(name, SOFT) for name in names], linewidth=0)
    _label_bars(axes, places, values, names)
    axes.set_title("all terms")


def _label_bars(axes: "Axes", places: np.ndarray, values: np.ndarray, names: list[str]) -> None:
    """Write the names at the left and the values at the ends of the bars, with room for both."""
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim((places[-1] if len(places) else 0) + 0.6, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    low, high = min(0.0, float(values.min(initial=0.0))), max(0.0, float(values.max(initial=0.0)))
    room = 0.3 * ((high - low) or largest)  # for a value next to a bar that reaches an end
    axes.set_xlim(low - (room if low < 0 else 0.02 * room), high + room)
    for place, value in zip(places, values, strict=True):
        side = -1 if value < 0 else 1
        axes.annotate(
            _number(value, sign=True), (value, place), (4 * side, 0), textcoords="offset points",
            ha="left" if side > 0 else "right", va="center", fontsize=9.5, color=SOFT,
        )  # fmt: skip


def _draw_curves(axes: "Axes", content: _Content) -> None:
    assert content.steps is not None
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.grid(axis="y")
    axes.set_xlabel("training step")
    axes.tick_params(axis="y", labelcolor=SOFT, length=0)
    time = np.arange(len(content.steps) + 1)
    summed = np.concatenate([np.zeros_like(content.steps[:1]), content.steps])
    if summed.ndim == 1:
        axes.plot(time, summed, color=TEXT, linewidth=1.8)
        axes.set_title("cumulative contribution of all examples")
        return
    axes.set_title("largest contributions, cumulative")
    ups = [i for i in content.shown if content.contributions[i] > 0][:CURVES]
    downs = [i for i in content.shown if content.contributions[i] < 0][::-1][:CURVES]
    for color, sources in ((UP, ups), (DOWN, downs)):
        for source, dashes in zip(sources, DASHES, strict=False):
            axes.plot(time, summed[:, source], color=color, linewidth=1.6, linestyle=dashes)
    low, high = axes.get_ylim()
    sources = ups + downs
    ends = [float(summed[-1, source]) for source in sources]
    for source, end, place in zip(sources, ends, _spread(ends, 0.045 * (high - low)), strict=True):
        axes.annotate(
            content.name(source), (float(time[-1]), end), (1.05, place), textcoords=axes.get_yaxis_transform(), va="center",
            color=UP if content.contributions[source] > 0 else DOWN, fontsize=9.5,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1},
        )  # fmt: skip


def _spread(ends: list[float], apart: float) -> list[float]:
    """Move values as little as needed until neighbors are ``apart``, in the same order."""
    order = np.argsort(ends)
    placed = np.array(ends)[order]
    for _ in range(100):
        overlap = np.maximum(apart - np.diff(placed), 0.0) / 2
        if not (overlap > 1e-6 * apart).any():
            break
        placed[:-1] -= overlap
        placed[1:] += overlap
    spread = np.empty(len(ends))
    spread[order] = placed
    return spread.tolist()


def _caption(content: _Content) -> str:
    contributions = content.contributions
    mass, total = float(np.abs(contributions).sum()), float(contributions.sum())
    share = float(np.abs(contributions[content.shown]).sum()) / mass if mass else 0.0
    ratio = f"{mass / abs(total):.1f} times |Σc|" if total else "and Σc is zero"
    return (
        f"Σ|c| over the {len(contributions):,} {content.by}s is {_number(mass)}, {ratio}; the bars hold {share:.0%} of it.\n"
        "The ledger describes the recorded run; for counterfactuals use kernelmem.influence."
    )


def _number(value: float, *, sign: bool = False) -> str:
    text = "0" if value == 0 else f"{value:+#.3g}" if sign else f"{value:#.3g}"
    return text.rstrip(".").replace("-", "\N{MINUS SIGN}")


def _check_index(value: int, size: int, name: str) -> None:
    if not 0 <= value < size:
        raise InputError(f"{name}={value}", expected=f"0..{size - 1}", hint="see ledger.contributions.shape")


def _misfit(name: str, shape: Sequence[int], expected: str) -> InputError:
    return InputError(f"{name} of shape {tuple(shape)}", expected=expected, hint="pass one per source of the ledger")
