"""The engine: tangents of two sets of rows, tile by tile, contracted into a kernel as the plan says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.batches import Batch, Rows
from kernelmem.tangents.capture import Capture, capture
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian, vectorized_jacobian, vectorizes
from kernelmem.tangents.engine.accumulate import KernelAccumulator, TangentAssembler, add_dense, mirror
from kernelmem.tangents.engine.backward import ForwardPass, ResidentRows
from kernelmem.tangents.engine.plan import Plan, make_plan
from kernelmem.tangents.groups.base import Buffers, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import Survey, survey

__all__ = ["Engine", "LabeledRows"]

Progress = Callable[[int, int], object] | None


@dataclass(frozen=True)
class LabeledRows:
    """Rows of one side of the kernel, with their labels where a target needs them."""

    rows: Rows
    labels: Tensor | None = None


@dataclass(frozen=True)
class Engine:
    """A prepared model, what its survey found, and the directions: computes kernels of any two sets of rows."""

    prepared: PreparedModel
    survey: Survey
    directions: OutputDirections
    vectorized: bool  # whether torch.func can take the dense Jacobian; otherwise it goes row by row

    @classmethod
    def build(cls, prepared: PreparedModel, rows: Rows, directions: OutputDirections) -> "Engine":
        """Probe the model on a few rows."""
        found = survey(prepared, rows, RULES)
        vectorized = bool(found.dense) and vectorizes(prepared, rows, list(found.dense))
        return cls(prepared, found, directions, vectorized)

    def capture(self, batch: Batch, n: int) -> Capture:
        """Run the model on n rows and meet the uses that the survey kept."""
        found = self.survey
        return capture(self.prepared, batch, n, RULES, skip=found.skip, dense=found.dense, batch_axes=found.batch_axes)

    def plan(self, n: int, m: int, *, symmetric: bool, memory: int) -> Plan:
        """Count the work for n x m rows."""
        return make_plan(self.prepared, self.survey, self.directions, n=n, m=m, symmetric=symmetric, memory=memory)

    def kernel(
        self,
        left: LabeledRows,
        right: LabeledRows | None,
        plan: Plan,
        *,
        by_layer: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> dict[str, Tensor]:
        """Compute K(left, right), or the symmetric K(left, left): one result "" in all, or one a layer."""
        names = self._layers(plan) if by_layer else [""] * (len(plan.groups) + len(plan.dense))
        shape = self.directions.result_shape(left.rows.n, (right or left).rows.n)
        like = {"dtype": self.prepared.dtype, "device": self.prepared.device}
        results = {name: torch.zeros(shape, **like) for name in (dict.fromkeys(names) if by_layer else [""])}
        run = self._streamed if plan.streamed else self._tiled
        run(
            KernelAccumulator(self.directions.combine, results, names, right is None),
            left,
            right or left,
            plan,
            progress,
        )
        for result in results.values():
            if right is None:
                mirror(result, self.directions.combine)
        return {layer: self.directions.public(result) for layer, result in results.items()}

    def _layers(self, plan: Plan) -> list[str]:
        """The layer of each group, then of each parameter of the dense fallback: by its module's name."""
        return [group.layer for group in plan.groups] + [name.rpartition(".")[0] or name for name in plan.dense]

    def _pass(self, side: LabeledRows, rows: range, plan: Plan) -> ForwardPass:
        captured = self.capture(side.rows.slice(rows.start, rows.stop), len(rows))
        labels = None if side.labels is None else side.labels[rows.start : rows.stop]
        return ForwardPass(captured, plan.groups, self.directions, self.survey.readout, plan.sweeps, labels)

    def _streamed(
        self, results: KernelAccumulator, left: LabeledRows, right: LabeledRows, plan: Plan, progress: Progress
    ) -> None:
        """All rows at once, one direction after another: tangents are contracted as soon as they are there.

        Groups that do not stream have their output gradients collected, and are contracted in the end.
        """
        groups, every = plan.groups, range(plan.sweeps)
        streams = [i for i, group in enumerate(groups) if group.streams]
        once = [i for i, group in enumerate(groups) if group.all_directions]
        space = max((groups[i].numbers_per_row(1) for i in streams), default=0)
        held = []
        for side in (left,) if results.symmetric else (left, right):
            passes = [self._pass(side, rows, plan) for rows in _chunks(0, side.rows.n, plan.chunk)]
            held.append(ResidentRows(passes, space, {key for i in streams for key in groups[i].keys}))

        def add(i: int, stacks: list[list[dict[int, UseGradients]]], block: range) -> None:
            k = 1 if groups[i].all_directions else len(block)
            found = [own.tangents(groups[i], s, k, results.combine) for own, s in zip(held, stacks, strict=True)]
            results.add(i, groups[i].add, found[0], found[-1], block, symmetric=results.symmetric)

        if once:
            factored = [own.factored_gradients() for own in held]
            for i in once:
                add(i, factored, every)
        for c in every:
            swept = [own.sweep(c) for own in held]
            for i in streams:
                add(i, swept, range(c, c + 1))
            if progress is not None:
                progress(c + 1, plan.sweeps)
        for i in sorted({*range(len(groups))} - {*streams, *once}):
            add(i, [own.collected for own in held], every)
            for own in held:
                own.drop(groups[i])

    def _tiled(
        self, results: KernelAccumulator, left: LabeledRows, right: LabeledRows, plan: Plan, progress: Progress
    ) -> None:
        """Tile by tile: tangents of two sets of rows, in a block of directions, and their contraction."""
        starts = [range(0, side.rows.n, plan.tile) for side in (left, right)]
        blocks = [range(c, min(c + plan.block, plan.sweeps)) for c in range(0, plan.sweeps, plan.block)]
        tiles = [(b, i, j) for b in blocks for i in starts[0] for j in starts[1] if not results.symmetric or j >= i]
        mine: list[Buffers] = []
        theirs: list[Buffers] = []
        held = None
        for done, (block, i, j) in enumerate(tiles, 1):
            theirs = []  # let go of old tiles before new ones are made
            if held != (block, i):
                mine, held = [], (block, i)
                mine = self._features(left, i, plan, block)
            same = results.symmetric and i == j
            theirs = mine if same else self._features(right, j, plan, block)
            part = slice(i, i + plan.tile), slice(j, j + plan.tile)
            for index in range(len(mine)):
                if mine[index] and theirs[index]:
                    add = plan.groups[index].add if index < len(plan.groups) else add_dense
                    results.add(index, add, mine[index], theirs[index], block, part, symmetric=same)
            if progress is not None:
                progress(done, len(tiles))

    def _features(self, side: LabeledRows, start: int, plan: Plan, block: range) -> list[Buffers]:
        """Tangents of one tile, written pass by pass into whole buffers."""
        stop = min(start + plan.tile, side.rows.n)
        combine = self.directions.combine
        spaces: dict[int, Tensor] = {}
        whole: list[TangentAssembler] = []
        for rows in _chunks(start, stop, plan.chunk):
            once = block.start == 0 or combine != "sum"
            part = self._part(side, rows, range(start, stop), plan, block, spaces, all_directions=once)
            whole = whole or [TangentAssembler(stop - start, spaces.get(index)) for index in range(len(part))]
            for joined, of_group in zip(whole, part, strict=True):
                joined.add(of_group)
            del part  # before the next pass makes its own
        return [joined.found for joined in whole]

    def _part(
        self,
        side: LabeledRows,
        rows: range,
        tile: range,
        plan: Plan,
        block: range,
        spaces: dict[int, Tensor],
        *,
        all_directions: bool,
    ) -> list[Buffers]:
        """Tangents of the rows of one pass; with ``all_directions`` also of groups that a sum over directions holds once."""
        own, combine = self._pass(side, rows, plan), self.directions.combine
        stacks = own.stacks(block, all_directions=all_directions)
        part: list[Buffers] = []
        for index, group in enumerate(plan.groups):
            if group.all_directions and not all_directions:
                part.append({})
                continue
            uses, k = own.of(group), 1 if group.all_directions else len(block)
            space = group.buffer_shape(len(tile), k)
            if space is not None and index not in spaces:
                spaces[index] = torch.empty(space, dtype=self.prepared.dtype, device=self.prepared.device)
            out = spaces[index][rows.start - tile.start : rows.stop - tile.start] if index in spaces else None
            part.append(group.write(uses, [stacks.get(key) for key in group.keys], own.n, k, combine, out=out))
        if self.survey.dense:
            jacobian = self.dense(side.rows.slice(rows.start, rows.stop), own.n, own.cotangents(block))
            sizes = [self.prepared.parameters[name].numel() for name in self.survey.dense]
            part += [{"tangents": tangents} for tangents in jacobian.split(sizes, dim=2)]
        return part

    def dense(self, batch: Batch, n: int, cotangents: Tensor) -> Tensor:
        """Tangents of the parameters that no rule covers: (n, k, P)."""
        names = list(self.survey.dense)
        if self.vectorized:
            return vectorized_jacobian(self.prepared, batch, names, cotangents)
        chunk = Rows(batch, n)
        return rowwise_jacobian(self.prepared, [chunk.slice(i, i + 1) for i in range(n)], names, cotangents)


def _chunks(start: int, stop: int, size: int) -> Iterator[range]:
    """Rows of one pass after another."""
    return (range(first, min(first + size, stop)) for first in range(start, stop, size))
