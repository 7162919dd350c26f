"""Parameters that are added, multiplied or expanded: position embeddings, gains, class tokens, biases; PReLU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function, IsWeight, ParameterUse, ParsedCall, Rule, required

ADD = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
SUBTRACT = (torch.sub, torch.subtract, Tensor.sub, Tensor.__sub__)
MULTIPLY = (torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
EXPAND = (Tensor.expand, Tensor.repeat)


class ElementwiseRule(Rule):
    """x + p, x − p, p − x, x · p, p.expand(n, ...): the tangent is the output gradient summed over broadcast axes."""

    functions = ADD + SUBTRACT + MULTIPLY + EXPAND

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse an elementwise operation; return None unless one operand may be a parameter or computed from parameters."""
        if function in EXPAND:
            return _parse_expansion(function, args[0], [*args[1:], *kwargs.values()])
        if kwargs or len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return None
        gradient_operands = [i for i, a in enumerate(args) if a.requires_grad]
        if not gradient_operands:
            return None
        # If both operands require gradients, the parameter is the leaf, or the one with fewer axes.
        weight_position = min(gradient_operands, key=lambda i: (not args[i].is_leaf, args[i].ndim))
        weight, other = args[weight_position], args[1 - weight_position]
        sign = -1.0 if function in SUBTRACT and weight_position == 1 else 1.0
        inputs = {"input": other} if function in MULTIPLY else {}

        def run(w: dict[str, Tensor | None]) -> Tensor:
            value = required(w["weight"])
            return function(value, other) if weight_position == 0 else function(other, value)

        return ParsedCall({"weight": weight}, inputs, run, {"shape": weight.shape, "sign": sign})

    def is_direct(self, use: ParameterUse) -> bool:
        """Return True if the parameter is the same for all rows: it has no batch axis, or one of length 1."""
        axis = use.batch_axis.axis - (len(use.output_shape) - len(use.settings["shape"]))
        return axis < 0 or use.settings["shape"][axis] == 1

    def direct_tangents(self, use: ParameterUse, gradient: Tensor, n: int) -> dict[str, Tensor]:
        """Return by slot the tangents (n examples, k directions, *parameter shape), summed over broadcast axes."""
        rank, shape = len(use.output_shape), use.settings["shape"]
        if "input" in use.inputs:
            other = use.activation()
            other = other.expand(use.output_shape) if other.ndim else other
            gradient = gradient * (use.batch_axis.rows(other, n)[:, None] if other.ndim else other)
        if use.settings.get("sign", 1.0) < 0:
            gradient = -gradient
        # The gradient is (n, k, [m,] output axes without the batch axis): m entries of the batch axis per row.
        has_multiplicity = use.batch_axis.multiplicity > 1
        axes = [axis for axis in range(rank) if axis != use.batch_axis.axis]
        parameter_axis = {axis: axis - (rank - len(shape)) for axis in axes}  # aligned at the last axis; < 0: none
        summed_axes = [2] if has_multiplicity else []
        summed_axes += [
            2 + has_multiplicity + position
            for position, axis in enumerate(axes)
            if parameter_axis[axis] < 0 or (shape[parameter_axis[axis]] == 1 and use.output_shape[axis] != 1)
        ]
        reduced = gradient.sum(summed_axes) if summed_axes else gradient
        return {"weight": reduced.reshape(n, gradient.shape[1], *shape)}


class PReLURule(Decomposition):
    """torch.prelu as a product that the elementwise rule covers (its vmap rule in torch is wrong)."""

    functions = (torch.prelu,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> Tensor:
        """Return x where x > 0, and x times the slope of its channel elsewhere."""
        x, slope = (*args, *kwargs.values())[:2]
        if slope.numel() > 1 and x.ndim > 2:
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        return torch.where(x > 0, x, x * slope)


def _parse_expansion(function: Function, weight: Tensor, sizes: Sequence[int]) -> ParsedCall | None:
    """Parse p.expand(sizes), or p.repeat(counts) if every repeated axis has length 1; return None for other calls."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    if not weight.requires_grad:
        return None
    if function is Tensor.repeat:
        shape = (1,) * (len(sizes) - weight.ndim) + tuple(weight.shape)
        if any(count != 1 and size != 1 for count, size in zip(sizes, shape, strict=True)):
            return None
        sizes = tuple(count * size for count, size in zip(sizes, shape, strict=True))
        return ParsedCall(
            {"weight": weight}, {}, lambda w: required(w["weight"]).expand(sizes).clone(), {"shape": weight.shape}
        )
    return ParsedCall({"weight": weight}, {}, lambda w: required(w["weight"]).expand(sizes), {"shape": weight.shape})
