"""Random layers on signals (n, c, L), images (n, c, H, W) and volumes (n, c, D, H, W)."""

from typing import Any

from torch import nn

from kernelmem.testing.modules import Gain, Residual, Shift
from kernelmem.testing.strategies.layers import EPSILONS, Block, Choices, Size

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def _axis_options(choices: Choices, length: int) -> tuple[int, int, int, int]:
    """Return random (kernel size, stride, padding, dilation) for one axis with ``length`` positions.

    The output of the layer has at least one position.
    """
    kernel = choices.integer(1, min(3, length))
    padding = choices.integer(0, min(1, length - 1))  # reflection needs it below the length
    dilation = 2 if kernel > 1 and 2 * (kernel - 1) < length + 2 * padding and choices.flag() else 1
    return kernel, choices.integer(1, 2), padding, dilation


def _group_options(choices: Choices, channels: int) -> tuple[int, int]:
    """Return random (groups, output channels) of a convolution with ``channels`` input channels.

    There is one group, several, or one per channel with several outputs each.
    """
    groups = choices.divisor(channels)
    return groups, groups * choices.integer(1, max(1, 4 // groups))


def _convolution(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random convolution and the size of its output, for inputs of ``size`` (channels, then axes).

    Kernel size, stride, padding, dilation and groups are drawn.
    """
    channels, *lengths = size
    groups, width = _group_options(choices, channels)
    options: dict[str, Any] = {"groups": groups, "bias": choices.flag()}
    layer_class: Any = CONVOLUTIONS[len(lengths) - 1]
    if choices.flag():
        # An odd kernel size: with an even one torch warns about a copy of the input.
        mode = choices.among(["zeros", "circular", "replicate"])
        return layer_class(channels, width, choices.among([1, 3]), padding="same", padding_mode=mode, **options), (
            width,
            *lengths,
        )
    axis_options = [_axis_options(choices, length) for length in lengths]
    kernel, stride, padding, dilation = (tuple(values) for values in zip(*axis_options, strict=True))
    options |= {"stride": stride, "padding": padding, "dilation": dilation}
    options["padding_mode"] = choices.among(["zeros", "circular", "reflect"])
    output_lengths = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1 for length, (k, s, p, d) in zip(lengths, axis_options, strict=True)
    ]
    return layer_class(channels, width, kernel, **options), (width, *output_lengths)


def _convolution_in_place(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, output_size = _convolution(choices, size)
    return nn.Sequential(layer, choices.in_place()), output_size


def _transposed(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random transposed convolution and the size of its output, for inputs of ``size``.

    It has at most twice as many output channels as groups.
    """
    channels, *lengths = size
    groups, width = _group_options(choices, channels)
    width = min(width, 2 * groups)
    kernel, stride = choices.integer(1, 2), 2 if max(lengths) < 4 and len(lengths) < 3 and choices.flag() else 1
    output_lengths = [(length - 1) * stride + kernel for length in lengths]
    layer_class: Any = TRANSPOSED[len(lengths) - 1]
    return layer_class(channels, width, kernel, stride=stride, groups=groups, bias=choices.flag()), (
        width,
        *output_lengths,
    )


def _normalization(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random batch, instance, group or layer normalization and the size of its output, which is ``size``."""
    channels, *lengths = size
    options: dict[str, Any] = {"eps": choices.among(EPSILONS)}
    kind = choices.integer(0, 3)
    if kind == 0:
        return BATCH_NORMS[len(lengths) - 1](channels, affine=choices.flag()), size
    positions = 1
    for length in lengths:
        positions *= length
    if kind == 1 and positions > 1:  # torch rejects instance norm of a single position
        return INSTANCE_NORMS[len(lengths) - 1](channels, affine=choices.flag(), **options), size
    if kind == 2 and positions > 1:
        return nn.GroupNorm(choices.divisor(channels), channels, **options), size
    return nn.LayerNorm(list(size), **options), size


def _pooling(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    """Return a random pooling layer and the size of its output, for inputs of ``size``.

    It is an adaptive average, average or maximum pooling; maximum pooling is excluded if ``choices.smooth``. An axis
    that is too short to halve can give the identity.
    """
    channels, *lengths = size
    if choices.flag():
        output_lengths = [choices.integer(1, length) for length in lengths]
        layer_class: Any = ADAPTIVE_AVERAGES[len(lengths) - 1]
        return layer_class(tuple(output_lengths) if len(output_lengths) > 1 else output_lengths[0]), (
            channels,
            *output_lengths,
        )
    if min(lengths) < 2:
        return nn.Identity(), size
    kinds = (AVERAGE_POOLS,) if choices.smooth else (AVERAGE_POOLS, MAX_POOLS)
    return choices.among(kinds)[len(lengths) - 1](2), (channels, *(length // 2 for length in lengths))


def _activation(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    if not choices.smooth and choices.flag():
        return nn.PReLU(size[0]), size
    return choices.among([nn.Tanh, nn.GELU, nn.Softplus] + ([] if choices.smooth else [nn.ReLU]))(), size


def _residual(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    channels, rank = size[0], len(size) - 1
    convolution_class: Any = CONVOLUTIONS[rank - 1]
    batch_norm_class: Any = BATCH_NORMS[rank - 1]
    normalization = batch_norm_class(channels) if choices.flag() else nn.Identity()
    # Not pick.activation(): in place, it would write over the tensor that the residual branch adds.
    activation = _activation(choices, size)[0]
    return Residual(nn.Sequential(normalization, activation, convolution_class(channels, channels, 3, padding=1))), size


def _gain_or_shift(choices: Choices, size: Size) -> tuple[nn.Module, Size]:
    return choices.among([Gain, Shift])(*choices.among([size, (size[0], *(1 for _ in size[1:])), size[-1:]])), size


GRID_BLOCKS: tuple[Block, ...] = (
    _convolution,
    _convolution,
    _convolution_in_place,
    _transposed,
    _normalization,
    _pooling,
    _activation,
    _residual,
    _gain_or_shift,
)
