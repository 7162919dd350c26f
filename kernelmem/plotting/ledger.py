"""The picture of one prediction's ledger: which training examples pushed it up, which down, and what else did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelmem.core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kernelmem.trajectory.ledger.ledger import Ledger

__all__ = ["ledger_figure"]

# Blue and orange are told apart with every kind of color vision.
UP, DOWN, TEXT, SOFT, LINE, PAGE = "#3b6fc4", "#d9780f", "#1d2433", "#5b6475", "#d5d9e1", "#fefefd"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "kernelmem",
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": TEXT,
    "ytick.major.size": 0.0,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}
PAD = 0.08  # inches
PITCH = 0.33  # inches a bar
THUMBNAIL = 19.0  # points
CURVES = 3  # up, and as many down
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class _Content:
    """What is drawn, read and checked."""

    contributions: np.ndarray  # (n,)
    lines: list[tuple[str, float]]
    order: list[int]  # examples shown: the largest upward first, the largest downward last
    images: np.ndarray | None
    image: np.ndarray | None
    labels: Sequence[Any] | None
    steps: np.ndarray | None
    by: str = "example"  # what the sources are
    named: bool = False  # whether labels are names of the sources

    def name(self, source: int) -> str:
        """As the figure calls a source."""
        number = f"step {source}" if self.by == "step" else f"no. {source}"
        if self.labels is None:
            return number
        return str(self.labels[source]) if self.named else f"{self.labels[source]} · {number}"


def ledger_figure(
    ledger: "Ledger",
    row: int,
    *,
    output: int | None = None,
    image: Any = None,
    images: Any = None,
    labels: Any = None,
    n: int = 8,
    steps: Any = None,
) -> "Figure":
    """Draw the ledger of one row's output: the largest contributions up and down, and the other lines.

    Args:
        ledger: what :func:`kernelmem.ledger` returns.
        row: ordinal of the row.
        output: which output; None: the one that is largest after training.
        image: the row's own picture, (h, w) or (h, w, 3).
        images: pictures of the training examples (or other sources), (n, h, w) or (n, h, w, 3).
        labels: what these are called, one integer or string each.
        n: how many bars up, and how many down, at most.
        steps: contributions summed up to each step, (T, n), for curves of the largest; or of all examples together, (T,).

    Raises:
        InputError: no such row or output, pictures, labels or steps that are not one for each example.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, _, outputs = ledger.contributions.shape
    _check(row, rows, "row")
    output = int(ledger.final[row].argmax()) if output is None else output
    _check(output, outputs, "output")
    content = _read(ledger, row, output, image, images, labels, n, steps)
    bars = max(len(content.order), 3)
    height = PITCH * (bars + len(content.lines)) + 2.1
    pictured, curved = content.image is not None, content.steps is not None
    widths = [1.25] * pictured + [5.2] + [4.3] * curved
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(sum(widths) + 1.9, height), layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD), facecolor=PAGE
        )
        grid = figure.add_gridspec(
            2, len(widths), width_ratios=widths, height_ratios=[bars + 1.0, len(content.lines) + 0.6]
        )
        if pictured:
            _picture(figure.add_subplot(grid[0, 0]), content)
        _bars(figure.add_subplot(grid[0, int(pictured)]), content)
        _lines(figure.add_subplot(grid[1, int(pictured)]), content)
        if curved:
            _curves(figure.add_subplot(grid[:, -1]), content)
        change = float(ledger.final[row, output] - ledger.initial[row, output])
        name = ledger.names[output]
        figure.suptitle(
            f"What moved {f'output {name}' if name.isdigit() else f'the {name}'} of row {row} by {_number(change, sign=True)}",
            x=0.01,
            ha="left",
            fontsize=13,
            weight="bold",
        )
        figure.supxlabel(_caption(content), x=0.01, ha="left", fontsize=10, color=SOFT)
    return figure


