"""Survey of a model: how each parameter is used, from probes of two and three rows, and the linear readout."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from kernelmem.core.batches import Rows
from kernelmem.tangents.batch_axis import BatchAxis, find_batch_axis, resolve_interleaving
from kernelmem.tangents.capture import Capture, Decomposition, OuterShape, ParameterUse, Rule, capture
from kernelmem.tangents.groups.base import Group
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.outer import OuterGroup, VectorGroup
from kernelmem.tangents.prepare import PreparedModel
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
    """Linear readout: its use, its weight, and the uses below it whose output gradients factor as W_ck D_nk."""

    key: int
    weight: Tensor = field(compare=False)  # W (C, H)
    factored: frozenset[int]

    @cached_property
    def compressed(self) -> Tensor:
        """R (r, H) with RᵀR = WᵀW and r = min(C, H); W itself if C <= H."""
        C, H = self.weight.shape
        if C <= H:
            return self.weight
        values, vectors = torch.linalg.eigh(self.weight.double().T @ self.weight.double())
        return (values.clamp_min(0).sqrt()[:, None] * vectors.T).to(self.weight)

    @cached_property
    def scale(self) -> Tensor:
        """√(Σ_c W_ck²), (H,): the weight of channel k in the trace."""
        return self.weight.double().square().sum(0).sqrt().to(self.weight)


def find_readout(probe: Capture) -> Readout | None:
    """Find a linear layer whose output is the model's output, and the uses below it that factor."""
    final = probe.outputs.grad_fn
    for use in probe.uses:
        if use.edge.node is not final or use.edge.output_nr != probe.outputs.output_nr:
            continue
        if not isinstance(use.rule, LinearRule) or use.inputs["input"].ndim != 2:
            return None
        weight = use.weights["weight"]
        assert weight is not None
        weight = weight.T if use.settings.get("transposed") else weight
        factored = frozenset() if use.input_edge is None else _factored(probe, use, weight)
        return Readout(use.key, weight, factored)
    return None


def hidden_gradients(
    use: ParameterUse, cotangents: Tensor, edges: Sequence[GradientEdge]
) -> list[tuple[Tensor | None, ...]]:
    """Gradients at ``edges`` of the readout's input along each of the cotangents (k, n, H), by k sweeps."""
    assert use.input_edge is not None
    return [
        torch.autograd.grad(use.input_edge, edges, cotangent, retain_graph=True, allow_unused=True)
        for cotangent in cotangents
    ]


def _factored(probe: Capture, readout: ParameterUse, weight: Tensor) -> frozenset[int]:
    """Uses whose output gradient is W_ck D_nk: candidates from the graph, then a test along a random direction."""
    H, n = weight.shape[1], probe.n
    candidates = []
    for use in probe.uses:
        outer = use.rule.outer_shape(use, n)
        if use is readout or use.derived or outer is None or outer.groups != 1 or outer.fan_out != H:
            continue
        if use.batch_axis.multiplicity == 1 and _channelwise_path(readout.input_edge, use.edge.node):
            candidates.append(use)
    if not candidates:
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(weight), generator=generator, dtype=torch.float64).to(weight)
    edges = [use.edge for use in candidates]
    ones = torch.ones(1, n, H, dtype=weight.dtype, device=weight.device)
    (channel_gradients,) = hidden_gradients(readout, ones, edges)
    (expected,) = hidden_gradients(readout, (v @ weight).expand(1, n, H), edges)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 1e-10
    factored = set()
    for use, D, g in zip(candidates, channel_gradients, expected, strict=True):
        if D is None or g is None:
            continue
        predicted = scaled_by_channel(use, D, v @ weight)
        if float((predicted - g).norm()) <= tolerance * float(g.norm() + 1e-30):
            factored.add(use.key)
    return frozenset(factored)


def scaled_by_channel(use: ParameterUse, gradient: Tensor, values: Tensor) -> Tensor:
    """Multiply the gradient of a use's output by one value per channel."""
    if isinstance(use.rule, LinearRule):
        return gradient * values
    return gradient * values.reshape(-1, *(1,) * (gradient.ndim - 2))


