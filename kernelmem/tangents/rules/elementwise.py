"""Parameters that are added, multiplied or expanded: position embeddings, gains, class tokens, biases; PReLU."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function, IsWeight, ParameterUse, ParsedCall, Rule, required
from kernelmem.tangents.rules.layout import Layout, is_original, parameter_view

ADD = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
SUBTRACT = (torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, Tensor.__sub__)
MULTIPLY = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
EXPAND = (Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to)
REPEAT = (Tensor.repeat, torch.tile, Tensor.tile)
# Functions whose tensors are all broadcast to one shape: the parameter is expanded first, and autograd does the rest.
# fmt: off
BROADCAST = (
    torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__,
    Tensor.__rtruediv__, torch.rsub, Tensor.__rsub__, torch.pow, Tensor.pow, Tensor.__pow__, Tensor.__rpow__,
    torch.float_power, Tensor.float_power, torch.where, Tensor.where, torch.lerp, Tensor.lerp, torch.addcmul,
    Tensor.addcmul, torch.addcdiv, Tensor.addcdiv, torch.maximum, Tensor.maximum, torch.minimum, Tensor.minimum,
    torch.max, Tensor.max, torch.min, Tensor.min, torch.fmax, Tensor.fmax, torch.fmin, Tensor.fmin, torch.clamp,
    Tensor.clamp, torch.clip, Tensor.clip, torch.atan2, Tensor.atan2, torch.hypot, Tensor.hypot, torch.copysign,
    Tensor.copysign, torch.logaddexp, Tensor.logaddexp, torch.logaddexp2, Tensor.logaddexp2, torch.xlogy, Tensor.xlogy,
    torch.remainder, Tensor.remainder, Tensor.__mod__, torch.fmod, Tensor.fmod, F.cosine_similarity,
    F.pairwise_distance,
)
IN_PLACE = (
    Tensor.add_, Tensor.__iadd__, Tensor.sub_, Tensor.subtract_, Tensor.__isub__, Tensor.mul_, Tensor.multiply_,
    Tensor.__imul__, Tensor.div_, Tensor.divide_, Tensor.true_divide_, Tensor.__itruediv__, Tensor.pow_,
    Tensor.__ipow__, Tensor.lerp_, Tensor.addcmul_, Tensor.addcdiv_, Tensor.clamp_, Tensor.clip_,
)
DISTANCES = (torch.cdist,)
MASKED_FILL = (torch.masked_fill, Tensor.masked_fill)
# fmt: on


class ElementwiseRule(Rule):
    """x + p, x − p, p − x, x · p, p.expand(n, ...): the tangent is the output gradient summed over broadcast axes.

    In other functions of broadcast arguments the parameter is expanded first.
    """

    functions = ADD + SUBTRACT + MULTIPLY + EXPAND + REPEAT + BROADCAST + IN_PLACE + MASKED_FILL + DISTANCES

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse an elementwise operation; return None unless one operand is a parameter or computed from parameters."""
        if "out" in kwargs:
            return None
        if function in (*EXPAND, *REPEAT):
            if not is_weight(args[0]):
                return None
            return _parse_expansion(args[0], _expanded_shape(function, args[0], [*args[1:], *kwargs.values()]))
        if function in DISTANCES:
            return _parse_distances(*args, **kwargs, is_weight=is_weight)
        if function in (*BROADCAST, *IN_PLACE, *MASKED_FILL):
            return _parse_broadcast(function, args, kwargs, is_weight)
        if kwargs.keys() - {"alpha"} or len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return None
        positions = [i for i, operand in enumerate(args) if is_weight(operand)]
        if len(positions) != 1:
            return None
        weight_position, other = positions[0], args[1 - positions[0]]
        parameter, layout = _source(args[weight_position])
        scale = float(kwargs.get("alpha", 1.0)) if weight_position == 1 else 1.0
        if function in SUBTRACT and weight_position == 1:
            scale = -scale

        def run(w: dict[str, Tensor | None]) -> Tensor:
            value = _viewed(w, layout)
            return function(value, other, **kwargs) if weight_position == 0 else function(other, value, **kwargs)

        inputs = {"input": other} if function in MULTIPLY else {}
        shape = args[weight_position].shape
        return ParsedCall({"weight": parameter}, inputs, run, {"shape": shape, "scale": scale, "layout": layout})

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
        if use.settings["scale"] != 1.0:
            gradient = gradient * use.settings["scale"]
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
        tangent = reduced.reshape(n, gradient.shape[1], *shape)
        layout = use.settings["layout"]
        return {"weight": tangent if layout is None else layout.restore(tangent)}


