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
    """Random choices drawn by Hypothesis.

    ``smooth`` excludes layers with kinks such as ReLU, where float32 and float64 inputs can lie on different sides of
    the kink.
    """

    draw: st.DrawFn
    smooth: bool

    def among(self, options: Sequence[T]) -> T:
        """Return one of the options, drawn at random."""
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        """Return True or False, drawn at random."""
        return self.draw(st.booleans())

    def integer(self, low: int, high: int) -> int:
        """Return a random integer from ``low`` to ``high``, both included."""
        return self.draw(st.integers(low, high))

    def width(self) -> int:
        """Return a random small number of features."""
        return self.integer(1, 5)

    def divisor(self, number: int) -> int:
        """Return a random divisor of ``number``."""
        return self.among([k for k in range(1, number + 1) if number % k == 0])

    def activation(self) -> nn.Module:
        """Return a random activation module, which may overwrite its input."""
        smooth = (nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)
        kinked = (nn.ReLU, lambda: nn.ReLU(inplace=True), nn.PReLU, lambda: nn.LeakyReLU(0.2, inplace=True))
        return self.among(smooth if self.smooth else smooth + kinked)()

    def in_place(self) -> nn.Module:
        """Return a random activation module that overwrites its input.

        If the preceding layer returns a view, the viewed tensor is overwritten too.
        """
        smooth = (lambda: nn.SiLU(inplace=True), lambda: nn.Mish(inplace=True))
        kinked = (lambda: nn.ReLU(inplace=True), lambda: nn.ELU(inplace=True))
        return self.among(smooth if self.smooth else smooth + kinked)()


Block = Callable[[Choices, Size], tuple[nn.Module, Size]]


def _with_features(size: Size, width: int) -> Size:
    return (*size[:-1], width)


