"""Free parameters that are added, multiplied or expanded: positions, gains, class tokens, biases."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function, ParameterUse, ParsedCall, Rule, required

__all__ = ["ElementwiseRule", "PReLURule"]

ADD = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
SUBTRACT = (torch.sub, torch.subtract, Tensor.sub, Tensor.__sub__)
MULTIPLY = (torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
EXPAND = (Tensor.expand, Tensor.repeat)


class ElementwiseRule(Rule):
    """x + p, x − p, p − x, x · p, p.expand(n, ...): the tangent is the output's gradient, summed over broadcast axes."""

    functions = ADD + SUBTRACT + MULTIPLY + EXPAND

    def read(self, function: Function, args: tuple, kwargs: dict) -> ParsedCall | None:
        """Read one operation with exactly one operand that requires gradients on account of parameters."""
        if function in EXPAND:
            return _expansion(function, args[0], [*args[1:], *kwargs.values()])
        if kwargs or len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return None
        candidates = [i for i, a in enumerate(args) if a.requires_grad]
        if not candidates:
            return None
        # Where both require gradients, the parameter is the leaf, or the one with fewer axes.
        index = min(candidates, key=lambda i: (not args[i].is_leaf, args[i].ndim))
        weight, other = args[index], args[1 - index]
        sign = -1.0 if function in SUBTRACT and index == 1 else 1.0
        inputs = {"input": other} if function in MULTIPLY else {}

        def run(w: dict[str, Tensor | None]) -> Tensor:
            value = required(w["weight"])
            return function(value, other) if index == 0 else function(other, value)

        return ParsedCall({"weight": weight}, inputs, run, {"shape": weight.shape, "sign": sign})

    def is_direct(self, use: ParameterUse) -> bool:
        """The parameter is the same for all rows: it has no axis where the rows lie, or one of length 1."""
        axis = use.batch_axis.axis - (len(use.output_shape) - len(use.settings["shape"]))
        return axis < 0 or use.settings["shape"][axis] == 1

    def direct_tangents(self, use: ParameterUse, stacked: Tensor, n: int) -> dict[str, Tensor]:
        """Reduce (n, k, output axes...) to (n, k, *shape of the parameter)."""
        rank, shape = len(use.output_shape), use.settings["shape"]
        if "input" in use.inputs:
            other = use.activation()
            other = other.expand(use.output_shape) if other.ndim else other
            stacked = stacked * (use.batch_axis.rows(other, n)[:, None] if other.ndim else other)
        if use.settings.get("sign", 1.0) < 0:
            stacked = -stacked
        # The rows view moved the row axis to the front; where it held m rows an example, an axis m follows it.
        many = use.batch_axis.multiplicity > 1
        axes = [axis for axis in range(rank) if axis != use.batch_axis.axis]
        own = {axis: axis - (rank - len(shape)) for axis in axes}  # output axis -> axis of the parameter
        drop = [2] if many else []
        drop += [
            2 + many + position
            for position, axis in enumerate(axes)
            if own[axis] < 0 or (shape[own[axis]] == 1 and use.output_shape[axis] != 1)
        ]
        reduced = stacked.sum(drop) if drop else stacked
        return {"weight": reduced.reshape(n, stacked.shape[1], *shape)}


class PReLURule(Decomposition):
    """torch.prelu, written out with a product that the elementwise rule meets (its vmap rule in torch is wrong)."""

    functions = (torch.prelu,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> Tensor:
        """X where x > 0, else x times the slope of its channel."""
        x, slope = (*args, *kwargs.values())[:2]
        if slope.numel() > 1 and x.ndim > 2:
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        return torch.where(x > 0, x, x * slope)


def _expansion(function: Function, weight: Tensor, sizes: Sequence[int]) -> ParsedCall | None:
    """Read p.expand(sizes), or p.repeat(counts) where every repeated axis has length 1."""
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