def _channelwise_path(start: GradientEdge | None, end: Node) -> bool:
    """Return True if all operations on the graph between ``start`` (outputs) and ``end`` act on each channel separately."""
    if start is None:
        return False
    reaches: dict[Node, bool] = {end: True}  # whether a path leads from the node to ``end``
    visited, stack = [], [start.node]
    seen = set()
    while stack:  # depth first, so that the inputs of a node are decided before the node
        node = stack[-1]
        if node in seen or node in reaches:
            stack.pop()
            if node not in reaches:
                reaches[node] = any(
                    reaches.get(parent, False) for parent, _ in node.next_functions if parent is not None
                )
                visited.append(node)
            continue
        seen.add(node)
        stack.extend(p for p, _ in node.next_functions if p is not None and p not in seen and p not in reaches)
    if not reaches.get(start.node, False):
        return False
    return all(node.name().startswith(CHANNELWISE) for node in visited if reaches[node])


PROBE_SIZES = (2, 3)  # rows


@dataclass(frozen=True)
class Survey:
    """What the probes found: groups of uses, batch axes, and the parameters left to the dense fallback."""

    groups: tuple[Group, ...]
    dense: tuple[str, ...]
    skip: frozenset[int]  # calls that are not intercepted
    batch_axes: dict[int, BatchAxis]
    elements: dict[
        int, tuple[int, int]
    ]  # use -> numbers per row in its input, and in its output if output gradients are kept
    saved: int  # numbers per row that the graph of a forward pass keeps
    readout: Readout | None


def survey(prepared: PreparedModel, rows: Rows, rules: Sequence[Rule | Decomposition]) -> Survey:
    """Probe the model until every recorded use can be contracted row by row.

    A call whose output has no single axis proportional to the batch size is not intercepted (what it computes from
    parameters alone is recorded again where it meets the data); a parameter that is still on the graph is left to the
    dense fallback. Cost: a few forward passes of two and three rows.
    """
    skip: set[int] = set()
    dense: set[str] = set()
    while True:
        probes, saved = [], []
        for size in PROBE_SIZES:
            counter = _SavedTensorCounter()
            with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
                batch = rows.take([i % rows.n for i in range(size)])
                probes.append(capture(prepared, batch, size, rules, skip=frozenset(skip), dense=dense))
            saved.append(counter.elements)
        batch_axes, unsupported = _batch_axes(probes)
        if unsupported:  # probe again: what such a call computes may enter a later one
            skip |= unsupported
            continue
        uncovered = set().union(*(probe.uncovered for probe in probes)) - dense
        if uncovered:
            dense |= uncovered
            continue
        shared = _closure(dense, probes[1].uses)
        if shared - dense:
            dense |= shared
            continue
        break
    last = probes[1]
    for use in last.uses:
        use.batch_axis = batch_axes[use.key]
    elements = {
        use.key: (
            sum(t.numel() for t in use.inputs.values()) // PROBE_SIZES[1],
            use.output_shape.numel() // PROBE_SIZES[1] if use.rule.outer_shape(use, PROBE_SIZES[1]) is not None else 0,
        )
        for use in last.uses
    }
    groups = _groups(prepared, last)
    names = tuple(name for name in prepared.parameters if name in dense)
    growth = max(saved[1] - saved[0], 0)
    return Survey(groups, names, frozenset(skip), batch_axes, elements, growth, find_readout(last))


class _SavedTensorCounter:
    """Counts the elements that autograd saves, each storage once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.elements = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.elements += storage.nbytes() // tensor.element_size()
        return tensor


def _batch_axes(probes: list[Capture]) -> tuple[dict[int, BatchAxis], set[int]]:
    """Batch axis of each use's output; and the uses without a unique one, or whose rule does not support it."""
    small, large = ({use.key: use for use in probe.uses} for probe in probes)
    batch_axes, unsupported = {}, set(small) ^ set(large)
    for key in set(small) & set(large):
        batch_axis = find_batch_axis([small[key].output_shape, large[key].output_shape], PROBE_SIZES)
        if batch_axis is not None and batch_axis.multiplicity > 1:
            batch_axis = resolve_interleaving(batch_axis, _first_row_gradient(probes[1], large[key]), PROBE_SIZES[1])
        large[key].batch_axis = batch_axis or large[key].batch_axis
        if batch_axis is None or not _fits(large[key], PROBE_SIZES[1]):
            unsupported.add(key)
        else:
            batch_axes[key] = batch_axis
    return batch_axes, unsupported


