"""Multilayer perceptrons with initial weights from one seed."""

import math
from itertools import pairwise

import torch
from torch import nn

from kernelmem.core.errors import InputError

__all__ = ["ACTIVATIONS", "mlp"]

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    d: int, widths: int | tuple[int, ...], C: int, activation: str = "relu", *, seed: int | None = None
) -> nn.Sequential:
    """Build an MLP d -> widths -> C with one or more hidden layers, in float32.

    W_1 ~ N(0, 2/d), W_l ~ N(0, 2/h_(l-1)), the last W ~ N(0, 1/h_L), biases 0, drawn layer by layer from torch's CPU
    generator: the global one, or a new one with ``seed``; ``torch.manual_seed(s); mlp(...)`` is ``mlp(..., seed=s)``.
    The module maps (n, d) to (n, C); its keys are ``0.weight, 0.bias, 2.weight, ...``.

    Raises:
        InputError: sizes below 1, no hidden layer, an unknown activation.

    >>> mlp(4, (8, 6), 3, seed=0)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    widths = (widths,) if isinstance(widths, int) else tuple(widths)
    if not widths or min(d, C, *widths) < 1:
        raise InputError(
            f"sizes {d}, {widths}, {C}",
            expected="whole numbers >= 1, at least one hidden layer",
            do="pass e.g. mlp(64, (100,), 10)",
        )
    if activation not in ACTIVATIONS:
        raise InputError(f"activation={activation!r}", expected=f"one of {', '.join(ACTIVATIONS)}", do="pass one")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    sizes = (d, *widths, C)
    layers: list[nn.Module] = []
    for depth, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        gain = 1.0 if depth == len(widths) else 2.0
        layer = nn.Linear(fan_in, fan_out, device="meta").to(torch.float32).to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(gain / fan_in), generator=generator)
            layer.bias.zero_()
        layers += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