def _read(
    ledger: "Ledger", row: int, output: int, image: Any, images: Any, labels: Any, n: int, steps: Any
) -> _Content:
    own = ledger.contributions[row, :, output].numpy()
    if n < 1:
        raise InputError(f"n={n}", expected="at least one bar up and one down", hint="pass n=8")
    images, steps = (None if value is None else np.asarray(value) for value in (images, steps))
    if images is not None and (len(images) != len(own) or images.ndim not in (3, 4)):
        raise _misfit("images", images.shape, f"({len(own)}, h, w) or ({len(own)}, h, w, 3)")
    if labels is not None and len(labels) != len(own):
        raise _misfit("labels", (len(labels),), f"({len(own)},)")
    if steps is not None and not (steps.ndim == 1 or (steps.ndim == 2 and steps.shape[1] == len(own))):
        raise _misfit("steps", steps.shape, f"(T, {len(own)}) or (T,)")
    if image is not None:
        image = np.asarray(image)
        if image.ndim not in (2, 3):
            raise _misfit("image", image.shape, "(h, w) or (h, w, 3)")
    names = None if labels is None else [value.item() if hasattr(value, "item") else value for value in labels]
    ranked = np.argsort(-own, kind="stable")
    up = [int(i) for i in ranked[:n] if own[i] > 0]
    down = [int(i) for i in ranked[::-1][:n] if own[i] < 0]
    lines = [
        ("before training", float(ledger.initial[row, output])),
        (f"{ledger.by}s, up", float(own[own > 0].sum())),
        (f"{ledger.by}s, down", float(own[own < 0].sum())),
    ]
    lines += [
        (name, float(getattr(ledger, name)[row, output])) for name in ("decay", "rounding", "buffers", "residual")
    ]
    lines.append(("after training", float(ledger.final[row, output])))
    named = bool(ledger.sources) and names == list(ledger.sources)
    return _Content(own, lines, up + down[::-1], images, image, names, steps, ledger.by, named)


def _picture(axes: "Axes", content: _Content) -> None:
    assert content.image is not None
    axes.imshow(content.image, cmap="gray", interpolation="nearest")
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(True)
    axes.set_title("this row")


def _bars(axes: "Axes", content: _Content) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    values = content.contributions[content.order]
    places = np.arange(len(values)) + 0.6 * (values < 0)  # a gap between up and down
    axes.barh(places, values, height=0.72, color=[UP if value > 0 else DOWN for value in values], linewidth=0)
    _frame(axes, places, values, [content.name(i) for i in content.order])
    what = "training examples" if content.by == "example" else f"{content.by}s"
    axes.set_title(f"{what} that moved it most")
    if len(values) == 0:
        axes.text(0.5, 0.5, f"no {content.by} moved it", ha="center", color=SOFT, transform=axes.transAxes)
    if content.images is None:
        return
    axes.tick_params(axis="y", pad=THUMBNAIL + 7)
    low, high = float(content.images.min()), float(content.images.max())
    for place, example in zip(places, content.order, strict=True):
        pixels = content.images[example]
        shown = OffsetImage(pixels, zoom=THUMBNAIL / max(pixels.shape[:2]), cmap="gray", interpolation="nearest")
        shown.image.set_clim(low, high)
        at: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "boxcoords": "offset points"}
        axes.add_artist(
            AnnotationBbox(
                shown, (0, place), (-THUMBNAIL / 2 - 3, 0), frameon=False, pad=0, annotation_clip=False, **at
            )
        )


def _lines(axes: "Axes", content: _Content) -> None:
    names, found = zip(*content.lines, strict=True)
    values, places = np.array(found), np.arange(len(found))
    ends = {"before training": TEXT, "after training": TEXT}
    colors = [
        UP if name.endswith(", up") else DOWN if name.endswith(", down") else ends.get(name, SOFT) for name in names
    ]
    axes.barh(places, values, height=0.6, color=colors, linewidth=0)
    _frame(axes, places, values, list(names))
    axes.set_title("the whole account")


