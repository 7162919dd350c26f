"""Convolutions and transposed convolutions in one to three dimensions, with stride, padding, dilation and groups."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, IsWeight, OuterShape, ParameterUse, ParsedCall, Rule, required

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


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
        channels, output_lengths = x.shape[-1] // groups, use.output_shape[2:]
        windows = _windows(x, output_lengths, size, use.settings["stride"], use.settings["dilation"])
        patch_view = windows.unflatten(-1, (groups, channels)).movedim(-2, 1)
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


class TransposedConvolutionRule(Rule):
    """Transposed convolutions: the tangent of the weight is Σ_s patch_s ⊗ a_s over positions s of the input.

    a_s is the input at s, patch_s the part of the output gradient that it reaches, both per channel group. A bias is added
    afterwards, by a sum that the elementwise rule covers, unless it is the only parameter.
    """

    functions = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse a call of a transposed convolution; return None if its input has no batch axis."""
        arguments = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
        arguments |= dict(zip(TRANSPOSED_ARGUMENTS, args, strict=False)) | kwargs
        x, weight, bias = (arguments.pop(name) for name in TRANSPOSED_ARGUMENTS[:3])
        n_dimensions = weight.ndim - 2
        if x.ndim != n_dimensions + 2 or is_weight(x):
            return None
        names = ("stride", "padding", "dilation")
        settings = {name: _per_dimension(arguments[name], n_dimensions) for name in names}
        settings |= {"groups": arguments["groups"], "size": tuple(weight.shape[2:]), "layout": "inputs first"}
        if not is_weight(weight):
            return ParsedCall({"bias": bias}, {}, lambda w: function(x, weight, w["bias"], **arguments), settings)
        return ParsedCall(
            {"weight": weight},
            {"input": x},
            lambda w: function(x, required(w["weight"]), None, **arguments),
            settings,
            then=None if bias is None else lambda output: output + bias.view(-1, *(1,) * n_dimensions),
        )

    def outer_shape(self, use: ParameterUse, n: int) -> OuterShape | None:
        """Return the sizes of the outer products; positions are those of the input times the frames of an example."""
        if use.batch_axis.axis != 0 or "input" not in use.inputs:
            return None
        x, groups = use.inputs["input"], use.settings["groups"]
        n_channels = use.output_shape[1] // groups
        fan_out = n_channels * torch.Size(use.settings["size"]).numel()
        return OuterShape(x.shape[2:].numel() * use.batch_axis.multiplicity, x.shape[1] // groups, fan_out, groups)

    def is_direct(self, use: ParameterUse) -> bool:
        """Return True if the bias is the only parameter."""
        return use.batch_axis.axis == 0 and "input" not in use.inputs

    def direct_tangents(self, use: ParameterUse, gradient: Tensor, n: int) -> dict[str, Tensor]:
        """Return the tangents (n examples, k directions, channels) of a bias, summed over positions."""
        g = gradient.flatten(-len(use.settings["size"])).sum(-1)  # (n, k, [frames,] channels)
        return {"bias": g.sum(2) if g.ndim == 4 else g}

    def arrange(self, use: ParameterUse, rows: Tensor) -> Tensor:
        """Return the gradient ``rows`` with its channels last, (n examples, [frames,] positions..., channels)."""
        return rows if self.is_direct(use) else rows.movedim(1 if use.batch_axis.multiplicity == 1 else 2, -1)

    def direction_axis(self, use: ParameterUse) -> int:
        """Return the position of the axis of output directions, which is just before the channels, or 1 for a bias."""
        return 1 if self.is_direct(use) else -2

    def activations(self, use: ParameterUse, n: int, *, ones: bool) -> Tensor:
        """Return the inputs (n examples, G groups, S input positions, channels of a group)."""
        x = use.batch_axis.rows(use.activation().flatten(2).mT, n)  # (n, [frames,] S, channels)
        groups = use.settings["groups"]
        return x.reshape(n, -1, groups, x.shape[-1] // groups).transpose(1, 2)

    def output_gradients(self, use: ParameterUse, gradient: Tensor) -> Tensor:
        """Return the patches of the gradient that each input position reaches.

        They are (n examples, G groups, S input positions, k directions, fan_out), fan_out over (channels, kernel positions).
        """
        settings, n, (k, channels) = use.settings, len(gradient), gradient.shape[-2:]
        size, groups, lengths = settings["size"], settings["groups"], use.inputs["input"].shape[2:]
        gradient = gradient.reshape(-1, *use.output_shape[2:], k * channels)
        sides = []
        for stop, width, stride, dilation, low, length in zip(
            lengths,
            size,
            settings["stride"],
            settings["dilation"],
            settings["padding"],
            use.output_shape[2:],
            strict=True,
        ):
            reached = (stop - 1) * stride + (width - 1) * dilation + 1  # from the position -low of the output on
            sides.append((low, max(0, reached - low - length)))
        gradient = F.pad(gradient, [0, 0, *(side for pair in reversed(sides) for side in pair)])
        windows = _windows(gradient, lengths, size, settings["stride"], settings["dilation"])
        windows = windows.flatten(1, len(size)).flatten(2, -2)  # (n·m, S, kernel positions, k·channels)
        windows = windows.unflatten(-1, (k, groups, channels // groups)).permute(0, 4, 1, 3, 5, 2).flatten(4)
        windows = windows.unflatten(0, (n, -1)).transpose(1, 2)  # (n, G, m, S, k, fan_out)
        return windows.flatten(2, 3)

    def to_weight_shape(self, use: ParameterUse, tangent: Tensor) -> Tensor:
        """Reshape (n, k, G, fan_out, channels of a group) to (n, k, channels in, channels out of a group, *kernel size)."""
        size = use.settings["size"]
        return tangent.mT.flatten(2, 3).unflatten(-1, (-1, *size))


def _windows(
    x: Tensor, counts: Sequence[int], size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the windows (N, *counts, *size, channels) of x (N, lengths..., channels), as a view of contiguous x."""
    x = x.contiguous()
    strides = x.stride()[1:-1]
    steps = (
        *(s * t for s, t in zip(strides, stride, strict=True)),
        *(s * d for s, d in zip(strides, dilation, strict=True)),
    )
    return x.as_strided((x.shape[0], *counts, *size, x.shape[-1]), (x.stride(0), *steps, 1))


def _channels_last(x: Tensor) -> Tensor:
    """Convert images to channels-last, for which torch's convolutions and copies of their gradients are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _per_dimension(value: int | Sequence[int], n_dimensions: int) -> tuple[int, ...]:
    """Return ``value`` as a tuple of one number per spatial dimension."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n_dimensions if len(values) == 1 else values
