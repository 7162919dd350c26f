"""Random layers on signals (n, c, L), images (n, c, H, W) and volumes (n, c, D, H, W)."""

from typing import Any

from torch import nn

from kernelmem.testing.modules import Gain, Residual, Shift
from kernelmem.testing.strategies.layers import EPSILONS, Block, Choices, Size

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def _axis(pick: Choices, length: int) -> tuple[int, int, int, int]:
    """Draw kernel size, stride, padding and dilation of one axis that leave at least one position."""
    kernel = pick.integer(1, min(3, length))
    padding = pick.integer(0, min(1, length - 1))  # reflection needs it below the length
    dilation = 2 if kernel > 1 and 2 * (kernel - 1) < length + 2 * padding and pick.flag() else 1
    return kernel, pick.integer(1, 2), padding, dilation


def _grouped(pick: Choices, channels: int) -> tuple[int, int]:
    """Draw groups and output channels: one group, several, or depthwise with a multiplier."""
    groups = pick.divisor(channels)
    return groups, groups * pick.integer(1, max(1, 4 // groups))


def _convolution(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    channels, *lengths = size
    groups, width = _grouped(pick, channels)
    options: dict[str, Any] = {"groups": groups, "bias": pick.flag()}
    make: Any = CONVOLUTIONS[len(lengths) - 1]
    if pick.flag():
        # An odd kernel size: with an even one torch warns about a copy of the input.
        mode = pick.among(["zeros", "circular", "replicate"])
        return make(channels, width, pick.among([1, 3]), padding="same", padding_mode=mode, **options), (
            width,
            *lengths,
        )
    axes = [_axis(pick, length) for length in lengths]
    kernel, stride, padding, dilation = (tuple(values) for values in zip(*axes, strict=True))
    options |= {"stride": stride, "padding": padding, "dilation": dilation}
    options["padding_mode"] = pick.among(["zeros", "circular", "reflect"])
    after = [(length + 2 * p - d * (k - 1) - 1) // s + 1 for length, (k, s, p, d) in zip(lengths, axes, strict=True)]
    return make(channels, width, kernel, **options), (width, *after)


def _convolution_in_place(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    layer, after = _convolution(pick, size)
    return nn.Sequential(layer, pick.in_place()), after


def _transposed(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    channels, *lengths = size
    groups, width = _grouped(pick, channels)
    width = min(width, 2 * groups)
    kernel, stride = pick.integer(1, 2), 2 if max(lengths) < 4 and len(lengths) < 3 and pick.flag() else 1
    after = [(length - 1) * stride + kernel for length in lengths]
    make: Any = TRANSPOSED[len(lengths) - 1]
    return make(channels, width, kernel, stride=stride, groups=groups, bias=pick.flag()), (width, *after)


def _normalization(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    channels, *lengths = size
    options: dict[str, Any] = {"eps": pick.among(EPSILONS)}
    kind = pick.integer(0, 3)
    if kind == 0:
        return BATCH_NORMS[len(lengths) - 1](channels, affine=pick.flag()), size
    positions = 1
    for length in lengths:
        positions *= length
    if kind == 1 and positions > 1:  # torch rejects instance norm of a single position
        return INSTANCE_NORMS[len(lengths) - 1](channels, affine=pick.flag(), **options), size
    if kind == 2 and positions > 1:
        return nn.GroupNorm(pick.divisor(channels), channels, **options), size
    return nn.LayerNorm(list(size), **options), size


def _pool(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    channels, *lengths = size
    if pick.flag():
        after = [pick.integer(1, length) for length in lengths]
        make: Any = ADAPTIVE[len(lengths) - 1]
        return make(tuple(after) if len(after) > 1 else after[0]), (channels, *after)
    if min(lengths) < 2:
        return nn.Identity(), size
    kinds = (AVERAGES,) if pick.smooth else (AVERAGES, MAXIMA)
    return pick.among(kinds)[len(lengths) - 1](2), (channels, *(length // 2 for length in lengths))


def _activation(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    if not pick.smooth and pick.flag():
        return nn.PReLU(size[0]), size
    return pick.among([nn.Tanh, nn.GELU, nn.Softplus] + ([] if pick.smooth else [nn.ReLU]))(), size


def _residual(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    channels, rank = size[0], len(size) - 1
    make: Any = CONVOLUTIONS[rank - 1]
    normalize: Any = BATCH_NORMS[rank - 1]
    first = normalize(channels) if pick.flag() else nn.Identity()
    # Not pick.activation(): in place, it would write over the tensor that the residual branch adds.
    activation = _activation(pick, size)[0]
    return Residual(nn.Sequential(first, activation, make(channels, channels, 3, padding=1))), size


def _broadcast(pick: Choices, size: Size) -> tuple[nn.Module, Size]:
    return pick.among([Gain, Shift])(*pick.among([size, (size[0], *(1 for _ in size[1:])), size[-1:]])), size


GRID_BLOCKS: tuple[Block, ...] = (
    _convolution,
    _convolution,
    _convolution_in_place,
    _transposed,
    _normalization,
    _pool,
    _activation,
    _residual,
    _broadcast,
)