def _frame(axes: "Axes", places: np.ndarray, values: np.ndarray, names: list[str]) -> None:
    """Names at the left, values at the ends of bars, room for both."""
    axes.set_yticks(places, names)
    axes.set_ylim((places[-1] if len(places) else 0) + 0.6, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    low, high = min(0.0, float(values.min(initial=0.0))), max(0.0, float(values.max(initial=0.0)))
    room = 0.3 * ((high - low) or largest)  # for a value beside a bar that reaches an end
    axes.set_xlim(low - (room if low < 0 else 0.02 * room), high + room)
    for place, value in zip(places, values, strict=True):
        side = -1 if value < 0 else 1
        axes.annotate(
            _number(value, sign=True),
            (value, place),
            (4 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9.5,
            color=SOFT,
        )


def _curves(axes: "Axes", content: _Content) -> None:
    assert content.steps is not None
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.grid(axis="y")
    axes.set_xlabel("steps taken")
    axes.tick_params(axis="y", labelcolor=SOFT)
    along = np.arange(len(content.steps) + 1)
    summed = np.concatenate([np.zeros_like(content.steps[:1]), content.steps])
    if summed.ndim == 1:
        axes.plot(along, summed, color=TEXT, linewidth=1.8)
        axes.set_title("all examples, summed up to each step")
        return
    axes.set_title("the largest, summed up to each step")
    ups = [i for i in content.order if content.contributions[i] > 0][:CURVES]
    downs = [i for i in content.order if content.contributions[i] < 0][::-1][:CURVES]
    order = ups + downs
    used = {UP: 0, DOWN: 0}
    for example in order:
        color = UP if content.contributions[example] > 0 else DOWN
        axes.plot(along, summed[:, example], color=color, linewidth=1.6, linestyle=DASHES[used[color]])
        used[color] += 1
    low, high = axes.get_ylim()
    ends = [float(summed[-1, example]) for example in order]
    apart = 0.035 * (high - low)
    for example, end, place in zip(order, ends, _spread(ends, apart), strict=True):
        color = UP if content.contributions[example] > 0 else DOWN
        thin: dict[str, Any] = {"arrowstyle": "-", "color": LINE, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 1}
        axes.annotate(
            content.name(example),
            (float(along[-1]), end),
            (1.05, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=color,
            fontsize=9.5,
            arrowprops=thin,
        )


def _spread(ends: list[float], apart: float) -> list[float]:
    """Places for words beside ``ends``, at least ``apart`` from each other, moved as little as a sweep finds."""
    order = np.argsort(ends)
    placed = np.array(ends)[order]
    for _ in range(100):
        gaps = np.diff(placed)
        close = np.maximum(apart - gaps, 0.0) / 2
        if not (close > 1e-6 * apart).any():
            break
        placed[:-1] -= close
        placed[1:] += close
    found = np.empty(len(ends))
    found[order] = placed
    return found.tolist()


def _caption(content: _Content) -> str:
    own = content.contributions
    mass, total = float(np.abs(own).sum()), float(own.sum())
    shown = float(np.abs(own[content.order]).sum()) / mass if mass else 0.0
    ratio = f"{mass / abs(total):.1f} times their sum" if total else "their sum is zero"
    return (
        f"Mass of the {len(own):,} {content.by}s: {_number(mass)}, {ratio}; those shown carry {shown:.0%} of it.\n"
        "An account of the training that took place; what another training would give is another question."
    )


def _number(value: float, *, sign: bool = False) -> str:
    text = "0" if value == 0 else f"{value:+#.3g}" if sign else f"{value:#.3g}"
    return text.rstrip(".").replace("-", "\N{MINUS SIGN}")


def _check(value: int, size: int, name: str) -> None:
    if not 0 <= value < size:
        raise InputError(f"{name}={value}", expected=f"0..{size - 1}", hint="see ledger.contributions.shape")


def _misfit(name: str, shape: Any, expected: str) -> InputError:
    return InputError(
        f"{name} of shape {tuple(shape)}", expected=expected, hint="give one for each source of the ledger"
    )
