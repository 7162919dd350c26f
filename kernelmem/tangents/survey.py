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
from kernelmem.tangents.groups.table import TableGroup
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules.convolution import ConvolutionRule
from kernelmem.tangents.rules.embedding import EmbeddingRule
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

    key: int
    weight: Tensor = field(compare=False)
    factored: frozenset[int]

    @cached_property
    def compressed(self) -> Tensor:
        """Matrix R (r, H) with RᵀR = WᵀW and r = min(C, H), which is W itself if C <= H."""
        C, H = self.weight.shape
        if C <= H:
            return self.weight
        values, vectors = torch.linalg.eigh(self.weight.double().T @ self.weight.double())
        return (values.clamp_min(0).sqrt()[:, None] * vectors.T).to(self.weight)

    @cached_property
    def scale(self) -> Tensor:
        """Weight √(Σ_c W_ck²) of each hidden feature k in the trace kernel over outputs c, shape (H,)."""
        return self.weight.double().square().sum(0).sqrt().to(self.weight)


def find_readout(probe: Capture) -> Readout | None:
    """Find a linear layer whose output is the model's output; return None if there is none.

    The result also names the uses below it whose output gradient is a product W_ck D_nk (output c, channel k, example n).
    """
    output_node = probe.outputs.grad_fn
    for use in probe.uses:
        if use.edge.node is not output_node or use.edge.output_nr != probe.outputs.output_nr:
            continue
        if not isinstance(use.rule, LinearRule) or use.inputs["input"].ndim != 2:
            return None
        weight = use.rule.matrix(use)
        factored = frozenset() if use.input_edge is None else _factored_uses(probe, use, weight)
        return Readout(use.key, weight, factored)
    return None


def hidden_gradients(
    use: ParameterUse, cotangents: Tensor, edges: Sequence[GradientEdge]
) -> list[tuple[Tensor | None, ...]]:
    """Compute the gradients at ``edges`` of the input of the last layer ``use``, along ``cotangents`` (k, n examples, H).

    Returns one tuple for each of the k backward passes, with a gradient per edge (None if it is not on the graph).
    """
    assert use.input_edge is not None
    return [
        torch.autograd.grad(use.input_edge, edges, cotangent, retain_graph=True, allow_unused=True)
        for cotangent in cotangents
    ]


def _factored_uses(probe: Capture, readout: ParameterUse, weight: Tensor) -> frozenset[int]:
    """Return the keys of the uses whose output gradient is W_ck D_nk for output c, channel k, example n, W = ``weight``.

    Candidates are found on the autograd graph, and then tested along a random combination of outputs.
    """
    H, n = weight.shape[1], probe.n
    candidates = []
    for use in probe.uses:
        outer_shape = use.rule.outer_shape(use, n) if isinstance(use.rule, LinearRule | ConvolutionRule) else None
        if use is readout or use.derived or outer_shape is None or outer_shape.groups != 1 or outer_shape.fan_out != H:
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


PROBE_SIZES = (2, 3)  # numbers of rows of the two probes


@dataclass(frozen=True)
class Survey:
    """Result of probing a model: parameter groups, batch axes, and the parameters for which the Jacobian is formed."""

    groups: tuple[Group, ...]
    dense: tuple[str, ...]
    skip: frozenset[int]  # ordinals of the calls that are not intercepted
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
        probes, saved_numbers = [], []
        for size in PROBE_SIZES:
            counter = _SavedTensorCounter()
            with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
                batch = rows.take([i % rows.n for i in range(size)])
                probes.append(capture(prepared, batch, size, rules, skip=frozenset(skip), dense=dense))
            saved_numbers.append(counter.elements)
        batch_axes, unsupported = _batch_axes(probes)
        if unsupported:  # probe again: what such a call computes may enter a later one
            skip |= unsupported
            continue
        uncovered = set().union(*(probe.uncovered for probe in probes)) - dense
        if uncovered:
            dense |= uncovered
            continue
        dense_with_shared = _with_shared_sources(dense, probes[1].uses)
        if dense_with_shared - dense:
            dense |= dense_with_shared
            continue
        break
    large_probe = probes[1]
    for use in large_probe.uses:
        use.batch_axis = batch_axes[use.key]
    elements = {
        use.key: (
            sum(t.numel() for t in use.inputs.values()) // PROBE_SIZES[1],
            use.output_shape.numel() // PROBE_SIZES[1] if use.rule.outer_shape(use, PROBE_SIZES[1]) is not None else 0,
        )
        for use in large_probe.uses
    }
    groups = _join_into_groups(prepared, large_probe)
    dense_names = tuple(name for name in prepared.parameters if name in dense)
    saved_per_row = max(saved_numbers[1] - saved_numbers[0], 0)
    return Survey(groups, dense_names, frozenset(skip), batch_axes, elements, saved_per_row, find_readout(large_probe))


class _SavedTensorCounter:
    """Counts the elements that autograd saves, each storage once."""

    def __init__(self) -> None:
        self.storage_pointers: set[int] = set()
        self.elements = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves, and return it unchanged."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.storage_pointers:
            self.storage_pointers.add(storage.data_ptr())
            self.elements += storage.nbytes() // tensor.element_size()
        return tensor


