"""Figure of an account: the bar of the labels' bits, the bar of the null, and the memorized bits of each row."""

# ruff: noqa: D102 (attributes of protocols)

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.plotting.style import BLUE, GRAY, LINE, ORANGE, SOFT, TEXT, as_array, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

N_THUMBNAILS = 12
COLUMNS = 6
HATCH = "////"
BAR_HEIGHT = 0.62


class AccountLike(Protocol):
    """Fields of an account that :func:`account_figure` reads."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def predicted(self) -> Tensor: ...
    @property
    def uniform(self) -> float: ...
    @property
    def online(self) -> float | None: ...
    @property
    def left_out(self) -> float | None: ...
    @property
    def network(self) -> float: ...
    @property
    def memorized(self) -> float | None: ...
    @property
    def memorized_rows(self) -> Tensor: ...
    @property
    def noise(self) -> float | None: ...
    @property
    def nulls(self) -> Mapping[str, float]: ...
    @property
    def reference(self) -> str: ...


def account_figure(account: AccountLike, images: ArrayLike | None = None) -> "Figure":
    """Draw the bar of an account over that of its null, and the memorized bits of the rows in descending order.

    ``images``, (n, h, w), (n, h, w, 3), (n, 1, h, w) or (n, 3, h, w), are the rows, of which the 12 most memorized are shown.
    """
    pictures = None if images is None else _as_pictures(images, len(account.labels))
    estimable = account.memorized is not None
    with style():
        figure = new_figure(10.0 if estimable else 6.4, 3.7)
        if not estimable:
            _draw_bars(figure.add_subplot(), account)
            return figure
        panels = figure.subfigures(1, 2, width_ratios=[1.25, 1])
        left, right = panels  # pyright: ignore[reportGeneralTypeIssues]
        _draw_bars(left.add_subplot(), account)
        _draw_rows(right, account, pictures)
    return figure


def _draw_bars(axes: "Axes", account: AccountLike) -> None:
    """Draw the bar of the network, that of the null with the largest number of bits, and what the parts are."""
    uniform = account.uniform
    axes.set_xlim(0, uniform)
    axes.set_title(f"{_bits(uniform)} bits of {len(account.labels):,} labels")
    if account.left_out is None or account.memorized is None or account.noise is None:
        held = max(0.0, uniform - account.network)
        parts = [
            (held, LINE, "", f"{_bits(held)} from the other rows or memorized"),
            (account.network, GRAY, "", f"{_bits(account.network)} in neither"),
        ]
        _draw_bar(axes, 0, parts)
        axes.set_yticks([0], ["network"])
        text = f"not estimable: the reference\n({account.reference})\npredicts no better than the uniform distribution"
        axes.text(0.5, 0.03, text, ha="center", va="bottom", color=TEXT, transform=axes.transAxes)
        axes.set_ylim(2.1, -0.9)
    else:
        follows, memorized = uniform - account.left_out, max(0.0, account.memorized)
        noise = min(account.noise, memorized)
        text = f"{_bits(account.memorized)} memorized"
        hatched = f"{text}; hatched: up to {_bits(noise)} of label noise" if noise >= 0.5 else ""
        parts = [
            (follows, BLUE, "", f"{_bits(follows)} follow from the other rows"),
            (noise, ORANGE, HATCH, hatched),
            (memorized - noise, ORANGE, "", "" if hatched else text),
            (uniform - follows - memorized, GRAY, "", f"{_bits(account.network)} in neither"),
        ]
        _draw_bar(axes, 0, parts)
        axes.set_yticks([0], ["network"])
        if account.nulls:
            name, bits = max(account.nulls.items(), key=lambda item: abs(item[1]))
            null = min(max(0.0, bits), uniform - follows)
            parts = [(follows, BLUE, "", ""), (null, ORANGE, "", ""), (uniform - follows - null, GRAY, "", "")]
            _draw_bar(axes, 1, parts)
            axes.set_yticks([0, 1], ["network", "null"])
            axes.text(
                0, 1 + 0.8 * BAR_HEIGHT, f"null: {name}, {_bits(bits)} memorized", color=SOFT, fontsize=9, va="top"
            )
        axes.set_ylim(1.85, -0.95)
    if account.online is not None and account.online < uniform:
        place = uniform - account.online
        axes.plot([place, place], [-BAR_HEIGHT / 2 - 0.12, BAR_HEIGHT / 2], color=TEXT, linewidth=1.2, clip_on=False)
        text = f"without the network a decoder saves {_bits(place)}"
        side = "left" if place < uniform / 3 else "right" if place > 2 * uniform / 3 else "center"
        axes.text(place, -BAR_HEIGHT / 2 - 0.16, text, ha=side, va="bottom", color=TEXT, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("bits")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=1, handlelength=1.4, borderaxespad=0)


def _draw_bar(axes: "Axes", height: float, parts: list[tuple[float, str, str, str]]) -> None:
    """Draw parts (width, color, hatch, label) of a horizontal bar one after the other."""
    start = 0.0
    for width, color, hatch, label in parts:
        axes.barh(
            height, max(0.0, width), BAR_HEIGHT, left=start, color=color, hatch=hatch, label=label or None,
            edgecolor="white", linewidth=0,
        )  # fmt: skip
        start += max(0.0, width)


def _draw_rows(figure: "SubFigure", account: AccountLike, pictures: np.ndarray | None) -> None:
    """Draw the memorized bits of all rows in descending order, and pictures of the first ones."""
    bits = as_array(account.memorized_rows)
    order = np.argsort(-bits, kind="stable")
    n_rows = 0 if pictures is None else -(-min(len(order), N_THUMBNAILS) // COLUMNS)
    grid = figure.add_gridspec(1 + n_rows, COLUMNS, height_ratios=[2.2] + [1.0] * n_rows)
    axes = figure.add_subplot(grid[0, :])
    ranks = np.arange(1, len(order) + 1)
    axes.fill_between(ranks, 0, bits[order], step="mid", color=ORANGE, alpha=0.25, linewidth=0)
    axes.plot(ranks, bits[order], drawstyle="steps-mid", color=ORANGE, linewidth=1.3)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    axes.set_xlim(0.5, len(order) + 0.5)
    largest = max(1.0, float(bits.max()))
    axes.set_ylim(min(0.0, float(bits.min())) - 0.04 * largest, 1.04 * largest)
    axes.set(xlabel="rows, most memorized first", ylabel="bits")
    axes.set_title("Memorized bits of each row")
    if pictures is None:
        return
    figure.supxlabel("label (most probable class by the other rows)", fontsize=9, color=SOFT)
    low, high = float(pictures.min()), float(pictures.max())
    for place, row in enumerate(order[:N_THUMBNAILS]):
        cell = figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS])
        cell.imshow((pictures[row] - low) / ((high - low) or 1.0), cmap="gray", vmin=0, vmax=1)
        cell.set_axis_off()
        cell.set_title(f"{int(account.labels[row])} ({int(account.predicted[row])})", loc="center", fontsize=8, pad=2)


def _as_pictures(images: ArrayLike, n: int) -> np.ndarray:
    """Return pictures (n, h, w) or (n, h, w, 3) as floating-point numbers.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    pictures = as_tensor(images, "images", dtype=torch.float64).cpu()
    if pictures.ndim == 4 and pictures.shape[1] in (1, 3) and pictures.shape[3] != 3:
        pictures = pictures[:, 0] if pictures.shape[1] == 1 else pictures.movedim(1, 3)
    if pictures.ndim not in (3, 4) or len(pictures) != n or (pictures.ndim == 4 and pictures.shape[3] != 3):
        raise InputError(
            f"images of shape {tuple(pictures.shape)}",
            expected=f"({n}, h, w) or ({n}, h, w, 3), one picture for each row",
            hint="pass images=x.reshape(n, h, w) for flattened rows",
        )
    return pictures.numpy()


def _bits(value: float) -> str:
    return f"{round(value):,}".replace("-", "\N{MINUS SIGN}")
