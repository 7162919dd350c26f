"""Convolutions in one, two and three dimensions, with stride, padding, dilation and groups."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Call, Outer, Rule, Use

__all__ = ["ConvolutionRule"]

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class ConvolutionRule(Rule):
    """Tangent of the kernel: Σ_s g_s ⊗ patch_s over output positions s, group by group; of the bias: Σ_s g_s."""

    functions = (torch.conv1d, torch.conv2d, torch.conv3d)

    def read(self, function: Callable[..., Any], args: tuple, kwargs: dict) -> Call | None:
        """Read a batched convolution."""
        given = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        given |= dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        x, dims = given["input"], given["weight"].ndim - 2
        if x.ndim != dims + 2:
            return None
        rest = [given[name] for name in ARGUMENTS[3:]]
        settings = {
            "size": tuple(given["weight"].shape[2:]),
            "stride": _spread(given["stride"], dims),
            "dilation": _spread(given["dilation"], dims),
            "groups": given["groups"],
        }
        padding = given["padding"]
        if isinstance(padding, str):
            whole = [d * (k - 1) for d, k in zip(settings["dilation"], settings["size"], strict=True)]
            settings["padding"] = [
                (0, 0) if padding == "valid" else (total // 2, total - total // 2) for total in whole
            ]
        else:
            settings["padding"] = [(p, p) for p in _spread(padding, dims)]
        return Call(
            {"weight": given["weight"], "bias": given["bias"]},
            {"input": x},
            lambda w: function(x, w["weight"], w["bias"], *rest),
            settings,
        )

    def outer(self, use: Use, n: int) -> Outer | None:
        """Output positions (and the frames or windows that share a row) are positions."""
        if use.layout.axis != 0:
            return None
        groups, channels = use.settings["groups"], use.inputs["input"].shape[1]
        patch = channels // groups * torch.Size(use.settings["size"]).numel()
        positions = use.output_shape[2:].numel() * use.layout.multiplicity
        return Outer(positions, patch, use.output_shape[1] // groups, groups)

    def direction_axis(self, use: Use) -> int:
        """Just after the channels: gradients of a channel lie together over directions and positions."""
        return 2 if use.layout.multiplicity == 1 else 3

    def activations(self, use: Use, n: int, *, ones: bool) -> Tensor:
        """Patches as (n, G, S, fan_in [+ 1]), by a strided view of the padded input and one copy."""
        x = use.activation()
        groups, size = use.settings["groups"], use.settings["size"]
        padding = use.settings["padding"]
        if any(low or high for low, high in padding):
            x = F.pad(x, [side for pair in reversed(padding) for side in pair])
        x = x.contiguous()
        out, strides = use.output_shape[2:], x.stride()[2:]
        view = x.as_strided(
            (x.shape[0], groups, x.shape[1] // groups, *size, *out),
            (
                x.stride(0),
                x.stride(1) * (x.shape[1] // groups),
                x.stride(1),
                *(s * d for s, d in zip(strides, use.settings["dilation"], strict=True)),
                *(s * t for s, t in zip(strides, use.settings["stride"], strict=True)),
            ),
        )
        fan_in = view.shape[2 : -len(out)].numel()
        patches = x.new_empty(x.shape[0], groups, fan_in + ones, out.numel())  # (n·m, G, fan_in, S)
        patches[:, :, :fan_in].view(view.shape).copy_(view)
        if ones:
            patches[:, :, fan_in] = 1.0
        if use.layout.multiplicity == 1:
            return patches.transpose(2, 3)
        rows = use.layout.rows(patches, n)  # (n, m, G, fan_in, S)
        return rows.permute(0, 2, 1, 4, 3).reshape(n, groups, -1, fan_in + ones)

    def gradients(self, use: Use, stacked: Tensor) -> Tensor:
        """(n, [m,] channels, k, positions...) -> (n, G, S, k, out)."""
        groups, many = use.settings["groups"], use.layout.multiplicity > 1
        n, axis = len(stacked), 2 if many else 1
        channels, k = stacked.shape[axis : axis + 2]
        g = stacked.reshape(n, -1 if many else 1, groups, channels // groups, k, stacked.shape[axis + 2 :].numel())
        g = g.permute(0, 2, 1, 5, 4, 3)  # (n, G, m, S, k, out)
        return g.flatten(2, 3) if many else g.squeeze(2)


def _spread(value: Any, dims: int) -> tuple[int, ...]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value
