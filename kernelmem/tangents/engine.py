"""The engine: tangents of two sets of rows, tile by tile, contracted into a kernel as the plan says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.tangents.attention import AttentionRule
from kernelmem.tangents.capture import Capture, Use, capture
from kernelmem.tangents.convolution import ConvolutionRule
from kernelmem.tangents.dense import rowwise_jacobian, vectorized_jacobian
from kernelmem.tangents.directions import Directions
from kernelmem.tangents.elementwise import ElementwiseRule, PReLURule
from kernelmem.tangents.embedding import EmbeddingRule
from kernelmem.tangents.groups import Buffers, ChannelGroup, Group, ReadoutGroup, Stack, add_explicit
from kernelmem.tangents.linear import LinearRule
from kernelmem.tangents.normalization import NormalizationRule
from kernelmem.tangents.plan import Plan, make_plan
from kernelmem.tangents.prepare import Prepared
from kernelmem.tangents.readout import hidden_gradients, scaled
from kernelmem.tangents.recurrent import RecurrentRule
from kernelmem.tangents.survey import Survey, survey

__all__ = ["RULES", "Engine", "Side"]

RULES = (
    LinearRule(),
    ConvolutionRule(),
    NormalizationRule(),
    EmbeddingRule(),
    ElementwiseRule(),
    PReLURule(),
    AttentionRule(),
    RecurrentRule(),
)


@dataclass(frozen=True)
class Side:
    """Rows of one side of the kernel, with their labels where a target needs them."""

    rows: Rows
    labels: Tensor | None = None


@dataclass(frozen=True)
class Engine:
    """A prepared model, what its survey found, and the directions: computes kernels of any two sets of rows."""

    prepared: Prepared
    found: Survey
    directions: Directions
    vectorized: bool  # whether torch.func can take the dense Jacobian; otherwise it goes row by row

    @classmethod
    def build(cls, prepared: Prepared, rows: Rows, directions: Directions) -> "Engine":
        """Probe the model on a few rows."""
        found = survey(prepared, rows, RULES)
        vectorized = bool(found.dense) and _vectorizes(prepared, rows, list(found.dense))
        return cls(prepared, found, directions, vectorized)

    def capture(self, batch: Any, n: int) -> Capture:
        """Run the model on n rows and meet the uses that the survey kept."""
        found = self.found
        return capture(self.prepared, batch, n, RULES, skip=found.skip, dense=found.dense, layouts=found.layouts)

    def plan(self, n: int, m: int, *, symmetric: bool, memory: int) -> Plan:
        """Count the work for n x m rows."""
        return make_plan(self.prepared, self.found, self.directions, n=n, m=m, symmetric=symmetric, memory=memory)

    def kernel(
        self,
        left: Side,
        right: Side | None,
        plan: Plan,
        *,
        by_layer: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Compute K(left, right), or the symmetric K(left, left): one result "" in all, or one a layer."""
        symmetric, other = right is None, right or left
        layers = list(dict.fromkeys(self._layers(plan))) if by_layer else [""]
        shape = self.directions.result_shape(left.rows.n, other.rows.n)
        results = {
            layer: torch.zeros(shape, dtype=self.prepared.dtype, device=self.prepared.device) for layer in layers
        }
        starts = [range(0, side.rows.n, plan.tile) for side in (left, other)]
        blocks = [range(c, min(c + plan.block, plan.sweeps)) for c in range(0, plan.sweeps, plan.block)]
        pairs = [(b, i, j) for b in blocks for i in starts[0] for j in starts[1] if not symmetric or j >= i]
        for done, (block, i, j, mine, theirs) in enumerate(self._tiles(left, other, plan, pairs, symmetric), 1):
            for index, layer in enumerate(self._layers(plan)):
                result = results[layer if by_layer else ""]
                self._add(result, mine[index], theirs[index], plan, index, block, i, j, symmetric and i == j)
            if progress is not None:
                progress(done, len(pairs))
        for result in results.values():
            if symmetric:
                _mirror(result, self.directions.combine)
        return {layer: self.directions.public(result) for layer, result in results.items()}

    def _layers(self, plan: Plan) -> list[str]:
        """The layer of each entry of a tile's features; parameters of the dense fallback go by their module's name."""
        return [group.layer for group in plan.groups] + [name.rpartition(".")[0] or name for name in plan.dense]

    def _tiles(
        self, left: Side, other: Side, plan: Plan, pairs: Sequence[tuple[range, int, int]], symmetric: bool
    ) -> Iterator[tuple[range, int, int, list[Buffers], list[Buffers]]]:
        held: tuple[Any, list[Buffers]] | None = None
        for block, i, j in pairs:
            if held is None or held[0] != (block, i):
                held = None  # let go of the old tile before the new one is made
                held = ((block, i), self._features(left, i, plan, block))
            mine = held[1]
            theirs = mine if symmetric and i == j else self._features(other, j, plan, block)
            yield block, i, j, mine, theirs

    def _add(
        self,
        result: Tensor,
        x: Buffers,
        y: Buffers,
        plan: Plan,
        index: int,
        block: range,
        i: int,
        j: int,
        symmetric: bool,
    ) -> None:
        if not x or not y:
            return
        combine = self.directions.combine
        rows, columns = slice(i, i + plan.tile), slice(j, j + plan.tile)
        if combine == "sum":
            out = result[rows, columns]
        elif combine == "diagonal":
            out = result[block.start : block.stop, rows, columns]
        else:
            out = result[rows, :, columns]
        if index < len(plan.groups):
            plan.groups[index].add(out, x, y, combine, symmetric=symmetric)
        else:
            add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)

    def _features(self, side: Side, start: int, plan: Plan, block: range) -> list[Buffers]:
        """Tangents of one tile, written chunk by chunk into whole buffers."""
        stop = min(start + plan.tile, side.rows.n)
        whole: list[Buffers] = []
        for first in range(start, stop, plan.chunk):
            last = min(first + plan.chunk, stop)
            parts = self._chunk(side, first, last, plan, block)
            if first == start and last == stop:
                return parts
            if not whole:
                whole = [{k: t.new_empty(stop - start, *t.shape[1:]) for k, t in part.items()} for part in parts]
            for buffers, part in zip(whole, parts, strict=True):
                for name, tensor in part.items():
                    buffers[name][first - start : last - start] = tensor
        return whole

    def _chunk(self, side: Side, first: int, last: int, plan: Plan, block: range) -> list[Buffers]:
        """Tangents of a few rows: one forward pass, the sweeps of ``block``, and each group's factors."""
        n, batch = last - first, side.rows.slice(first, last)
        labels = None if side.labels is None else side.labels[first:last]
        found = self.found
        captured = self.capture(batch, n)
        uses = {use.key: use for use in captured.uses}
        once = block.start == 0 or self.directions.combine != "sum"  # what is no sum over directions is added once
        stacks = self.stacks(captured, uses, plan.groups, block, labels, once=once, sweeps=plan.sweeps)
        features: list[Buffers] = []
        for group in plan.groups:
            if group.once and not once:
                features.append({})
                continue
            own = [uses[key] for key in group.keys]
            k = 1 if group.once else len(block)
            features.append(group.write(own, [stacks.get(key) for key in group.keys], n, k, self.directions.combine))
        if found.dense:
            jacobian = self.dense(batch, n, self.directions.cotangents(captured.outputs.detach(), block, labels))
            sizes = [self.prepared.parameters[name].numel() for name in found.dense]
            features += [{"tangents": part} for part in jacobian.split(sizes, dim=2)]
        return features

    def stacks(
        self,
        captured: Capture,
        uses: dict[int, Use],
        groups: Sequence[Group],
        block: range,
        labels: Tensor | None,
        *,
        once: bool,
        sweeps: int,
    ) -> dict[int, Stack]:
        """Output gradients of the uses, in all directions of the block, or free of classes where the readout factors."""
        readout, n = self.found.readout, captured.n
        single = {key for group in groups if isinstance(group, ChannelGroup) or group.classfree for key in group.keys}
        silent = {key for group in groups if isinstance(group, ReadoutGroup) for key in group.keys}
        swept = [use for use in captured.uses if use.key not in single | silent]
        edges = [use.edge for use in swept]
        below_nothing = silent and readout is not None and uses[readout.key].input_edge is None
        if below_nothing or not captured.outputs.requires_grad:
            edges = []  # no use lies on the graph of the outputs
        stacks: dict[int, Stack] = {}
        if edges and silent and readout is not None:
            # The outputs are the readout's, so a sweep may as well start at its input, with rows of W or of R.
            rows = readout.compressed if sweeps == len(readout.compressed) else readout.weight
            cotangents = rows[block.start : block.stop, None].expand(-1, n, -1)
            start: Any = uses[readout.key].input_edge
        else:
            cotangents = self.directions.cotangents(captured.outputs.detach(), block, labels).transpose(0, 1)
            start = captured.outputs
        for c, cotangent in enumerate(cotangents if edges else ()):
            gradients = torch.autograd.grad(start, edges, cotangent, retain_graph=True, allow_unused=True)
            for use, gradient in zip(swept, gradients, strict=True):
                _put(stacks, use, gradient, n, c, len(cotangents))
        if single and once and readout is not None:
            below = [use for use in captured.uses if use.key in single]
            ones = torch.ones(1, n, readout.weight.shape[1], dtype=readout.weight.dtype, device=readout.weight.device)
            (gradients,) = hidden_gradients(uses[readout.key], ones, [use.edge for use in below])
            for use, gradient in zip(below, gradients, strict=True):
                if gradient is not None and self.directions.outputs == "trace":
                    gradient = scaled(use, gradient, readout.scale)
                _put(stacks, use, gradient, n, 0, 1)
        return stacks

    def dense(self, batch: Any, n: int, cotangents: Tensor) -> Tensor:
        """Tangents of the parameters that no rule covers: (n, k, P)."""
        names = list(self.found.dense)
        if self.vectorized:
            return vectorized_jacobian(self.prepared, batch, names, cotangents)
        chunk = Rows(batch, n)
        return rowwise_jacobian(self.prepared, [chunk.slice(i, i + 1) for i in range(n)], names, cotangents)