def _batch_axes(probes: list[Capture]) -> tuple[dict[int, BatchAxis], set[int]]:
    """Return the batch axis of each use by key, and the keys of uses without a unique axis that their rule supports."""
    small_uses, large_uses = ({use.key: use for use in probe.uses} for probe in probes)
    batch_axes, unsupported = {}, set(small_uses) ^ set(large_uses)
    for key in set(small_uses) & set(large_uses):
        batch_axis = find_batch_axis([small_uses[key].output_shape, large_uses[key].output_shape], PROBE_SIZES)
        if batch_axis is not None and batch_axis.multiplicity > 1:
            batch_axis = resolve_interleaving(
                batch_axis, _first_row_gradient(probes[1], large_uses[key]), PROBE_SIZES[1]
            )
        large_uses[key].batch_axis = batch_axis or large_uses[key].batch_axis
        if batch_axis is None or not _supports_batch_axis(large_uses[key], PROBE_SIZES[1]):
            unsupported.add(key)
        else:
            batch_axes[key] = batch_axis
    return batch_axes, unsupported


def _supports_batch_axis(use: ParameterUse, n: int) -> bool:
    """Return True if the rule of a use can compute tangents of n examples along its batch axis."""
    return use.rule.outer_shape(use, n) is not None or use.rule.is_direct(use)


def _first_row_gradient(probe: Capture, use: ParameterUse) -> Tensor:
    """Compute the gradient of a random combination of the first example's model outputs, at the output of a use."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    output_weights = torch.randn(probe.outputs.shape[1], generator=generator, dtype=torch.float64)
    cotangent = torch.zeros_like(probe.outputs)
    cotangent[0] = output_weights.to(cotangent)
    if not probe.outputs.requires_grad:
        return probe.outputs.new_zeros(use.output_shape)
    (gradient,) = torch.autograd.grad(probe.outputs, [use.edge], cotangent, retain_graph=True, allow_unused=True)
    return probe.outputs.new_zeros(use.output_shape) if gradient is None else gradient


def _with_shared_sources(dense: set[str], uses: Sequence[ParameterUse]) -> set[str]:
    """Return the names ``dense``, and the parameters from which a weight is computed together with one of them."""
    closure = set(dense)
    for use in uses:
        for names in use.sources.values():
            if closure & set(names):
                closure |= set(names)
    return closure


def _join_into_groups(prepared: PreparedModel, probe: Capture) -> tuple[Group, ...]:
    """Return the parameter groups: uses that share a parameter, directly or through other uses, are in one group."""
    group_of_name: dict[str, int] = {}
    members: list[tuple[list[ParameterUse], set[str]]] = []
    for use in probe.uses:
        names = set(use.names.values()).union(*use.sources.values())
        shared_groups = sorted({group_of_name[name] for name in names if name in group_of_name})
        if shared_groups:
            target = shared_groups[0]
            for merged in shared_groups[1:]:
                members[target][0].extend(members[merged][0])
                members[target][1].update(members[merged][1])
                members[merged] = ([], set())
        else:
            target = len(members)
            members.append(([], set()))
        members[target][0].append(use)
        members[target][1].update(names)
        for name in members[target][1]:
            group_of_name[name] = target
    order = {name: i for i, name in enumerate(prepared.parameters)}
    groups = [
        _build_group(prepared, uses, sorted(names, key=order.__getitem__), probe.n) for uses, names in members if uses
    ]
    return tuple(sorted(groups, key=lambda group: order[group.names[0]]))


def _build_group(prepared: PreparedModel, uses: list[ParameterUse], names: list[str], n: int) -> Group:
    """Build the group of some uses: outer products if they share one weight, otherwise a mixed group."""
    uses = sorted(uses, key=lambda use: use.key)
    keys = tuple(use.key for use in uses)
    layer = names[0].rpartition(".")[0] or names[0]
    outer_shapes = [use.rule.outer_shape(use, n) for use in uses]
    if _share_one_weight(uses, outer_shapes) and not isinstance(uses[0].rule, EmbeddingRule):
        first_shape = outer_shapes[0]
        assert first_shape is not None
        positions = sum(outer_shape.positions for outer_shape in outer_shapes if outer_shape is not None)
        shape = OuterShape(positions, first_shape.fan_in, first_shape.fan_out, first_shape.groups)
        has_weight, has_bias = "weight" in uses[0].names, "bias" in uses[0].names
        group_type = VectorGroup if positions == 1 and first_shape.groups == 1 and len(uses) == 1 else OuterGroup
        return group_type(tuple(names), keys, layer, shape, has_weight, has_bias)
    if len(names) == 1 and all(isinstance(use.rule, EmbeddingRule) and not use.derived for use in uses):
        table_shapes = [shape for shape in outer_shapes if shape is not None]
        layouts = {use.settings["layout"] for use in uses}
        positions = sum(shape.positions for shape in table_shapes)
        if len(table_shapes) == len(uses) and len(layouts) == 1 and positions < table_shapes[0].fan_in:
            return TableGroup(tuple(names), keys, layer, positions, table_shapes[0].fan_in, table_shapes[0].fan_out)
    shapes = tuple(prepared.parameters[name].shape for name in names)
    return MixedGroup(tuple(names), keys, layer, shapes)


def _share_one_weight(uses: list[ParameterUse], outer_shapes: list[OuterShape | None]) -> bool:
    """Return True if all uses are outer products of the same weight and bias, so that their positions can be joined."""
    if any(use.derived for use in uses):
        return False
    forms = [
        None if shape is None else (use.names, shape.fan_in, shape.fan_out, shape.groups, type(use.rule))
        for use, shape in zip(uses, outer_shapes, strict=True)
    ]
    layouts = {use.settings.get("layout") for use in uses}
    return forms[0] is not None and all(form == forms[0] for form in forms) and len(layouts) == 1
