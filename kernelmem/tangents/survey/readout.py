"""Linear readout of a model: its last layer, and the uses below it whose output gradients factor."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from kernelmem.tangents.capture import Capture, ParameterUse, UseKey, backward_pass
from kernelmem.tangents.rules.convolution import ConvolutionRule
from kernelmem.tangents.rules.linear import LinearRule

# Autograd nodes that may act on each channel separately (the numerical test rejects those that move or mix channels).
# fmt: off
CHANNELWISE = (
    "Abs", "AdaptiveAvgPool", "AdaptiveMaxPool", "Add", "Alias", "Amax", "AsStrided", "AvgPool", "Celu", "Clamp",
    "Clone", "CudnnBatchNorm", "Div", "Dropout", "Elu", "Exp", "Expand", "Gelu", "Hardsigmoid", "Hardswish",
    "Hardtanh", "LeakyRelu", "LogSigmoid", "MaxPool", "Mean", "Mish", "MkldnnAdaptiveAvgPool", "Mul",
    "NativeBatchNorm", "Neg", "Permute", "Pow", "PreluKernel", "Relu", "ReshapeAlias", "Select", "Sigmoid", "Silu",
    "Slice", "Softplus", "Sqrt", "Square", "Squeeze", "Sub", "Sum", "Tanh", "Threshold", "Transpose", "UnsafeView",
    "Unsqueeze", "View", "Where",
)
# fmt: on


@dataclass(frozen=True)
class Readout:
    """Last linear layer of a model, if its output is the output of the model.

    Attributes:
        key: key of its :class:`ParameterUse`.
        weight: its weight W (C, H).
        factored: keys of the uses below it whose output gradients factor as W_ck D_nk.
    """

    key: UseKey
    weight: Tensor = field(compare=False)
    factored: frozenset[UseKey]

    @cached_property
    def compressed(self) -> Tensor:
        """Matrix R (r, H) with RᵀR = WᵀW and r = min(C, H), which is W itself if C <= H."""
        C, H = self.weight.shape
        if C <= H:
            return self.weight
        values, vectors = torch.linalg.eigh(self.weight.double().T @ self.weight.double())
        return (values.clamp_min(0).sqrt()[:, None] * vectors.T).to(self.weight)

    @cached_property
    def expansion(self) -> Tensor:
        """Matrix U (C, r) with orthonormal or zero columns and W = U R, for R = :attr:`compressed`."""
        C, H = self.weight.shape
        if C <= H:
            return torch.eye(C, dtype=self.weight.dtype, device=self.weight.device)
        R = self.compressed.double()
        squares = R.square().sum(1)
        significant = squares > torch.finfo(self.weight.dtype).eps * squares.max()
        inverse = torch.where(significant, 1 / squares.clamp_min(torch.finfo(R.dtype).tiny), 0)
        return (self.weight.double() @ R.T * inverse).to(self.weight)

    @cached_property
    def scale(self) -> Tensor:
        """Weight √(Σ_c W_ck²) of each hidden feature k in the trace kernel over outputs c, shape (H,)."""
        return self.weight.double().square().sum(0).sqrt().to(self.weight)


def find_readout(probe: Capture, located: Collection[str]) -> Readout | None:
    """Find a linear layer whose output is the model's output; return None if there is none.

    Uses of the parameters ``located`` are not considered. The result also names the uses below it whose output gradient is
    a product W_ck D_nk (output c, channel k, example n).
    """
    output_node = probe.outputs.grad_fn
    for use in probe.uses:
        if use.edge.node is not output_node or use.edge.output_nr != probe.outputs.output_nr:
            continue
        if (
            not isinstance(use.rule, LinearRule)
            or use.inputs["input"].ndim != 2
            or not use.parameters.isdisjoint(located)
        ):
            return None
        weight = use.rule.matrix(use)
        factored = frozenset() if use.input_edge is None else _factored_uses(probe, use, weight, located)
        return Readout(use.key, weight, factored)
    return None


def hidden_gradients(
    use: ParameterUse, cotangents: Tensor, edges: Sequence[GradientEdge]
) -> list[tuple[Tensor | None, ...]]:
    """Compute the gradients at ``edges`` of the input of the last layer ``use``, along ``cotangents`` (k, n examples, H).

    Returns one tuple for each of the k backward passes, with a gradient per edge (None if it is not on the graph).
    """
    assert use.input_edge is not None
    return [backward_pass(use.input_edge, edges, cotangent) for cotangent in cotangents]


def _factored_uses(
    probe: Capture, readout: ParameterUse, weight: Tensor, located: Collection[str]
) -> frozenset[UseKey]:
    """Return the keys of the uses whose output gradient is W_ck D_nk for output c, channel k, example n, W = ``weight``.

    Candidates are found on the autograd graph, and then tested along a random combination of outputs.
    """
    H, n = weight.shape[1], probe.n
    candidates = []
    for use in probe.uses:
        outer_shape = use.rule.outer_shape(use, n) if isinstance(use.rule, LinearRule | ConvolutionRule) else None
        if use is readout or use.derived or outer_shape is None or outer_shape.groups != 1 or outer_shape.fan_out != H:
            continue
        if not use.parameters.isdisjoint(located):
            continue
        if use.batch_axis.multiplicity == 1 and _is_channelwise_path(readout.input_edge, use.edge.node):
            candidates.append(use)
    if not candidates:
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    output_weights = torch.randn(len(weight), generator=generator, dtype=torch.float64).to(weight)
    edges = [use.edge for use in candidates]
    ones = torch.ones(1, n, H, dtype=weight.dtype, device=weight.device)
    (channel_gradients,) = hidden_gradients(readout, ones, edges)
    (expected_gradients,) = hidden_gradients(readout, (output_weights @ weight).expand(1, n, H), edges)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 1e-10
    factored_keys = set()
    for use, channel_gradient, expected_gradient in zip(candidates, channel_gradients, expected_gradients, strict=True):
        if channel_gradient is None or expected_gradient is None:
            continue
        predicted = scaled_by_channel(use, channel_gradient, output_weights @ weight)
        if float((predicted - expected_gradient).norm()) <= tolerance * float(expected_gradient.norm() + 1e-30):
            factored_keys.add(use.key)
    return frozenset(factored_keys)


def scaled_by_channel(use: ParameterUse, gradient: Tensor, values: Tensor) -> Tensor:
    """Return ``gradient``, that of the output of a use, multiplied by one value per channel."""
    if isinstance(use.rule, LinearRule):
        return gradient * values
    return gradient * values.reshape(-1, *(1,) * (gradient.ndim - 2))


def _is_channelwise_path(start: GradientEdge | None, end: Node) -> bool:
    """Return True if all operations on the graph between ``start`` (outputs) and ``end`` act on each channel separately."""
    if start is None:
        return False
    reaches_end: dict[Node, bool] = {end: True}  # whether a path leads from the node to ``end``
    decided, stack = [], [start.node]
    expanded = set()
    while stack:  # depth first, so that the inputs of a node are decided before the node
        node = stack[-1]
        if node in expanded or node in reaches_end:
            stack.pop()
            if node not in reaches_end:
                reaches_end[node] = any(
                    reaches_end.get(parent, False) for parent, _ in node.next_functions if parent is not None
                )
                decided.append(node)
            continue
        expanded.add(node)
        stack.extend(p for p, _ in node.next_functions if p is not None and p not in expanded and p not in reaches_end)
    if not reaches_end.get(start.node, False):
        return False
    return all(node.name().startswith(CHANNELWISE) for node in decided if reaches_end[node])