def _put(stacks: dict[int, Any], use: Use, gradient: Tensor | None, n: int, c: int, k: int) -> None:
    """Keep one direction's gradient (None counts as zero).

    Outer uses: copied to where the rule wants the axis of directions. Direct uses: summed to tangents at once, while the
    gradient is in cache, so that it is never stacked.
    """
    direct = use.rule.outer(use, n) is None
    if gradient is None:
        if use.key in stacks:
            for part in stacks[use.key].values() if direct else (stacks[use.key],):
                part.select(1 if direct else use.rule.direction_axis(use) % part.ndim, c).zero_()
        return
    rows = use.rule.arrange(use, use.layout.rows(gradient, n))
    axis = use.rule.direction_axis(use) % (rows.ndim + 1)
    if direct:
        for slot, tangent in use.rule.direct(use, rows.unsqueeze(axis), n).items():
            parts = stacks.setdefault(use.key, {})
            if slot not in parts:
                parts[slot] = tangent.new_zeros(n, k, *tangent.shape[2:])
            parts[slot][:, c] = tangent[:, 0]
        return
    if use.key not in stacks:
        shape = (*rows.shape[:axis], k, *rows.shape[axis:])
        stacks[use.key] = rows.new_empty(shape) if c == 0 else rows.new_zeros(shape)
    stacks[use.key].select(axis, c).copy_(rows)