def _linear(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = choices.width()
    return nn.Linear(size[-1], width, bias=choices.flag()), _with_features(size, width)


def _linear_and_in_place(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, output_size = _linear(choices, size)
    return nn.Sequential(layer, choices.in_place()), output_size


def _reparametrized(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, size = _linear(choices, size)
    reparametrize: Any = choices.among([parametrizations.weight_norm, parametrizations.spectral_norm])
    return reparametrize(layer), size


def _activation(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    # A copy first: an in-place activation must not overwrite the input of a layer.
    return nn.Sequential(Apply(lambda x: 1.0 * x), choices.activation()), size


def _layer_norm(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    shape = list(size if choices.flag() else size[-1:])
    if choices.flag():
        return nn.RMSNorm(shape, eps=choices.among(EPSILONS), elementwise_affine=choices.flag()), size
    return nn.LayerNorm(
        shape, eps=choices.among(EPSILONS), elementwise_affine=choices.flag(), bias=choices.flag()
    ), size


def _gain_or_shift(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    return choices.among([Gain, Shift])(*choices.among([size, size[-1:], ()])), size


def _residual(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    width, hidden = size[-1], choices.width()
    normalization = nn.LayerNorm(width, eps=0.1) if choices.flag() else nn.Identity()
    layers = [normalization, nn.Linear(width, hidden), choices.activation(), nn.Linear(hidden, width)]
    return Residual(nn.Sequential(*layers, Gain(width)) if choices.flag() else nn.Sequential(*layers)), size


def _shared_weights(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random module that uses one weight twice, and the size of its output, for inputs of ``size``.

    The module is called twice, ties a weight to its transpose, or passes a layer's weight to a function.
    """
    width, hidden = size[-1], choices.width()
    kind = choices.integer(0, 3)
    if kind == 0:
        inner = nn.Linear(width, width)
        return nn.Sequential(inner, choices.activation(), inner), size
    if kind == 3:
        return CalledTwice(nn.Linear(width, width, bias=choices.flag())), size
    if kind == 1:
        return TiedMatrix(width, hidden), _with_features(size, width)
    return BorrowedWeight(width, hidden), _with_features(size, hidden)


def _branches(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = choices.width()
    make_branch = lambda: nn.Sequential(nn.Linear(size[-1], width), choices.activation())  # noqa: E731
    return Parallel(choices.among(["sum", "product"]), make_branch(), make_branch()), _with_features(size, width)


def _unused_parameters(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    body, output_size = _linear(choices, size)
    return WithUnusedParameters(body, nn.Linear(size[-1], 2)), output_size


def _dropout(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    return nn.Dropout(0.5), size


def _bilinear(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = choices.integer(1, 3)
    return SelfBilinear(size[-1], width, bias=choices.flag()), _with_features(size, width)


def _batch_norm(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    return nn.BatchNorm1d(size[-1], affine=choices.flag()), size


def _group_norm(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    width = 2 * choices.integer(1, 2)  # at least two features per group: torch rejects one on a single example
    layers = nn.Linear(size[-1], width), nn.GroupNorm(width // 2, width, eps=choices.among(EPSILONS))
    return nn.Sequential(*layers), (width,)


COMMON: tuple[Block, ...] = (
    _linear,
    _linear_and_in_place,
    _reparametrized,
    _activation,
    _activation,
    _layer_norm,
    _gain_or_shift,
    _residual,
    _shared_weights,
    _branches,
    _unused_parameters,
    _dropout,
    _bilinear,
)

VECTOR_BLOCKS: tuple[Block, ...] = (*COMMON, _batch_norm, _group_norm)


def _recurrent(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random RNN, GRU or LSTM that outputs all positions, and the size (S, features) of its output."""
    hidden, bidirectional, n_layers = choices.integer(1, 3), choices.flag(), choices.integer(1, 2)
    options: dict[str, Any] = {"num_layers": n_layers, "bidirectional": bidirectional, "batch_first": choices.flag()}
    options["bias"] = choices.flag()
    kind = choices.among([nn.RNN, nn.GRU, nn.LSTM])
    width, learned_start = hidden, False
    if kind is nn.LSTM:
        if hidden > 1 and choices.flag():
            options["proj_size"] = width = hidden - 1
    else:
        learned_start = choices.flag()
    inner = kind(size[1], hidden, **options)
    return Recurrent(inner, learned_start=learned_start), (size[0], width * (2 if bidirectional else 1))


def _attention(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random multi-head attention layer and the size of its output, for inputs of ``size`` (S, d)."""
    S, width = size
    options: dict[str, Any] = {"bias": choices.flag(), "batch_first": choices.flag()}
    options |= choices.among([{}, {"add_bias_kv": True}, {"kdim": choices.width(), "vdim": choices.width()}])
    inner = nn.MultiheadAttention(width, choices.divisor(width), **options)
    mask = torch.ones(S, S, dtype=torch.bool).triu(1) if choices.flag() else None
    return Attention(inner, need_weights=choices.flag(), mask=mask), size


def _projected_attention(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    return ProjectedAttention(size[1], choices.divisor(size[1]), causal=choices.flag()), size


def _transformer(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random transformer encoder layer and the size of its output, for inputs of ``size`` (S, d)."""
    batch_first = choices.flag()
    layer = nn.TransformerEncoderLayer(
        size[1],
        choices.divisor(size[1]),
        dim_feedforward=choices.width(),
        activation="gelu" if choices.smooth else choices.among(["relu", "gelu"]),
        layer_norm_eps=choices.among(EPSILONS),
        norm_first=choices.flag(),
        batch_first=batch_first,
    )
    return layer if batch_first else SequenceFirst(layer), size


def _class_token(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    return ClassToken(size[1]), (size[0] + 1, size[1])


def _flattened(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, output_size = _linear(choices, size[1:])
    return choices.among([ByPosition, SequenceFirst, lambda body: SequenceFirst(body, flat=True)])(layer), (
        size[0],
        *output_size,
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


def last_cell_state(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random recurrent cell in a loop over positions, and the size of its output, the last hidden state."""
    hidden = choices.integer(1, 3)
    kind = choices.among([nn.RNNCell, nn.LSTMCell, nn.GRUCell])
    return CellLoop(kind(size[1], hidden, bias=choices.flag())), (hidden,)
