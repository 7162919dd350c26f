"""Embedding tables: the tangent of table row v is Σ_s g_s over the positions s that look it up."""

from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import (
    Decomposition,
    Function,
    IsWeight,
    OuterShape,
    ParameterUse,
    ParsedCall,
    Rule,
    required,
)
from kernelmem.tangents.rules.layout import Layout, parameter_view, requires_gradient

ARGUMENTS = {
    F.embedding: ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    torch.embedding: ("weight", "input", "padding_idx", "scale_grad_by_freq", "sparse"),
}
SELECT = (torch.index_select, Tensor.index_select)
BAG_SIGNATURE = signature(F.embedding_bag)


class EmbeddingRule(Rule):
    """Lookups in a table with integer tensors: F.embedding and index_select.

    If an example looks up fewer positions than the table has rows, the tangent is kept as the tokens and output gradients
    of the positions: a sum of outer products of unit vectors and gradients.
    """

    functions = (*ARGUMENTS, *SELECT)

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse a lookup; max_norm (which modifies the table) and frequency scaling are left to the dense fallback."""
        if function in ARGUMENTS:
            arguments = dict(zip(ARGUMENTS[function], args, strict=False)) | kwargs
            indices, weight, padding = arguments["input"], arguments["weight"], arguments.get("padding_idx")
            if arguments.get("max_norm") is not None or arguments.get("scale_grad_by_freq"):
                return None
            if padding is not None and padding < 0:
                padding = padding + len(weight) if function is F.embedding else None
            return _parse_lookup(weight, indices, 0, padding)
        if not is_weight(args[0]):
            return None
        _, axis, indices = (*args, *kwargs.values())
        return _parse_lookup(args[0], indices, axis, None)

    def outer_shape(self, use: ParameterUse, n: int) -> OuterShape | None:
        """Return the sizes of the outer products with unit vectors; None if a table of tangents has fewer numbers."""
        if not self.is_direct(use):
            return None
        positions = use.rows_shape(n)[1:-1].numel()
        rows = use.settings["rows"]
        return OuterShape(positions, rows, use.output_shape[-1]) if positions < rows else None

    def is_direct(self, use: ParameterUse) -> bool:
        """Return True if the batch axis is one of the index axes."""
        return use.batch_axis.axis < len(use.output_shape) - 1

    def direction_axis(self, use: ParameterUse) -> int:
        """Return the position of the axis of output directions, which is just before the features."""
        return -2

    def tokens(self, use: ParameterUse, n: int) -> Tensor:
        """Return the table rows that are looked up (n examples, S positions), with -1 for the padding token."""
        indices = use.batch_axis.rows(use.activation(), n).reshape(n, -1).long()
        padding = use.settings["padding"]
        return indices if padding is None else torch.where(indices == padding, -1, indices)

    def output_gradients(self, use: ParameterUse, gradient: Tensor) -> Tensor:
        """Return the gradient (n, ..., k, d) as (n examples, 1, S positions, k directions, d)."""
        return gradient.reshape(len(gradient), 1, -1, *gradient.shape[-2:])

    def to_weight_shape(self, use: ParameterUse, tangent: Tensor) -> Tensor:
        """Reshape tangents (n, k, V table rows, d) to (n, k, *parameter shape)."""
        layout = use.settings["layout"]
        return tangent if layout is None else layout.restore(tangent)

    def direct_tangents(self, use: ParameterUse, gradient: Tensor, n: int) -> dict[str, Tensor]:
        """Return the tangents of the table, (n examples, k directions, *parameter shape), by slot.

        The output gradient at each position of an example is added to the table row that is looked up there.
        """
        tokens = self.tokens(use, n)
        gradients = self.output_gradients(use, gradient)[:, 0].transpose(1, 2)  # (n, k, S, d)
        k, width = gradients.shape[1], gradients.shape[-1]
        gradients = gradients * (tokens >= 0)[:, None, :, None]
        table = gradients.new_zeros(n, k, use.settings["rows"], width)
        table.scatter_add_(2, tokens.clamp_min(0)[:, None, :, None].expand_as(gradients), gradients)
        return {"weight": self.to_weight_shape(use, table)}


class IndexRule(Decomposition):
    """table[indices] and table[:, indices] as index_select, table[i] with a tensor i of one number as a slice."""

    functions = (Tensor.__getitem__,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Return the entries of a parameter, or of a view of one, at an index tensor; NotImplemented for other indices."""
        table, key = args
        if not requires_gradient(table):
            return NotImplemented
        keys = key if isinstance(key, tuple) else (key,)
        axis, indices = len(keys) - 1, keys[-1]
        if any(not isinstance(other, slice) or other != slice(None) for other in keys[:-1]):
            return NotImplemented
        if not isinstance(indices, Tensor) or indices.dtype in (torch.bool, torch.uint8) or indices.is_floating_point():
            return NotImplemented
        if indices.ndim == 0:
            return table.select(axis, int(indices))
        n_rows = table.shape[axis]
        selected = torch.index_select(table, axis, torch.where(indices < 0, indices + n_rows, indices).flatten())
        return selected.unflatten(axis, indices.shape)