def _fits(use: ParameterUse, n: int) -> bool:
    """Return True if the rule supports the batch axis of the use."""
    return use.rule.outer_shape(use, n) is not None or use.rule.is_direct(use)


def _first_row_gradient(probe: Capture, use: ParameterUse) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    weights = torch.randn(probe.outputs.shape[1], generator=generator, dtype=torch.float64)
    cotangent = torch.zeros_like(probe.outputs)
    cotangent[0] = weights.to(cotangent)
    if not probe.outputs.requires_grad:
        return probe.outputs.new_zeros(use.output_shape)
    (gradient,) = torch.autograd.grad(probe.outputs, [use.edge], cotangent, retain_graph=True, allow_unused=True)
    return probe.outputs.new_zeros(use.output_shape) if gradient is None else gradient


def _closure(dense: set[str], uses: Sequence[ParameterUse]) -> set[str]:
    """Add the parameters from which a weight is computed together with a dense parameter."""
    closure = set(dense)
    for use in uses:
        for names in use.sources.values():
            if closure & set(names):
                closure |= set(names)
    return closure


def _groups(prepared: PreparedModel, probe: Capture) -> tuple[Group, ...]:
    """Join uses that share parameters into groups."""
    owner: dict[str, int] = {}
    sets: list[tuple[list[ParameterUse], set[str]]] = []
    for use in probe.uses:
        names = set(use.names.values()).union(*use.sources.values())
        shared = sorted({owner[name] for name in names if name in owner})
        if shared:
            target = shared[0]
            for other in shared[1:]:
                sets[target][0].extend(sets[other][0])
                sets[target][1].update(sets[other][1])
                sets[other] = ([], set())
        else:
            target = len(sets)
            sets.append(([], set()))
        sets[target][0].append(use)
        sets[target][1].update(names)
        for name in sets[target][1]:
            owner[name] = target
    order = {name: i for i, name in enumerate(prepared.parameters)}
    groups = [_group(prepared, uses, sorted(names, key=order.__getitem__), probe.n) for uses, names in sets if uses]
    return tuple(sorted(groups, key=lambda group: order[group.names[0]]))


def _group(prepared: PreparedModel, uses: list[ParameterUse], names: list[str], n: int) -> Group:
    uses = sorted(uses, key=lambda use: use.key)
    keys = tuple(use.key for use in uses)
    layer = names[0].rpartition(".")[0] or names[0]
    outers = [use.rule.outer_shape(use, n) for use in uses]
    if _one_outer(uses, outers):
        first = outers[0]
        assert first is not None
        positions = sum(outer.positions for outer in outers if outer is not None)
        shape = OuterShape(positions, first.fan_in, first.fan_out, first.groups)
        has_weight, has_bias = "weight" in uses[0].names, "bias" in uses[0].names
        kind = VectorGroup if positions == 1 and first.groups == 1 and len(uses) == 1 else OuterGroup
        return kind(tuple(names), keys, layer, shape, has_weight, has_bias)
    shapes = tuple(prepared.parameters[name].shape for name in names)
    return MixedGroup(tuple(names), keys, layer, shapes)


def _one_outer(uses: list[ParameterUse], outers: list[OuterShape | None]) -> bool:
    """Return True if all uses are outer products of the same weight and bias, so that their positions can be joined."""
    first = outers[0]
    if first is None or any(use.derived for use in uses):
        return False
    form: tuple[object, ...] = (uses[0].names, first.fan_in, first.fan_out, first.groups, type(uses[0].rule))
    form += (uses[0].settings.get("transposed"),)
    return all(
        outer is not None
        and form
        == (use.names, outer.fan_in, outer.fan_out, outer.groups, type(use.rule), use.settings.get("transposed"))
        for use, outer in zip(uses, outers, strict=True)
    )
