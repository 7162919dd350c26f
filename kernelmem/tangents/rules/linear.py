"""Linear maps of the last axis: F.linear, and all products of an activation and a weight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, IsWeight, OuterShape, ParameterUse, ParsedCall, Rule, required
from kernelmem.tangents.rules.layout import is_original, parameter_view
from kernelmem.tangents.rules.products import PRODUCTS, Product, parse_product


class LinearRule(Rule):
    """Linear maps: the tangent of the weight is Σ_s g_s ⊗ a_s over the positions s of an example, that of the bias Σ_s g_s.

    g_s is the output gradient and a_s the input at position s. A weight (G, out, in) acts on each of G groups of inputs.
    """

    functions = (F.linear, *PRODUCTS)

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse F.linear(input, weight, bias), or a product of an activation and a weight; return None for other calls."""
        if function is F.linear:
            product = _parse_linear(*args, **kwargs, is_weight=is_weight)
        else:
            product = parse_product(function, args, kwargs, is_weight)
        return None if product is None else _parsed_call(product)

    def outer_shape(self, use: ParameterUse, n: int) -> OuterShape | None:
        """Return the sizes of the outer products, with all leading axes except the batch axis as positions."""
        n_last = 1 + use.settings["grouped"]
        if use.batch_axis.axis >= len(use.output_shape) - n_last:
            return None  # batch axis on the groups or features: no outer product per row
        groups = use.output_shape[-2] if use.settings["grouped"] else 1
        positions = use.rows_shape(n)[1:-n_last].numel()
        return OuterShape(positions, use.inputs["input"].shape[-1], use.output_shape[-1], groups)

    def direction_axis(self, use: ParameterUse) -> int:
        """Return the position of the axis of output directions, which is just before the features."""
        return -2

    def matrix(self, use: ParameterUse) -> Tensor:
        """Return the weight as a matrix (out, in), or as G matrices (G, out, in)."""
        weight, layout = required(use.weights["weight"]), use.settings["layout"]
        return weight if layout is None else layout.view(weight)

    def to_weight_shape(self, use: ParameterUse, tangent: Tensor) -> Tensor:
        """Reshape a tangent (n examples, k directions, G, out, in) to (n, k, *weight shape)."""
        layout = use.settings["layout"]
        return tangent if layout is None else layout.restore(tangent)

    def activations(self, use: ParameterUse, n: int, *, ones: bool) -> Tensor:
        """Return the inputs as (n examples, G groups, S positions, fan_in), with a column of ones if ``ones``."""
        x = use.batch_axis.rows(use.activation(), n)
        n_groups = x.shape[-2] if use.settings["grouped"] else 1
        x = x.reshape(n, -1, n_groups, x.shape[-1]).transpose(1, 2)
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1) if ones else x

    def output_gradients(self, use: ParameterUse, gradient: Tensor) -> Tensor:
        """Return the gradient (n, ..., [G,] k, out) as (n examples, G groups, S positions, k directions, out)."""
        n_groups = gradient.shape[-3] if use.settings["grouped"] else 1
        return gradient.reshape(len(gradient), -1, n_groups, *gradient.shape[-2:]).transpose(1, 2)


def _parse_linear(
    input: Tensor,  # noqa: A002 (the name in torch)
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    is_weight: IsWeight,
) -> Product | None:
    """Parse x Wᵀ + b, or the inner product x · w + b with a vector w."""
    if is_weight(input):
        return None
    if weight.ndim == 1:
        arguments = (input, weight) if bias is None else (bias, input, weight)
        return parse_product(torch.matmul if bias is None else torch.addmv, arguments, {}, is_weight)
    parameter, layout = (weight, None) if is_original(weight) else parameter_view(weight)
    if layout is None or layout.repeats:
        parameter, layout = weight, None
    return Product(input, parameter, layout, bias)


def _parsed_call(product: Product) -> ParsedCall:
    """Return the call that computes a product with other weights, and its settings for the rule."""
    x, layout = product.x, product.layout
    grouped = len(product.weight.shape if layout is None else layout.shape) == 3

    def matrix(w: dict[str, Tensor | None]) -> Tensor:
        weight = required(w["weight"])
        return weight if layout is None else layout.view(weight)

    def run(w: dict[str, Tensor | None]) -> Tensor:
        if not grouped:
            return F.linear(x, matrix(w), w["bias"])
        flat = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # (G, positions, in)
        return torch.bmm(flat, matrix(w).mT).transpose(0, 1).reshape(*x.shape[:-1], -1)

    return ParsedCall(
        {"weight": product.weight, "bias": product.bias},
        {"input": x},
        run,
        settings={"layout": None if layout is None or layout.is_whole else layout, "grouped": grouped},
        run_blocks=None if grouped else lambda w: _multiply_blocks(x, matrix(w).mT, w["bias"]),
        then=product.then,
    )


def _multiply_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply S blocks of rows of x (S·b, ..., in) by S weights (S, in, out), and add S biases."""
    blocks = x.reshape(len(weight), -1, x.shape[-1])
    outputs = torch.bmm(blocks, weight) if bias is None else torch.baddbmm(bias[:, None], blocks, weight)
    return outputs.view(*x.shape[:-1], -1)
