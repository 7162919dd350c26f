"""Convolutions in one to three dimensions, with stride, padding, dilation and groups."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, IsWeight, OuterShape, ParameterUse, ParsedCall, Rule, required

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class ConvolutionRule(Rule):
    """Convolutions: the tangent of the weight is Σ_s g_s ⊗ patch_s over output positions s, and that of the bias Σ_s g_s.

    g_s is the output gradient at s, patch_s the part of the input that it depends on, both per channel group.
    """

    functions = (torch.conv1d, torch.conv2d, torch.conv3d)

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse a call of a convolution; return None if its input has no batch axis."""
        arguments = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        arguments |= dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        x, n_dimensions = arguments["input"], arguments["weight"].ndim - 2
        if x.ndim != n_dimensions + 2:
            return None
        other_arguments = [arguments[name] for name in ARGUMENTS[3:]]
        settings = {
            "size": tuple(arguments["weight"].shape[2:]),
            "stride": _per_dimension(arguments["stride"], n_dimensions),
            "dilation": _per_dimension(arguments["dilation"], n_dimensions),
            "groups": arguments["groups"],
        }
        padding = arguments["padding"]
        if isinstance(padding, str):
            total_padding = [d * (k - 1) for d, k in zip(settings["dilation"], settings["size"], strict=True)]
            settings["padding"] = [
                (0, 0) if padding == "valid" else (total // 2, total - total // 2) for total in total_padding
            ]
        else:
            settings["padding"] = [(p, p) for p in _per_dimension(padding, n_dimensions)]
        return ParsedCall(
            {"weight": arguments["weight"], "bias": arguments["bias"]},
            {"input": x},
            lambda weights: function(_channels_last(x), required(weights["weight"]), weights["bias"], *other_arguments),
            settings,
        )

    def outer_shape(self, use: ParameterUse, n: int) -> OuterShape | None:
        """Return the sizes of the outer products; positions are output positions times the frames of an example."""
        if use.batch_axis.axis != 0:
            return None
        groups, channels = use.settings["groups"], use.inputs["input"].shape[1]
        patch_size = channels // groups * torch.Size(use.settings["size"]).numel()
        positions = use.output_shape[2:].numel() * use.batch_axis.multiplicity
        return OuterShape(positions, patch_size, use.output_shape[1] // groups, groups)

    def arrange(self, use: ParameterUse, rows: Tensor) -> Tensor:
        """Return the gradient ``rows`` with its channels last, (n examples, [frames,] positions..., channels)."""
        return rows.movedim(1 if use.batch_axis.multiplicity == 1 else 2, -1)

    def direction_axis(self, use: ParameterUse) -> int:
        """Return the position of the axis of output directions, which is just before the channels."""
        return -2

    def activations(self, use: ParameterUse, n: int, *, ones: bool) -> Tensor:
        """Return the input patches (n examples, G groups, S positions, fan_in), plus a column of ones if ``ones``.

        fan_in runs over (kernel positions, channels).
        """
        x = use.activation().movedim(1, -1)  # (n·m, lengths..., channels)
        groups, size, padding = use.settings["groups"], use.settings["size"], use.settings["padding"]
        if any(low or high for low, high in padding):
            x = F.pad(x, [0, 0, *(side for pair in reversed(padding) for side in pair)])
        x, channels, output_lengths = x.contiguous(), x.shape[-1] // groups, use.output_shape[2:]
        strides = x.stride()[1:-1]
        patch_view = x.as_strided(
            (x.shape[0], groups, *output_lengths, *size, channels),
            (
                x.stride(0),
                channels,
                *(s * t for s, t in zip(strides, use.settings["stride"], strict=True)),
                *(s * d for s, d in zip(strides, use.settings["dilation"], strict=True)),
                1,
            ),
        )
        fan_in = torch.Size(size).numel() * channels
        patches = x.new_empty(x.shape[0], groups, *output_lengths, fan_in + ones)
        patches[..., :fan_in].unflatten(-1, (*size, channels)).copy_(patch_view)
        if ones:
            patches[..., fan_in] = 1.0
        patches = patches.flatten(2, -2)  # (n·m, G, S, fan_in)
        if use.batch_axis.multiplicity == 1:
            return patches
        return (
            use.batch_axis.rows(patches, n).transpose(1, 2).flatten(2, 3)
        )  # (n, m, G, S, fan_in) -> (n, G, m·S, fan_in)

    def output_gradients(self, use: ParameterUse, gradient: Tensor) -> Tensor:
        """Return the gradient as a view (n examples, G groups, S positions, k directions, out channels of a group)."""
        k, channels = gradient.shape[-2:]
        groups = use.settings["groups"]
        g = gradient.reshape(len(gradient), -1, k, groups, channels // groups)
        return g.permute(0, 3, 1, 2, 4)

    def to_weight_shape(self, use: ParameterUse, tangent: Tensor) -> Tensor:
        """Reshape (n, k, G, out, kernel positions · channels) to (n, k, channels out, channels in, *kernel size).

        n counts examples, k output directions and G channel groups.
        """
        size = use.settings["size"]
        tangent = tangent.flatten(2, 3).unflatten(-1, (*size, tangent.shape[-1] // torch.Size(size).numel()))
        return tangent.movedim(-1, 3)


def _channels_last(x: Tensor) -> Tensor:
    """Convert images to channels-last, for which torch's convolutions and copies of their gradients are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _per_dimension(value: int | Sequence[int], n_dimensions: int) -> tuple[int, ...]:
    """Return ``value`` as a tuple of one number per spatial dimension."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n_dimensions if len(values) == 1 else values