class PReLURule(Decomposition):
    """torch.prelu as a product that the elementwise rule covers (its vmap rule in torch is wrong)."""

    functions = (torch.prelu,)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> Tensor:
        """Return x where x > 0, and x times the slope of its channel elsewhere."""
        x, slope = (*args, *kwargs.values())[:2]
        if slope.numel() > 1 and x.ndim > 2:
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        return torch.where(x > 0, x, x * slope)


def _source(weight: Tensor) -> tuple[Tensor, Layout | None]:
    """Return the parameter that a weight is a view of, with the layout of the view; None if they are the same."""
    return (weight, None) if is_original(weight) else parameter_view(weight)


def _viewed(w: dict[str, Tensor | None], layout: Layout | None) -> Tensor:
    """Return the weight of a call from its slots, as the view of the parameter that the call received."""
    weight = required(w["weight"])
    return weight if layout is None else layout.view(weight)


def _parse_expansion(
    weight: Tensor, shape: torch.Size | None, then: Callable[[Tensor], Tensor] | None = None
) -> ParsedCall | None:
    """Parse the expansion of a weight to ``shape``, with the rest of the call; return None without a shape."""
    if shape is None:
        return None
    parameter, layout = _source(weight)
    settings = {"shape": weight.shape, "scale": 1.0, "layout": layout}
    return ParsedCall(
        {"weight": parameter}, {}, lambda w: _viewed(w, layout).expand(shape).clone(), settings, then=then
    )


def _expanded_shape(function: Function, weight: Tensor, sizes: Sequence) -> torch.Size | None:
    """Return the shape to which p.expand(sizes), p.repeat(counts) and the like expand a tensor.

    None is returned if an axis longer than 1 is repeated: then p.repeat is not an expansion.
    """
    if function is Tensor.expand_as:
        return sizes[0].shape
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    if function in REPEAT:
        sizes = (1,) * (weight.ndim - len(sizes)) + sizes  # torch.tile fills up the counts
        own_shape = (1,) * (len(sizes) - weight.ndim) + tuple(weight.shape)
        if any(count != 1 and size != 1 for count, size in zip(sizes, own_shape, strict=True)):
            return None
        return torch.Size(count * size for count, size in zip(sizes, own_shape, strict=True))
    return weight.detach().expand(sizes).shape


def _parse_distances(
    x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None, *, is_weight: IsWeight
) -> ParsedCall | None:
    """Parse torch.cdist of rows and centers, where the matrix of centers is a weight: it is expanded to all rows."""
    is_first = is_weight(x1)
    centers, x = (x1, x2) if is_first else (x2, x1)
    if is_first == is_weight(x2) or centers.ndim != 2 or x.ndim not in (2, 3):
        return None
    rows = x[:, None] if x.ndim == 2 else x  # (n, positions, d)
    mode = "use_mm_for_euclid_dist_if_necessary" if compute_mode is None else compute_mode

    def call(expanded: Tensor) -> Tensor:
        distances = torch.cdist(expanded, rows, p, mode) if is_first else torch.cdist(rows, expanded, p, mode)
        if x.ndim == 3:
            return distances
        return distances[..., 0].T if is_first else distances[:, 0]

    return _parse_expansion(centers, torch.Size((len(x), *centers.shape)), call)


def _parse_broadcast(function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
    """Parse a function of broadcast tensors: one weight is expanded, and the function is called with the result."""
    arguments = dict(enumerate(args)) | kwargs
    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
    keys = [key for key, value in tensors.items() if is_weight(value)]
    if not keys or len(keys) == len(tensors) or (keys[0] == 0 and function in IN_PLACE):
        return None
    key, shape = keys[0], torch.broadcast_shapes(*(value.shape for value in tensors.values()))

    def call(expanded: Tensor) -> Tensor:
        values = arguments | {key: expanded}
        if function in MASKED_FILL:  # torch takes a value without axes only
            x, mask, value = (values.get(i, values.get(name)) for i, name in enumerate(("input", "mask", "value")))
            return torch.where(required(mask), required(value), required(x))
        return function(*(values[i] for i in range(len(args))), **{name: values[name] for name in kwargs})

    return _parse_expansion(tensors[key], shape, call)
