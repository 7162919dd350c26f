"""Strategies of random networks with inputs: Linear layers only, or a composition of every supported layer."""

import itertools
import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import nn

from kernelmem.testing.cases import Case, Inputs, make_case
from kernelmem.testing.modules import Apply, Parallel, ReadoutWithSkip, Shift, TiedReadout
from kernelmem.testing.strategies.grids import GRID_BLOCKS
from kernelmem.testing.strategies.layers import (
    SEQUENCE_BLOCKS,
    VECTOR_BLOCKS,
    Block,
    Choices,
    Size,
    last_cell_state,
)

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Identity)


@st.composite
def linear_networks(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64) -> Case:
    """Draw a network of Linear layers and activations: widths, depth, biases, nesting, in-place activations.

    Weights and inputs come from a drawn seed, so a failing example is reproduced exactly.

    Args:
        draw: draw function, passed by Hypothesis.
        dtype: floating-point type of weights and inputs.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers.append(nn.Linear(fan_in, fan_out, bias=draw(st.booleans())))
        activation = draw(st.sampled_from(ACTIVATIONS))
        layers.append(nn.ReLU(inplace=True) if draw(st.booleans()) else activation())
    if draw(st.booleans()):
        layers = [nn.Sequential(*layers[:2]), *layers[2:]]
    model = nn.Sequential(*layers[:-1] if len(layers) > 1 else layers).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    x = torch.randn(n, widths[0], generator=generator, dtype=dtype)
    y = torch.randn(m, widths[0], generator=generator, dtype=dtype)
    return Case(model, x, y, "-".join(map(str, widths)))


@st.composite
def networks(
    draw: st.DrawFn, *, dtype: torch.dtype = torch.float64, smooth: bool = False, depth: int = 4, rows: int = 5
) -> Case:
    """Draw a composition of supported layers, in eval mode, with two batches x and y of 1 to ``rows`` inputs.

    Inputs are vectors, sequences, tokens, signals, images or volumes, followed by up to ``depth`` random layers and a
    readout or none. Weights and inputs come from a drawn seed, so a failing example is reproduced exactly.

    Args:
        draw: draw function, passed by Hypothesis.
        dtype: floating-point type of weights and real inputs.
        smooth: exclude kinks (ReLU, max-pooling), so that float32 and float64 are on the same side of them.
        depth: largest number of layers between input and readout.
        rows: largest number of inputs in each batch.
    """
    choices = Choices(draw, smooth)
    kind = choices.among(list(INPUT_KINDS))
    inputs, layers, layout, size = INPUT_KINDS[kind](choices)
    for _ in range(choices.integer(1, depth)):
        if choices.integer(0, 3) == 0:
            layer, layout, size = _change_layout(choices, layout, size)
        else:
            layer, size = choices.among(BLOCKS[layout])(choices, size)
        layers.append(layer)
    if layout != "vector":
        layer, size = _to_vector(choices, layout, size)
        layers.append(layer)
    name = " > ".join([kind, *(type(layer).__name__ for layer in layers)])
    if choices.flag():  # results must not depend on nesting
        layers = [nn.Sequential(*layers[:1]), nn.Sequential(*layers[1:])]
    model = _append_readout(choices, inputs, nn.Sequential(*layers), size)
    seed, n, m = choices.integer(0, 2**32 - 1), choices.integer(1, rows), choices.integer(1, rows)
    return make_case(name, model, inputs, seed=seed, n=n, m=m, dtype=dtype)


BLOCKS: dict[str, tuple[Block, ...]] = {"vector": VECTOR_BLOCKS, "sequence": SEQUENCE_BLOCKS, "grid": GRID_BLOCKS}

NetworkStart = tuple[Inputs, list[nn.Module], str, Size]  # inputs, first layers, layout and size of their output


def _token_inputs(choices: Choices) -> NetworkStart:
    length, vocabulary, width = choices.integer(1, 4), choices.integer(2, 6), choices.width()
    embedding = nn.Embedding(vocabulary, width, padding_idx=choices.among([None, 0]))
    layers: list[nn.Module] = [embedding, Shift(length, width)] if choices.flag() else [embedding]
    return Inputs((length,), vocabulary), layers, "sequence", (length, width)


def _bag_inputs(choices: Choices) -> NetworkStart:
    vocabulary, width = choices.integer(2, 6), choices.width()
    bag = nn.EmbeddingBag(vocabulary, width, mode=choices.among(["mean", "sum"]))
    return Inputs((choices.integer(1, 4),), vocabulary), [bag], "vector", (width,)


def _real_inputs(layout: str, *ranges: tuple[int, int]) -> Callable[[Choices], NetworkStart]:
    def draw_start(choices: Choices) -> NetworkStart:
        size = tuple(choices.integer(low, high) for low, high in ranges)
        return Inputs(size), [], layout, size

    return draw_start


INPUT_KINDS: dict[str, Callable[[Choices], NetworkStart]] = {
    "vectors": _real_inputs("vector", (1, 6)),
    "sequences": _real_inputs("sequence", (1, 4), (1, 5)),
    "tokens": _token_inputs,
    "bags": _bag_inputs,
    "signals": _real_inputs("grid", (1, 4), (2, 6)),
    "images": _real_inputs("grid", (1, 3), (2, 4), (2, 4)),
    "volumes": _real_inputs("grid", (1, 2), (2, 3), (1, 3), (2, 3)),
}


def _change_layout(choices: Choices, layout: str, size: Size) -> tuple[nn.Module, str, Size]:
    """Return (layer, new layout, new size): a layer that reshapes its input to another layout.

    A vector becomes a sequence, a grid becomes a sequence of its positions, and a sequence becomes a grid or a vector.
    ``layout`` and ``size`` describe one example of the input.
    """
    if layout == "vector":
        if choices.flag():
            return Apply(lambda x: x[:, None, :]), "sequence", (1, *size)
        return Apply(lambda x: x[:, :, None]), "sequence", (*size, 1)
    if layout == "grid":
        length = math.prod(size[1:])
        return Apply(lambda x: x.flatten(2).transpose(1, 2)), "sequence", (length, size[0])
    if choices.flag():
        return Apply(lambda x: x.transpose(1, 2)), "grid", (size[1], size[0])
    layer, size = _to_vector(choices, layout, size)
    return layer, "vector", size


def _to_vector(choices: Choices, layout: str, size: Size) -> tuple[nn.Module, Size]:
    """Return a layer that reduces every example to one vector, and the size of that vector.

    The layer concatenates all positions, takes their mean or one of them, or returns the last state of a recurrent
    cell. ``layout`` and ``size`` describe one example of the input.
    """
    if math.prod(size) <= 30 and choices.flag():
        return nn.Flatten(), (math.prod(size),)
    if layout == "grid":
        return Apply(lambda x: x.flatten(2).mean(2)), size[:1]
    kind = choices.integer(0, 3)
    if kind == 0:
        return last_cell_state(choices, size)
    return Apply([lambda x: x.mean(1), lambda x: x[:, 0], lambda x: x[:, -1]][kind - 1]), size[1:]


def _append_readout(choices: Choices, inputs: Inputs, body: nn.Module, size: Size) -> nn.Module:
    """Return ``body`` followed by a random readout, or ``body`` alone.

    ``size`` is the size of one output of ``body``. The readout is linear with one to six outputs, possibly combined
    with softmax, tanh, a second branch, a skip connection or a weight tied to the embedding.
    """
    width, C = size[-1], choices.integer(1, 6)
    readout = lambda outputs=C: nn.Linear(width, outputs, bias=choices.flag())  # noqa: E731
    kind = choices.integer(0, 9)
    if kind <= 3:
        return nn.Sequential(*body.children(), readout())
    if kind == 4:
        return nn.Sequential(body, readout(), choices.among([nn.Softmax, nn.LogSoftmax])(dim=1))
    if kind == 5:
        return nn.Sequential(body, Parallel(choices.among(["sum", "product", "concatenate"]), readout(), readout()))
    if kind == 6 and not inputs.vocabulary:
        skip = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(inputs.size), C))
        return ReadoutWithSkip(body, readout(), skip)
    if kind == 7:
        offset = nn.Sequential(Apply(lambda h: h.mean(1, keepdim=True)), Shift(1, C))
        return nn.Sequential(body, Parallel("sum", readout(), nn.Sequential(offset, nn.Flatten())))
    if kind == 8 and inputs.vocabulary:
        inner = nn.Linear(width, width)
        return TiedReadout(inputs.vocabulary, width, nn.Sequential(inner, nn.Tanh()), share=choices.flag())
    if kind == 8:
        return nn.Sequential(body, Parallel("sum", readout(), nn.Sequential(readout(), nn.Tanh())))
    if choices.flag() or not list(body.parameters()):
        return nn.Sequential(body, readout(), nn.Tanh())
    return body
