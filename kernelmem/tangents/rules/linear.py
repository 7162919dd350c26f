"""Linear maps: F.linear and matrix products with a weight, on (n, d), (n, S, d) or more leading axes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Function, IsWeight, OuterShape, ParameterUse, ParsedCall, Rule, required


class LinearRule(Rule):
    """Linear maps: the tangent of the weight is Σ_s g_s ⊗ a_s over the positions s of an example, that of the bias Σ_s g_s.

    g_s is the output gradient and a_s the input at position s.
    """

    functions = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)

    def read(self, function: Function, args: tuple, kwargs: dict, is_weight: IsWeight) -> ParsedCall | None:
        """Parse F.linear(input, weight, bias), or input @ weight with a matrix as weight; return None for other calls."""
        if function is F.linear:
            arguments = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            x = arguments["input"]
            weights = {"weight": arguments["weight"], "bias": arguments.get("bias")}
            return ParsedCall(
                weights,
                {"input": x},
                lambda w: F.linear(x, required(w["weight"]), w["bias"]),
                run_blocks=lambda w: _multiply_blocks(x, required(w["weight"]).mT, w["bias"]),
            )
        x, weight = (*args, *kwargs.values())[:2]
        if weight.ndim != 2 or x.ndim < 2 or not weight.requires_grad:
            return None
        return ParsedCall(
            {"weight": weight},
            {"input": x},
            lambda w: torch.matmul(x, required(w["weight"])),
            settings={"transposed": True},
            run_blocks=lambda w: _multiply_blocks(x, required(w["weight"]), None),
        )

    def outer_shape(self, use: ParameterUse, n: int) -> OuterShape | None:
        """Return the sizes of the outer products, with all leading axes except the batch axis as positions."""
        shape = use.rows_shape(n)
        if use.batch_axis.axis == len(use.output_shape) - 1:
            return None  # batch axis on the features: no outer product per row
        return OuterShape(shape[1:-1].numel(), use.inputs["input"].shape[-1], shape[-1])

    def direction_axis(self, use: ParameterUse) -> int:
        """Return the position of the axis of output directions, which is just before the features."""
        return -2

    def to_weight_shape(self, use: ParameterUse, tangent: Tensor) -> Tensor:
        """Reshape a tangent to (n examples, k directions, *weight shape), transposed for a weight on the right."""
        return tangent.mT if use.settings.get("transposed") else tangent

    def activations(self, use: ParameterUse, n: int, *, ones: bool) -> Tensor:
        """Return the inputs as (n examples, 1, S positions, fan_in), with a column of ones at the end if ``ones``."""
        x = use.batch_axis.rows(use.activation(), n)
        x = x.reshape(n, 1, -1, x.shape[-1])
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1) if ones else x

    def output_gradients(self, use: ParameterUse, gradient: Tensor) -> Tensor:
        """Return the gradient (n, ..., k, out) as (n examples, 1, S positions, k directions, out)."""
        return gradient.reshape(len(gradient), 1, -1, *gradient.shape[-2:])


def _multiply_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply S blocks of rows of x (S·b, ..., in) by S weights (S, in, out), and add S biases."""
    blocks = x.reshape(len(weight), -1, x.shape[-1])
    outputs = torch.bmm(blocks, weight) if bias is None else torch.baddbmm(bias[:, None], blocks, weight)
    return outputs.view(*x.shape[:-1], -1)