class EmbeddingBagRule(Decomposition):
    """F.embedding_bag as a lookup and a sum, mean or maximum over the tokens of each bag."""

    functions = (F.embedding_bag,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Compute the bags, up to rounding, or return NotImplemented if the table is modified or gradients are scaled."""
        bound = BAG_SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        tokens, weight, padding = arguments["input"], arguments["weight"], arguments["padding_idx"]
        if arguments["max_norm"] is not None or arguments["scale_grad_by_freq"] or tokens.numel() == 0:
            return NotImplemented
        sample_weights, is_token = arguments["per_sample_weights"], torch.ones_like(tokens, dtype=torch.bool)
        if tokens.ndim == 1:
            indices, is_token = _bags(arguments["offsets"], len(tokens), include_last=arguments["include_last_offset"])
            tokens = tokens[indices]
            sample_weights = None if sample_weights is None else sample_weights[indices]
        if padding is not None:
            is_token = is_token & (tokens != padding % len(weight))
        vectors, mask = F.embedding(tokens, weight, padding), is_token[..., None]
        if sample_weights is not None:
            vectors = vectors * sample_weights[..., None]
        if arguments["mode"] == "max":
            largest = torch.where(mask, vectors, float("-inf")).max(1).values
            return torch.where(mask.any(1), largest, 0.0)
        total = torch.where(mask, vectors, 0.0).sum(1)
        return total / mask.sum(1).clamp_min(1) if arguments["mode"] == "mean" else total


def _bags(offsets: Tensor, n_tokens: int, *, include_last: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of the tokens of each bag, (n bags, longest), and a mask of those that belong to it."""
    ends = offsets[1:] if include_last else torch.cat([offsets[1:], offsets.new_tensor([n_tokens])])
    starts = offsets[: len(ends)]
    lengths = ends - starts
    steps = torch.arange(max(1, int(lengths.max())), device=offsets.device)
    return (starts[:, None] + steps).clamp_max(n_tokens - 1), steps < lengths[:, None]


def _parse_lookup(weight: Tensor, indices: Tensor, axis: int, padding: int | None) -> ParsedCall:
    """Parse the lookup of ``indices`` along one axis of a weight, as that of the rows of a matrix."""
    axis, n_rows = axis % weight.ndim, weight.shape[axis]
    order = (axis, *(other for other in range(weight.ndim) if other != axis))
    matrix_shape = (n_rows, weight.numel() // n_rows)
    parameter, layout = parameter_view(weight)
    if layout is None or layout.repeats:
        parameter, layout = weight.permute(order).reshape(matrix_shape), None
    else:
        layout = layout.arranged(order, matrix_shape)
    is_table = weight.ndim == 2 and axis == 0
    other_shape = tuple(weight.shape[other] for other in order[1:])

    def then(output: Tensor) -> Tensor:
        axes = tuple(range(indices.ndim)), tuple(range(axis, axis + indices.ndim))
        return output.unflatten(-1, other_shape or (1,)).reshape(*indices.shape, *other_shape).movedim(*axes)

    return ParsedCall(
        {"weight": parameter},
        {"input": indices},
        lambda w: F.embedding(indices, _table(w, layout), padding),
        {"padding": padding, "rows": n_rows, "layout": None if layout is None or layout.is_whole else layout},
        then=None if is_table else then,
    )


def _table(w: dict[str, Tensor | None], layout: Layout | None) -> Tensor:
    """Return the weight of a call as a matrix of table rows."""
    weight = required(w["weight"])
    return weight if layout is None else layout.view(weight)
