"""Gains and biases of normalization layers: dγ = Σ g ∘ x̂, dβ = Σ g, with x̂ the input normalized without them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, ParameterUse, ParsedCall, Rule

__all__ = ["NormalizationRule"]

NAMES = {
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.instance_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
}


class NormalizationRule(Rule):
    """LayerNorm and RMSNorm (features last), GroupNorm, BatchNorm in eval mode, InstanceNorm (channels second)."""

    functions = tuple(NAMES)

    def read(self, function: Function, args: tuple, kwargs: dict) -> ParsedCall | None:
        """Read one normalization.

        With batch statistics a row's tangent is what its own positions give (its path); that these statistics depend on
        the other rows is for the caller to allow.
        """
        given = dict(zip(NAMES[function], args, strict=False)) | kwargs
        last = function in (F.layer_norm, F.rms_norm)
        weights = {"weight": given.pop("weight", None), "bias": given.pop("bias", None)}

        def as_it_is(w: dict[str, Tensor | None]) -> Tensor:
            return function(**given, **{slot: value for slot, value in w.items() if value is not None})

        # The backward of an affine map is one product; that of torch's batch_norm is several times slower.
        running = function is F.batch_norm and not given.get("training") and given.get("running_var") is not None
        run = _affine(given) if running else as_it_is
        axes = len(given["normalized_shape"]) if last else 1
        return ParsedCall(weights, {"input": given["input"]}, run, {"last": last, "axes": axes, "normalize": run})

    def is_direct(self, use: ParameterUse) -> bool:
        """Features last: rows before them; channels second: rows first."""
        if use.settings["last"]:
            return use.batch_axis.axis < len(use.output_shape) - use.settings["axes"]
        return use.batch_axis.axis == 0

    def direction_axis(self, use: ParameterUse) -> int:
        """Features last: just before them; channels second: just after them."""
        return -1 - use.settings["axes"] if use.settings["last"] else _channel_axis(use) + 1

    def direct_tangents(self, use: ParameterUse, stacked: Tensor, n: int) -> dict[str, Tensor]:
        """Sum over positions, in one direction."""
        use.activation()  # refuse an overwritten input
        with torch.no_grad():
            if "weight" in use.slots and "normalized" not in use.settings:  # kept for the other directions
                use.settings["normalized"] = use.batch_axis.rows(use.settings["normalize"]({}), n)
            normalized = use.settings.get("normalized")
        g = stacked.squeeze(self.direction_axis(use) % stacked.ndim)
        features = range(g.ndim - use.settings["axes"], g.ndim) if use.settings["last"] else (_channel_axis(use),)
        positions = [axis for axis in range(1, g.ndim) if axis not in features]
        found = {"bias": g.sum(positions, keepdim=True) if positions else g} if "bias" in use.slots else {}
        if normalized is not None:
            product = g * normalized
            found["weight"] = product.sum(positions, keepdim=True) if positions else product
        return {slot: tangent.reshape(n, 1, -1) for slot, tangent in found.items()}


def _affine(given: dict) -> Callable[[dict[str, Tensor | None]], Tensor]:
    """BatchNorm in eval mode as x · scale + shift."""
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    shape = (-1, *(1,) * (x.ndim - 2))
    spread = torch.rsqrt(variance + given.get("eps", 1e-5))

    def run(w: dict[str, Tensor | None]) -> Tensor:
        weight, bias = w.get("weight"), w.get("bias")
        scale = spread if weight is None else spread * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return x * scale.reshape(shape) + shift.reshape(shape)

    return run


def _channel_axis(use: ParameterUse) -> int:
    """The channel axis in the rows view."""
    return 1 if use.batch_axis.multiplicity == 1 else 2
