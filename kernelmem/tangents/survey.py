"""Survey of a model: how each parameter is used, learned from probes of two and three rows, and the linear readout."""

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

__all__ = ["Readout", "Survey", "find_readout", "hidden_gradients", "survey"]

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


def hidden_gradients(
    use: ParameterUse, cotangents: Tensor, edges: Sequence[GradientEdge]
) -> list[tuple[Tensor | None, ...]]:
    """Gradients at ``edges`` of the readout's input along each of the cotangents (k, n, H): k sweeps."""
    assert use.input_edge is not None
    return [
        torch.autograd.grad(use.input_edge, edges, cotangent, retain_graph=True, allow_unused=True)
        for cotangent in cotangents
    ]


def _factored(probe: Capture, readout: ParameterUse, weight: Tensor) -> frozenset[int]:
    """Uses whose output gradient is W_ck D_nk: by the graph, then by a random direction on the probe rows."""
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


def scaled(use: ParameterUse, gradient: Tensor, scale: Tensor) -> Tensor:
    """D ∘ scale along the channels of a use's output."""
    return _by_channel(use, gradient, scale)


def _by_channel(use: ParameterUse, gradient: Tensor, values: Tensor) -> Tensor:
    if isinstance(use.rule, LinearRule):
        return gradient * values
    return gradient * values.reshape(-1, *(1,) * (gradient.ndim - 2))


def _channelwise_path(start: GradientEdge | None, end: Node) -> bool:
    """Whether every operation on any path from ``end`` up to ``start`` is one that keeps channels apart."""
    if start is None:
        return False
    leads: dict[Node, bool] = {end: True}
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


SIZES = (2, 3)


@dataclass(frozen=True)
class Survey:
    """Which uses are met, how rows lie in them, which parameters are left to the dense fallback."""

    groups: tuple[Group, ...]
    dense: tuple[str, ...]
    skip: frozenset[int]
    batch_axes: dict[int, BatchAxis]
    elements: dict[int, tuple[int, int]]  # use -> numbers a row in its input, and in its output where that is stacked
    saved: int  # numbers a row that the graph of a forward pass keeps
    readout: Readout | None


def survey(prepared: PreparedModel, rows: Rows, rules: Sequence[Rule | Decomposition]) -> Survey:
    """Probe the model until every use that is kept is one that can be contracted row by row.

    A call whose output has no single axis that follows the batch size runs as it is (what it computes from parameters
    alone is met again where it enters the data); a parameter that then still hangs on the graph is left to the dense
    fallback, whole. Cost: a few forward passes of two and three rows.
    """
    skip: set[int] = set()
    dense: set[str] = set()
    while True:
        probes, saved = [], []
        for size in SIZES:
            counted = _Counter()
            with torch.autograd.graph.saved_tensors_hooks(counted.pack, lambda tensor: tensor):
                batch = rows.take([i % rows.n for i in range(size)])
                probes.append(capture(prepared, batch, size, rules, skip=frozenset(skip), dense=dense))
            saved.append(counted.elements)
        batch_axes, lost = _batch_axes(probes)
        if lost:  # what such a call computes may enter a later one: only then is it known what is left over
            skip |= lost
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
            sum(t.numel() for t in use.inputs.values()) // SIZES[1],
            use.output_shape.numel() // SIZES[1] if use.rule.outer_shape(use, SIZES[1]) is not None else 0,
        )
        for use in last.uses
    }
    groups = _groups(prepared, last)
    names = tuple(name for name in prepared.parameters if name in dense)
    growth = max(saved[1] - saved[0], 0)
    return Survey(groups, names, frozenset(skip), batch_axes, elements, growth, find_readout(last))


class _Counter:
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
    """Where rows lie in each use's output; and the uses where that cannot be told, or no rule fits."""
    small, large = ({use.key: use for use in probe.uses} for probe in probes)
    batch_axes, lost = {}, set(small) ^ set(large)
    for key in set(small) & set(large):
        batch_axis = find_batch_axis([small[key].output_shape, large[key].output_shape], SIZES)
        if batch_axis is not None and batch_axis.multiplicity > 1:
            batch_axis = resolve_interleaving(batch_axis, _first_row_gradient(probes[1], large[key]), SIZES[1])
        large[key].batch_axis = batch_axis or large[key].batch_axis
        if batch_axis is None or not _fits(large[key], SIZES[1]):
            lost.add(key)
        else:
            batch_axes[key] = batch_axis
    return batch_axes, lost


def _fits(use: ParameterUse, n: int) -> bool:
    """Whether the rule has a form for this batch axis."""
    return use.rule.outer_shape(use, n) is not None or use.rule.is_direct(use)


def _first_row_gradient(probe: Capture, use: ParameterUse) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    weights = torch.randn(probe.outputs.shape[1], generator=generator, dtype=torch.float64)
    cotangent = torch.zeros_like(probe.outputs)
    cotangent[0] = weights.to(cotangent)
    if not probe.outputs.requires_grad:
        return probe.outputs.new_zeros(use.output_shape)
    found = torch.autograd.grad(probe.outputs, [use.edge], cotangent, retain_graph=True, allow_unused=True)[0]
    return probe.outputs.new_zeros(use.output_shape) if found is None else found


def _closure(dense: set[str], uses: Sequence[ParameterUse]) -> set[str]:
    """Parameters that stand behind a computed weight together with a dense one are dense too."""
    found = set(dense)
    for use in uses:
        for names in use.sources.values():
            if found & set(names):
                found |= set(names)
    return found


def _groups(prepared: PreparedModel, probe: Capture) -> tuple[Group, ...]:
    """Join uses that share parameters, and choose the form of each set."""
    owner: dict[str, int] = {}
    sets: list[tuple[list[ParameterUse], set[str]]] = []
    for use in probe.uses:
        names = set(use.names.values()).union(*use.sources.values())
        joined = sorted({owner[name] for name in names if name in owner})
        if joined:
            target = joined[0]
            for other in joined[1:]:
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
    found = [_group(prepared, uses, sorted(names, key=order.__getitem__), probe.n) for uses, names in sets if uses]
    return tuple(sorted(found, key=lambda group: order[group.names[0]]))


def _group(prepared: PreparedModel, uses: list[ParameterUse], names: list[str], n: int) -> Group:
    uses = sorted(uses, key=lambda use: use.key)
    keys = tuple(use.key for use in uses)
    layer = names[0].rpartition(".")[0] or names[0]
    outers = [use.rule.outer_shape(use, n) for use in uses]
    if _one_outer(uses, outers):
        first = outers[0]
        assert first is not None
        positions = sum(outer.positions for outer in outers if outer is not None)
        sizes = OuterShape(positions, first.fan_in, first.fan_out, first.groups)
        weight, ones = "weight" in uses[0].names, "bias" in uses[0].names
        kind = VectorGroup if positions == 1 and first.groups == 1 and len(uses) == 1 else OuterGroup
        return kind(tuple(names), keys, layer, sizes, weight, ones)
    shapes = tuple(prepared.parameters[name].shape for name in names)
    return MixedGroup(tuple(names), keys, layer, shapes)


def _one_outer(uses: list[ParameterUse], outers: list[OuterShape | None]) -> bool:
    """Whether all uses are outer products of the same weight and bias, so that their positions can be joined."""
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
