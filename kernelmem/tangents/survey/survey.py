"""Survey of a model: how each parameter is used, from probes of two and three rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.models import saved_storages
from kernelmem.tangents.batch_axis import BatchAxis, find_batch_axis, resolve_interleaving, row_tags
from kernelmem.tangents.capture import (
    Capture,
    Decomposition,
    OuterShape,
    ParameterUse,
    Rule,
    UseKey,
    backward_pass,
    capture,
)
from kernelmem.tangents.groups.base import Group
from kernelmem.tangents.groups.gradients import one_direction
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.outer import OuterGroup, VectorGroup
from kernelmem.tangents.groups.table import TableGroup
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules.embedding import EmbeddingRule
from kernelmem.tangents.survey.certificate import Certificate, PassMismatchError
from kernelmem.tangents.survey.locate import locate_uses, random_outputs
from kernelmem.tangents.survey.readout import Readout, find_readout

PROBE_SIZES = (2, 3)  # numbers of rows of the two probes


@dataclass(frozen=True)
class Survey:
    """Result of probing a model: parameter groups, batch axes, and the parameters for which the Jacobian is formed."""

    groups: tuple[Group, ...]
    dense: tuple[str, ...]
    located: frozenset[str]  # parameters whose uses are located in each pass, since their rows may lie anywhere
    skip: frozenset[UseKey]  # calls that are not intercepted
    batch_axes: dict[UseKey, BatchAxis]
    elements: dict[
        UseKey, tuple[int, int]
    ]  # use -> numbers per row in its input, and in its output if output gradients are kept
    saved: int  # numbers per row that the graph of a forward pass keeps
    readout: Readout | None
    obstacles: dict[str, str] = field(default_factory=dict)  # dense parameter -> why no rule covers it


def survey(
    prepared: PreparedModel,
    rows: Rows,
    rules: Sequence[Rule | Decomposition],
    *,
    located: frozenset[str] = frozenset(),
    dense: frozenset[str] = frozenset(),
    certify: bool = True,
) -> Survey:
    """Probe the model until every recorded use can be contracted row by row.

    A call whose output has no single axis proportional to the batch size, or that is not in both probes, is located by
    tagged gradients in every pass. A call that cannot be located is not intercepted (what it computes from parameters
    alone is recorded again where it meets the data); a parameter that is still on the graph is left to the dense
    fallback, as are parameters whose tangents differ from autograd's gradient. ``located`` and ``dense`` are parameters
    known from passes over other rows; without ``certify`` no tangents are compared. Cost: a few forward passes of two
    and three rows.
    """
    skip: set[UseKey] = set()
    located_names, dense_names = set(located), set(dense)
    obstacles = dict.fromkeys(dense, "its tangents differ from autograd's gradient")
    while True:
        probes, saved_numbers = [], []
        for size in PROBE_SIZES:
            batch = rows.take([i % rows.n for i in range(size)])
            probe = partial(capture, prepared, batch, size, rules, skip=frozenset(skip), dense=dense_names)
            captured, storages = saved_storages(probe)
            probes.append(captured)
            saved_numbers.append(sum(n_bytes // number_bytes for n_bytes, number_bytes in storages.values()))
        batch_axes, unsupported, newly_located = _batch_axes(probes, located_names)
        if unsupported:  # probe again: what such a call computes may enter a later one
            skip |= unsupported
            continue
        uncovered = set().union(*(probe.uncovered for probe in probes))
        for probe in probes:
            obstacles |= {name: text for name, text in probe.obstacles.items() if name in uncovered - dense_names}
        dense_with_shared = _with_shared_sources(dense_names | uncovered, probes[1].uses)
        if dense_with_shared - dense_names:
            dense_names |= dense_with_shared
            continue
        located_names |= newly_located
        groups = _join_into_groups(prepared, probes[1], located_names - dense_names)
        wrong_names = _wrong_names(prepared, probes, groups, dense_names) if certify else set()
        if not wrong_names:
            break
        obstacles |= dict.fromkeys(wrong_names & located_names, "its tangents differ from autograd's gradient")
        dense_names |= wrong_names & located_names
        located_names |= wrong_names
    large_probe = probes[1]
    elements = {
        use.key: (
            sum(t.numel() for t in use.inputs.values()) // PROBE_SIZES[1],
            use.output_shape.numel() // PROBE_SIZES[1] if use.rule.outer_shape(use, PROBE_SIZES[1]) is not None else 0,
        )
        for use in large_probe.uses
    }
    readout = find_readout(large_probe, located_names)
    return Survey(
        groups,
        tuple(name for name in prepared.parameters if name in dense_names),
        frozenset(located_names - dense_names),
        frozenset(skip),
        batch_axes,
        elements,
        max(saved_numbers[1] - saved_numbers[0], 0),
        readout,
        {name: obstacles.get(name, "used in a way that no rule covers") for name in dense_names},
    )


def _wrong_names(
    prepared: PreparedModel, probes: Sequence[Capture], groups: Sequence[Group], dense: set[str]
) -> set[str]:
    """Return the parameters whose tangents in a probe differ from autograd's gradient, except those in ``dense``."""
    wrong_names = set()
    for probe in probes:
        n = probe.n
        if not probe.outputs.requires_grad or not probe.uses:
            continue
        cotangent, tags = random_outputs(probe).expand(n, -1), row_tags(n, seed=1).to(probe.outputs)
        certificate = Certificate(prepared)
        certificate.add_pass(probe, cotangent * tags[:, None])
        edges = [use.edge for use in probe.uses]
        gradients = backward_pass(probe.outputs, edges, cotangent)
        gradient_of_use = dict(zip([use.key for use in probe.uses], gradients, strict=True))
        expected_sums = {}
        for group in groups:
            shapes = tuple(prepared.parameters[name].shape for name in group.names)
            mixed = MixedGroup(group.names, group.keys, group.layer, shapes)
            uses = [use for use in probe.uses if not use.parameters.isdisjoint(group.names)]
            use_gradients = [one_direction(use, gradient_of_use[use.key], n) for use in uses]
            tangents = mixed.write(uses, use_gradients, n, 1, "full", like=probe.outputs)
            certificate.add_tangents(group.names, (tags @ tangents["tangents"].flatten(1)))
            expected_sums[group.names] = mixed.expected_sum(certificate.gradients, uses, probe.outputs)
        for name in dense:
            certificate.gradients.pop(name, None)
        try:
            certificate.check(expected_sums)
        except PassMismatchError as mismatch:
            wrong_names |= mismatch.names
    return wrong_names


