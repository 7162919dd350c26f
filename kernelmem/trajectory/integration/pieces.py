"""Linear pieces of a network: distances of pre-activations from the kinks of the operations that read them.

A piecewise linear operation (relu, hardtanh, max-pooling) is on the same piece as long as none of these distances changes
its sign. The maximum of K values is the winner of a tournament, which has K − 1 differences.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LOWEST = -1e300  # fills the borders of max-pooling
Distances = list[Tensor]  # each with the batch axis of the input


def _from_zero(x: Tensor, *_: object, **__: object) -> Distances:
    return [x]


def _from_three(x: Tensor, *_: object, **__: object) -> Distances:
    return [x + 3.0, x - 3.0]


def _from_six(x: Tensor, *_: object, **__: object) -> Distances:
    return [x, x - 6.0]


def _from_bounds(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, *_: object, **__: object) -> Distances:
    return [x - min_val, x - max_val]


def _from_limits(x: Tensor, *limits: float | Tensor | None, **named: float | Tensor | None) -> Distances:
    return [x - limit for limit in [*limits, named.get("min"), named.get("max")] if limit is not None]


def _from_threshold(x: Tensor, threshold: float, *_: object, **__: object) -> Distances:
    return [x - threshold]


def _difference(x: Tensor, other: Tensor) -> Distances:
    return [x - other]


def _max_pooling(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    n_axes: int,
) -> Distances:
    """Return the differences of the tournament in each window, (n, channels, *windows, differences).

    Kinks of pooling with dilation or with incomplete windows are left to the quadrature.
    """

    def per_axis(value: int | Sequence[int]) -> list[int]:
        sizes = [value] if isinstance(value, int) else list(value)
        return sizes * n_axes if len(sizes) == 1 else sizes

    sizes, pads = per_axis(kernel_size), per_axis(padding)
    strides = sizes if stride is None or stride == [] else per_axis(stride)
    if per_axis(dilation) != [1] * n_axes or ceil_mode or x.ndim != n_axes + 2:
        return []
    windows = F.pad(x, [pad for size in reversed(pads) for pad in (size, size)], value=LOWEST)
    for axis, (size, step) in enumerate(zip(sizes, strides, strict=True), 2):
        windows = windows.unfold(axis, size, step)
    rounds, players = [], list(windows.flatten(-n_axes).unbind(-1))
    while len(players) > 1:
        rounds += [a - b for a, b in zip(players[::2], players[1::2], strict=False)]
        winners = [torch.maximum(a, b) for a, b in zip(players[::2], players[1::2], strict=False)]
        players = winners + (players[-1:] if len(players) % 2 else [])
    return [torch.stack(rounds, -1)] if rounds else []


def _max_pooling_of(n_axes: int) -> Callable[..., Distances]:
    return lambda *args, **kwargs: _max_pooling(*args, n_axes=n_axes, **kwargs)


def _between_neighbors(x: Tensor, axis: int | None = None, *_: object, **__: object) -> Distances:
    """Return the differences that decide which entry along ``axis`` is the largest."""
    if not isinstance(axis, int) or axis % x.ndim == 0:
        return []
    running = x.cummax(axis).values
    size = x.shape[axis] - 1
    return [running.narrow(axis, 0, size) - x.narrow(axis, 1, size)] if size > 0 else []


# Functions with kinks, and the distances that tell on which piece their input is.
PIECEWISE: dict[Callable[..., object], Callable[..., Distances]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _from_zero),
    **dict.fromkeys((F.leaky_relu, torch.prelu, torch.abs, Tensor.abs, Tensor.__abs__), _from_zero),
    **dict.fromkeys((torch.clamp, Tensor.clamp), _from_limits),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), _from_threshold),
    **dict.fromkeys((torch.maximum, torch.minimum), _difference),
    **dict.fromkeys((F.hardswish, F.hardsigmoid), _from_three),
    **dict.fromkeys((torch.amax, Tensor.amax), _between_neighbors),
    F.relu6: _from_six,
    F.hardtanh: _from_bounds,
    F.threshold: _from_threshold,
    F.max_pool1d: _max_pooling_of(1),
    F.max_pool2d: _max_pooling_of(2),
    F.max_pool3d: _max_pooling_of(3),
}


class PieceRecorder(TorchFunctionMode):
    """Records the distances of a forward pass of n rows from all kinks, each as a matrix with one row per row."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.distances: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Record the distances of a call before it runs, because it may change its input in place."""
        kwargs = kwargs or {}
        distances = PIECEWISE.get(func)
        if distances is not None and args and isinstance(args[0], Tensor):
            for tensor in distances(*args, **kwargs):
                self._add(tensor.detach())
        return func(*args, **kwargs)

    def _add(self, distances: Tensor) -> None:
        """Add distances whose batch axis is the first, the second, or the outer part of the first."""
        if distances.ndim == 0:
            return
        if distances.shape[0] != self.n and distances.ndim > 1 and distances.shape[1] == self.n:
            distances = distances.movedim(1, 0)
        if distances.shape[0] % self.n == 0 and distances.numel():
            self.distances.append(distances.reshape(self.n, -1).clone())

    def matrix(self) -> Tensor:
        """Return all distances, (n, units)."""
        if not self.distances:
            return torch.empty(self.n, 0, dtype=torch.float64)
        return torch.cat([distances.double() for distances in self.distances], 1)