def _vectorizes(prepared: Prepared, rows: Rows, names: list[str]) -> bool:
    """Whether torch.func follows this model, and agrees with plain autograd on a few rows (some of its rules do not)."""
    if len(list(prepared.module.named_modules())) != len(list(prepared.module.named_modules(remove_duplicate=False))):
        return False  # functional_call does not put a module back that is registered in two places
    every = torch.eye(prepared.n_outputs, dtype=prepared.dtype, device=prepared.device)
    tolerance = 1e-3 if prepared.dtype == torch.float32 else 1e-9
    for size in (2, 3):  # sizes that happen to be equal hide some of torch's faults
        few = [rows.take([i % rows.n]) for i in range(size)]
        directions = every.expand(size, *every.shape)
        try:
            found = vectorized_jacobian(prepared, rows.take([i % rows.n for i in range(size)]), names, directions)
        except Exception:  # vmap and jacrev raise many types, from inside the user's module
            return False
        expected = rowwise_jacobian(prepared, few, names, directions)
        if not bool((found - expected).norm() <= tolerance * expected.norm()):
            return False
    return True


def _mirror(result: Tensor, combine: str) -> None:
    """Copy the upper triangle to the lower one, so that the kernel is symmetric to the bit."""
    if combine == "diagonal":
        for layer in result:
            _mirror(layer, "sum")
        return
    matrix = result.view(result.shape[0] * result.shape[1], -1) if combine == "full" else result
    size = 512
    for i in range(0, len(matrix), size):
        corner = matrix[i : i + size, i : i + size]
        corner.copy_(corner.triu() + corner.triu(1).T)
        matrix[i + size :, i : i + size] = matrix[i : i + size, i + size :].T
