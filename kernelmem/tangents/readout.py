"""A linear readout at the end of a network, found on the graph, and what it makes cheaper.

With f = W h + b and hidden features h (n, H):

- head compression: the trace kernel depends on WᵀW alone, so rank(W) <= min(C, H) backward sweeps from h are enough;
- factoring: where ∂h_k/∂z is zero but for channel k of a layer's output z (activations, pooling and eval-mode
  normalization lie between), the output gradient is W_ck D_nk, so the layer's tangents are a class-free tensor times a
  class weight: C times fewer operations for the trace, up to C² for the full kernel.

Both hold for the outputs only if h reaches them through the readout alone: the outputs must *be* the readout's. That
and the channels are read off the autograd graph, and then tested on the probe rows with a random direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kernelmem.tangents.capture import Capture, Use
from kernelmem.tangents.rules.linear import LinearRule

__all__ = ["Readout", "find_readout", "hidden_gradients"]

# Operations whose Jacobian keeps channels apart (those that move or mix them fail the numerical test).
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
    """The readout's use, and the uses below it whose output gradients factor."""

    key: int
    weight: Tensor = field(compare=False)  # W (C, H)
    factored: frozenset[int]

    @cached_property
    def compressed(self) -> Tensor:
        """R (r, H) with RᵀR = WᵀW and r = min(C, H); W itself where that has no more rows."""
        C, H = self.weight.shape
        if C <= H:
            return self.weight
        values, vectors = torch.linalg.eigh(self.weight.double().T @ self.weight.double())
        return (values.clamp_min(0).sqrt()[:, None] * vectors.T).to(self.weight)

    @cached_property
    def scale(self) -> Tensor:
        """√(Σ_c W_ck²), (H,): the class weight of channel k in the trace."""
        return self.weight.double().square().sum(0).sqrt().to(self.weight)


def find_readout(probe: Capture) -> Readout | None:
    """Look for a linear layer whose output is the model's output, and test what factors below it."""
    final = probe.outputs.grad_fn
    for use in probe.uses:
        if use.edge.node is not final or use.edge.output_nr != probe.outputs.output_nr:
            continue
        if not isinstance(use.rule, LinearRule) or use.inputs["input"].ndim != 2:
            return None
        weight = use.weights["weight"]
        assert weight is not None
        weight = weight.T if use.settings.get("transposed") else weight
        below = frozenset() if use.input_edge is None else _factored(probe, use, weight)
        return Readout(use.key, weight, below)
    return None


def hidden_gradients(use: Use, cotangents: Tensor, edges: Sequence[Any]) -> list[tuple[Tensor | None, ...]]:
    """Gradients at ``edges`` of the readout's input along each of the cotangents (k, n, H): k sweeps."""
    assert use.input_edge is not None
    return [
        torch.autograd.grad(use.input_edge, edges, cotangent, retain_graph=True, allow_unused=True)
        for cotangent in cotangents
    ]


def _factored(probe: Capture, readout: Use, weight: Tensor) -> frozenset[int]:
    """Uses whose output gradient is W_ck D_nk: by the graph, then by a random direction on the probe rows."""
    H, n = weight.shape[1], probe.n
    candidates = []
    for use in probe.uses:
        outer = use.rule.outer(use, n)
        if use is readout or use.derived or outer is None or outer.groups != 1 or outer.fan_out != H:
            continue
        if use.layout.multiplicity == 1 and _channelwise_path(readout.input_edge, use.edge.node):
            candidates.append(use)
    if not candidates:
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(weight), generator=generator, dtype=torch.float64).to(weight)
    edges = [use.edge for use in candidates]
    ones = torch.ones(1, n, H, dtype=weight.dtype, device=weight.device)
    (classfree,) = hidden_gradients(readout, ones, edges)
    (expected,) = hidden_gradients(readout, (v @ weight).expand(1, n, H), edges)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 1e-10
    found = set()
    for use, D, g in zip(candidates, classfree, expected, strict=True):
        if D is None or g is None:
            continue
        predicted = _by_channel(use, D, v @ weight)
        if float((predicted - g).norm()) <= tolerance * float(g.norm() + 1e-30):
            found.add(use.key)
    return frozenset(found)


def scaled(use: Use, gradient: Tensor, scale: Tensor) -> Tensor:
    """D ∘ scale along the channels of a use's output."""
    return _by_channel(use, gradient, scale)


def _by_channel(use: Use, gradient: Tensor, values: Tensor) -> Tensor:
    if isinstance(use.rule, LinearRule):
        return gradient * values
    return gradient * values.reshape(-1, *(1,) * (gradient.ndim - 2))


def _channelwise_path(start: Any, end: Any) -> bool:
    """Whether every operation on any path from ``end`` up to ``start`` is one that keeps channels apart."""
    leads: dict[Any, bool] = {end: True}
    order, stack = [], [start.node]
    seen = set()
    while stack:  # depth first; a node's verdict follows those of its parents
        node = stack[-1]
        if node in seen or node in leads:
            stack.pop()
            if node not in leads:
                leads[node] = any(leads.get(parent, False) for parent, _ in node.next_functions if parent is not None)
                order.append(node)
            continue
        seen.add(node)
        stack.extend(p for p, _ in node.next_functions if p is not None and p not in seen and p not in leads)
    if not leads.get(start.node, False):
        return False
    return all(node.name().startswith(CHANNELWISE) for node in order if leads[node])
