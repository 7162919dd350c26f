"""Random layers on vectors (n, d) and sequences (n, S, d), each with the size of its output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from kernelmem.testing.modules import (
    Apply,
    Attention,
    BorrowedWeight,
    ByPosition,
    CalledTwice,
    CellLoop,
    ClassToken,
    Gain,
    Parallel,
    ProjectedAttention,
    Recurrent,
    Residual,
    SelfBilinear,
    SequenceFirst,
    Shift,
    TiedMatrix,
    WithUnusedParameters,
)

Size = tuple[int, ...]  # of one example
T = TypeVar("T")

# Large: with the default 1e-5 a layer amplifies float32 rounding of nearly constant inputs a hundredfold.
EPSILONS = (0.01, 0.1)


@dataclass(frozen=True)
class Choices:
    """Random choices drawn by Hypothesis; ``smooth`` excludes kinks, where float32 and float64 can differ in side."""

    draw: st.DrawFn
    smooth: bool

    def among(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        """Draw True or False."""
        return self.draw(st.booleans())

    def integer(self, low: int, high: int) -> int:
        """Draw an integer in low..high."""
        return self.draw(st.integers(low, high))

    def width(self) -> int:
        """Draw a small number of features."""
        return self.integer(1, 5)

    def divisor(self, number: int) -> int:
        """Draw a divisor of the number."""
        return self.among([k for k in range(1, number + 1) if number % k == 0])

    def activation(self) -> nn.Module:
        """Draw an activation, in place or not."""
        smooth = (nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)
        kinked = (nn.ReLU, lambda: nn.ReLU(inplace=True), nn.PReLU, lambda: nn.LeakyReLU(0.2, inplace=True))
        return self.among(smooth if self.smooth else smooth + kinked)()

    def in_place(self) -> nn.Module:
        """Draw an activation that overwrites its input (a view, if the layer before returns one)."""
        smooth = (lambda: nn.SiLU(inplace=True), lambda: nn.Mish(inplace=True))
        kinked = (lambda: nn.ReLU(inplace=True), lambda: nn.ELU(inplace=True))
        return self.among(smooth if self.smooth else smooth + kinked)()


Block = Callable[[Choices, Size], tuple[nn.Module, Size]]


def _features(size: Size, width: int) -> Size:
    return (*size[:-1], width)


def _linear(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = pick.width()
    return nn.Linear(size[-1], width, bias=pick.flag()), _features(size, width)


def _linear_in_place(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, after = _linear(pick, size)
    return nn.Sequential(layer, pick.in_place()), after


def _reparametrized(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, size = _linear(pick, size)
    wrap: Any = pick.among([parametrizations.weight_norm, parametrizations.spectral_norm])
    return wrap(layer), size


def _activation(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    # A copy first: an in-place activation must not overwrite the input of a layer.
    return nn.Sequential(Apply(lambda x: 1.0 * x), pick.activation()), size


def _layer_norm(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    shape = list(size if pick.flag() else size[-1:])
    if pick.flag():
        return nn.RMSNorm(shape, eps=pick.among(EPSILONS), elementwise_affine=pick.flag()), size
    return nn.LayerNorm(shape, eps=pick.among(EPSILONS), elementwise_affine=pick.flag(), bias=pick.flag()), size


def _broadcast(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    return pick.among([Gain, Shift])(*pick.among([size, size[-1:], ()])), size


def _residual(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    width, hidden = size[-1], pick.width()
    first = nn.LayerNorm(width, eps=0.1) if pick.flag() else nn.Identity()
    layers = [first, nn.Linear(width, hidden), pick.activation(), nn.Linear(hidden, width)]
    return Residual(nn.Sequential(*layers, Gain(width)) if pick.flag() else nn.Sequential(*layers)), size


def _shared(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    width, hidden = size[-1], pick.width()
    kind = pick.integer(0, 3)
    if kind == 0:
        inner = nn.Linear(width, width)
        return nn.Sequential(inner, pick.activation(), inner), size
    if kind == 3:
        return CalledTwice(nn.Linear(width, width, bias=pick.flag())), size
    if kind == 1:
        return TiedMatrix(width, hidden), _features(size, width)
    return BorrowedWeight(width, hidden), _features(size, hidden)


def _branches(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = pick.width()
    make = lambda: nn.Sequential(nn.Linear(size[-1], width), pick.activation())  # noqa: E731
    return Parallel(pick.among(["sum", "product"]), make(), make()), _features(size, width)


def _idle(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    body, after = _linear(pick, size)
    return WithUnusedParameters(body, nn.Linear(size[-1], 2)), after


def _dropout(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    return nn.Dropout(0.5), size


def _bilinear(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = pick.integer(1, 3)
    return SelfBilinear(size[-1], width, bias=pick.flag()), _features(size, width)


def _batch_norm(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    return nn.BatchNorm1d(size[-1], affine=pick.flag()), size


def _group_norm(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = 2 * pick.integer(1, 2)  # at least two features per group: torch rejects one on a single example
    layers = nn.Linear(size[-1], width), nn.GroupNorm(width // 2, width, eps=pick.among(EPSILONS))
    return nn.Sequential(*layers), (width,)


COMMON: tuple[Block, ...] = (
    _linear,
    _linear_in_place,
    _reparametrized,
    _activation,
    _activation,
    _layer_norm,
    _broadcast,
    _residual,
    _shared,
    _branches,
    _idle,
    _dropout,
    _bilinear,
)

VECTOR_BLOCKS: tuple[Block, ...] = (*COMMON, _batch_norm, _group_norm)


def _recurrent(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    hidden, both, layers = pick.integer(1, 3), pick.flag(), pick.integer(1, 2)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": both, "batch_first": pick.flag()}
    options["bias"] = pick.flag()
    kind = pick.among([nn.RNN, nn.GRU, nn.LSTM])
    width, start = hidden, False
    if kind is nn.LSTM:
        if hidden > 1 and pick.flag():
            options["proj_size"] = width = hidden - 1
    else:
        start = pick.flag()
    inner = kind(size[1], hidden, **options)
    return Recurrent(inner, start=start), (size[0], width * (2 if both else 1))


def _attention(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    S, width = size
    options: dict[str, Any] = {"bias": pick.flag(), "batch_first": pick.flag()}
    options |= pick.among([{}, {"add_bias_kv": True}, {"kdim": pick.width(), "vdim": pick.width()}])
    inner = nn.MultiheadAttention(width, pick.divisor(width), **options)
    mask = torch.ones(S, S, dtype=torch.bool).triu(1) if pick.flag() else None
    return Attention(inner, need_weights=pick.flag(), mask=mask), size


def _projected_attention(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    return ProjectedAttention(size[1], pick.divisor(size[1]), causal=pick.flag()), size


def _transformer(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    first = pick.flag()
    layer = nn.TransformerEncoderLayer(
        size[1],
        pick.divisor(size[1]),
        dim_feedforward=pick.width(),
        activation="gelu" if pick.smooth else pick.among(["relu", "gelu"]),
        layer_norm_eps=pick.among(EPSILONS),
        norm_first=pick.flag(),
        batch_first=first,
    )
    return layer if first else SequenceFirst(layer), size


def _class_token(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    return ClassToken(size[1]), (size[0] + 1, size[1])


def _flattened(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, after = _linear(pick, size[1:])
    return pick.among([ByPosition, SequenceFirst, lambda body: SequenceFirst(body, flat=True)])(layer), (
        size[0],
        *after,
    )


SEQUENCE_BLOCKS: tuple[Block, ...] = (
    *COMMON,
    _recurrent,
    _recurrent,
    _attention,
    _attention,
    _projected_attention,
    _transformer,
    _class_token,
    _flattened,
)


def last_cell_state(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Draw a recurrent cell over the positions of a sequence; returns its last state."""
    hidden = pick.integer(1, 3)
    kind = pick.among([nn.RNNCell, nn.LSTMCell, nn.GRUCell])
    return CellLoop(kind(size[1], hidden, bias=pick.flag())), (hidden,)