def _batch_axes(probes: list[Capture], located: set[str]) -> tuple[dict[UseKey, BatchAxis], set[UseKey], set[str]]:
    """Set the batch axes of all uses of two probes.

    Returns the axes that shapes tell, by key; the keys of the uses whose rows cannot be located; and the parameters of
    the uses that have to be located in each pass. The parameters ``located`` are among these already.
    """
    uses = [{use.key: use for use in probe.uses} for probe in probes]
    batch_axes: dict[UseKey, BatchAxis] = {}
    to_locate, unsupported = set(), set()
    for key in dict.fromkeys([*uses[0], *uses[1]]):
        batch_axis = None
        if key in uses[0] and key in uses[1]:
            small_use, large_use = uses[0][key], uses[1][key]
            batch_axis = find_batch_axis([small_use.output_shape, large_use.output_shape], PROBE_SIZES)
            if batch_axis is not None and batch_axis.multiplicity > 1:
                gradient = _first_row_gradient(probes[1], large_use)
                batch_axis = resolve_interleaving(batch_axis, gradient, PROBE_SIZES[1])
            small_use.batch_axis = large_use.batch_axis = batch_axis or large_use.batch_axis
            batch_axis = batch_axis if large_use.is_supported(PROBE_SIZES[1]) else None
        use = uses[1].get(key) or uses[0][key]
        if batch_axis is None and not use.has_data:
            unsupported.add(key)
        elif batch_axis is None or not located.isdisjoint(use.parameters):
            to_locate.add(key)
        else:
            batch_axes[key] = batch_axis
    if not unsupported:
        for probe, side in zip(probes, uses, strict=True):
            unsupported |= locate_uses(probe, [side[key] for key in to_locate if key in side])
    names = {name for key in to_locate - unsupported for side in uses if key in side for name in side[key].parameters}
    return batch_axes, unsupported, names


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


def _join_into_groups(prepared: PreparedModel, probe: Capture, located: set[str]) -> tuple[Group, ...]:
    """Return the parameter groups: uses that share a parameter, directly or through other uses, are in one group.

    Parameters in ``located`` have groups even if the probe does not use them.
    """
    group_of_name: dict[str, int] = {}
    members: list[tuple[list[ParameterUse], set[str]]] = []
    for use in probe.uses:
        names = use.parameters
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
        _build_group(prepared, uses, sorted(names, key=order.__getitem__), probe.n, located)
        for uses, names in members
        if uses
    ]
    groups += [
        MixedGroup((name,), (), name.rpartition(".")[0] or name, (prepared.parameters[name].shape,))
        for name in located - set(group_of_name)
    ]
    return tuple(sorted(groups, key=lambda group: order[group.names[0]]))


def _build_group(
    prepared: PreparedModel, uses: list[ParameterUse], names: list[str], n: int, located: set[str]
) -> Group:
    """Build the group of some uses: outer products if they share one weight, otherwise a mixed group."""
    keys = tuple(use.key for use in uses)
    layer = names[0].rpartition(".")[0] or names[0]
    outer_shapes = [use.rule.outer_shape(use, n) for use in uses]
    is_fixed = located.isdisjoint(names)
    if is_fixed and _share_one_weight(uses, outer_shapes) and not isinstance(uses[0].rule, EmbeddingRule):
        first_shape = outer_shapes[0]
        assert first_shape is not None
        positions = sum(outer_shape.positions for outer_shape in outer_shapes if outer_shape is not None)
        shape = OuterShape(positions, first_shape.fan_in, first_shape.fan_out, first_shape.groups)
        has_weight, has_bias = "weight" in uses[0].names, "bias" in uses[0].names
        group_type = VectorGroup if positions == 1 and first_shape.groups == 1 and len(uses) == 1 else OuterGroup
        return group_type(tuple(names), keys, layer, shape, has_weight, has_bias)
    is_table = len(names) == 1 and all(isinstance(use.rule, EmbeddingRule) and not use.derived for use in uses)
    if is_fixed and is_table:
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
