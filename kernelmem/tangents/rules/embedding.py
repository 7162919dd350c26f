"""Embedding tables: the tangent of table row v is Σ_s g_s over the positions s that look it up."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, IsWeight, ParameterUse, ParsedCall, Rule, required

ARGUMENTS = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


class EmbeddingRule(Rule):
    """F.embedding with integer inputs."""

    functions = (F.embedding, torch.embedding)

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse a lookup; max_norm (which modifies the table) and frequency scaling are left to the dense fallback."""
        names = (
            ARGUMENTS if function is F.embedding else ("weight", "input", "padding_idx", "scale_grad_by_freq", "sparse")
        )
        arguments = dict(zip(names, args, strict=False)) | kwargs
        indices, weight, padding = arguments["input"], arguments["weight"], arguments.get("padding_idx")
        if arguments.get("max_norm") is not None or arguments.get("scale_grad_by_freq"):
            return None
        if padding is not None and padding < 0:
            padding = padding + len(weight) if function is F.embedding else None
        return ParsedCall(
            {"weight": weight},
            {"input": indices},
            lambda w: F.embedding(indices, required(w["weight"])),
            {"padding": padding, "rows": len(weight)},
        )

    def is_direct(self, use: ParameterUse) -> bool:
        """Return True if the batch axis is one of the index axes."""
        return use.batch_axis.axis < len(use.output_shape) - 1

    def direct_tangents(self, use: ParameterUse, gradient: Tensor, n: int) -> dict[str, Tensor]:
        """Return the tangents of the table, (n examples, k directions, V table rows, d), by slot.

        The output gradient at each position of an example is added to the table row that is looked up there.
        """
        indices = use.batch_axis.rows(use.activation(), n).reshape(n, -1)
        k, width = gradient.shape[1], gradient.shape[-1]
        gradients = gradient.reshape(n, k, -1, width)
        if use.settings["padding"] is not None:
            gradients = gradients * (indices != use.settings["padding"])[:, None, :, None]
        table = gradients.new_zeros(n, k, use.settings["rows"], width)
        table.scatter_add_(2, indices[:, None, :, None].expand_as(gradients), gradients)
        return {"weight": table}
