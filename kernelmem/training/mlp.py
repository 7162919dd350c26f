"""Multilayer perceptrons: plain, and with standardized inputs (the default network of audits)."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from kernelmem.core.checks import as_count, as_flag, as_list, as_seed, as_tensor, check_choice
from kernelmem.core.errors import InputError


class Standardize(nn.Module):
    """Flatten rows, subtract the mean of each feature and divide by a standard deviation, both stored as buffers.

    By default all features share one scale, the root mean square of their standard deviations: in images, nearly constant
    corner pixels must not be amplified to noise. ``per_feature=True`` scales each feature by its own. A feature whose
    standard deviation is below a millionth of its largest absolute value is treated as constant: float32 hardly resolves
    it, and dividing by it would turn rounding into signal.

    Args:
        x: (n, ...) training rows from which mean and scale are computed.
        per_feature: True for one scale per feature instead of a common one.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, x: Tensor, *, per_feature: bool = False) -> None:
        super().__init__()
        x, per_feature = _check_rows(x), as_flag(per_feature, "per_feature")
        features = x.reshape(len(x), -1).to(torch.float64)  # squares of large or tiny values leave the range of float32
        std, max_abs = features.std(0, correction=0), features.abs().amax(0)
        if not per_feature:
            std, max_abs = std.square().mean().sqrt(), max_abs.amax()
        is_constant = std <= 1e-6 * max_abs
        self.register_buffer("mean", features.mean(0).to(torch.float32))
        self.register_buffer("scale", std.masked_fill(is_constant, 1.0).to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (n, ...) to standardized features (n, d)."""
        return (x.reshape(len(x), -1) - self.mean) / self.scale


def standardized_mlp(
    x: Tensor, n_classes: int, *, widths: tuple[int, ...] = (256, 256), seed: int, per_feature: bool = False
) -> nn.Sequential:
    """Return a ReLU network whose first layer is :class:`Standardize` of the rows x; it maps (n, ...) to (n, n_classes).

    Weights have He's initialization, with random numbers that depend on ``seed`` only; biases are 0. torch's global random
    state is neither used nor changed.

    >>> standardized_mlp(torch.zeros(5, 64), 10, seed=0)(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """
    x, n_classes = _check_rows(x), as_count(n_classes, "n_classes", maximum=MAX_WIDTH)
    generator = torch.Generator().manual_seed(as_seed(seed))
    layer_inputs = [int(x[0].numel()), *_check_widths(widths)]
    layers: list[nn.Module] = [Standardize(x, per_feature=per_feature)]
    for fan_in, fan_out in zip(layer_inputs, [*layer_inputs[1:], n_classes], strict=True):
        layer = nn.Linear(fan_in, fan_out, device="meta", dtype=torch.float32).to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _check_rows(x: Tensor) -> Tensor:
    """Return rows (n, ...) with n >= 1 and at least one feature."""
    rows = as_tensor(x, "x")
    if rows.ndim < 2 or rows.numel() == 0:
        raise InputError(
            f"x of shape {tuple(rows.shape)}", expected="rows (n, ...), n >= 1", hint="pass the training rows"
        )
    return rows


def _check_widths(widths: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths of the hidden layers, one or more whole numbers."""
    values = [widths] if isinstance(widths, int) else as_list(widths, "widths")
    if not values:
        raise InputError("widths=()", expected="at least one hidden layer", hint="pass e.g. mlp(64, (100,), 10)")
    return tuple(as_count(width, "widths", maximum=MAX_WIDTH) for width in values)


MAX_WIDTH = 2**24
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    d: int, widths: int | tuple[int, ...], C: int, activation: str = "relu", *, seed: int | None = None
) -> nn.Sequential:
    """Return an untrained float32 MLP with d inputs, hidden layers of the given widths, and C outputs.

    With hidden widths h_1, ..., h_L: W_1 ~ N(0, 2/d), W_l ~ N(0, 2/h_(l-1)), the last W ~ N(0, 1/h_L), biases 0, drawn layer
    by layer from torch's CPU generator: the global one, or a new one with ``seed``; ``torch.manual_seed(s); mlp(...)`` is
    ``mlp(..., seed=s)``. The module maps (n, d) to (n, C); its keys are ``0.weight, 0.bias, 2.weight, ...``.

    Raises:
        InputError: a size is below 1, there is no hidden layer, or the activation is unknown.

    >>> mlp(4, (8, 6), 3, seed=0)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    hidden = _check_widths(widths)
    layer_sizes = (as_count(d, "d", maximum=MAX_WIDTH), *hidden, as_count(C, "C", maximum=MAX_WIDTH))
    check_choice(activation, "activation", tuple(ACTIVATIONS))
    generator = None if seed is None else torch.Generator().manual_seed(as_seed(seed))
    layers: list[nn.Module] = []
    for layer_index, (fan_in, fan_out) in enumerate(pairwise(layer_sizes)):
        gain = 1.0 if layer_index == len(hidden) else 2.0
        layer = nn.Linear(fan_in, fan_out, device="meta", dtype=torch.float32).to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(gain / fan_in), generator=generator)
            layer.bias.zero_()
        layers += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
