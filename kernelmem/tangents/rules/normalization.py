"""Normalization layers: tangent Σ_s g_s ∘ x̂_s of the gain and Σ_s g_s of the bias, x̂ the normalized input."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, IsWeight, ParameterUse, ParsedCall, Rule

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

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse a call of a normalization function; every form of it is covered.

        With batch statistics the tangent of a row comes from its own positions; callers must accept that the statistics
        depend on the other rows.
        """
        arguments = dict(zip(NAMES[function], args, strict=False)) | kwargs
        features_last = function in (F.layer_norm, F.rms_norm)
        weights = {"weight": arguments.pop("weight", None), "bias": arguments.pop("bias", None)}

        def run_original(slot_values: dict[str, Tensor | None]) -> Tensor:
            return function(**arguments, **{slot: value for slot, value in slot_values.items() if value is not None})

        # The backward pass of an affine map is one product; that of torch's batch_norm is several times slower.
        uses_running_statistics = (
            function is F.batch_norm and not arguments.get("training") and arguments.get("running_var") is not None
        )
        run = _affine_batch_norm(arguments) if uses_running_statistics else run_original
        n_feature_axes = len(arguments["normalized_shape"]) if features_last else 1
        return ParsedCall(
            weights,
            {"input": arguments["input"]},
            run,
            {"last": features_last, "axes": n_feature_axes, "normalize": run},
        )

    def is_direct(self, use: ParameterUse) -> bool:
        """Return True if the batch axis precedes the features (features last), or is the first (channels second)."""
        if use.settings["last"]:
            return use.batch_axis.axis < len(use.output_shape) - use.settings["axes"]
        return use.batch_axis.axis == 0

    def direction_axis(self, use: ParameterUse) -> int:
        """Return the axis before the features (features last), or after the channels (channels second)."""
        return -1 - use.settings["axes"] if use.settings["last"] else _channel_axis(use) + 1

    def direct_tangents(self, use: ParameterUse, gradient: Tensor, n: int) -> dict[str, Tensor]:
        """Return by slot the tangents (n examples, 1, entries of the parameter) in one direction, summed over positions."""
        use.activation()  # raises if the input was modified
        with torch.no_grad():
            if "weight" in use.slots and "normalized" not in use.settings:  # kept for the other directions
                use.settings["normalized"] = use.batch_axis.rows(use.settings["normalize"]({}), n)
            normalized = use.settings.get("normalized")
        g = gradient.squeeze(self.direction_axis(use) % gradient.ndim)
        features = range(g.ndim - use.settings["axes"], g.ndim) if use.settings["last"] else (_channel_axis(use),)
        positions = [axis for axis in range(1, g.ndim) if axis not in features]
        tangents = {"bias": g.sum(positions, keepdim=True) if positions else g} if "bias" in use.slots else {}
        if normalized is not None:
            product = g * normalized
            tangents["weight"] = product.sum(positions, keepdim=True) if positions else product
        return {slot: tangent.reshape(n, 1, -1) for slot, tangent in tangents.items()}


def _affine_batch_norm(arguments: dict) -> Callable[[dict[str, Tensor | None]], Tensor]:
    """Return a function from weights by slot to the output of BatchNorm in eval mode, computed as x · scale + shift."""
    x, mean, variance = arguments["input"], arguments["running_mean"], arguments["running_var"]
    shape = (-1, *(1,) * (x.ndim - 2))
    inverse_std = torch.rsqrt(variance + arguments.get("eps", 1e-5))

    def run(w: dict[str, Tensor | None]) -> Tensor:
        weight, bias = w.get("weight"), w.get("bias")
        scale = inverse_std if weight is None else inverse_std * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return x * scale.reshape(shape) + shift.reshape(shape)

    return run


def _channel_axis(use: ParameterUse) -> int:
    """Return the position of the channel axis in the output after its batch axis is moved to the front."""
    return 1 if use.batch_axis.multiplicity == 1 else 2
