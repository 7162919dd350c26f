"""Engine: computes tangents of two sets of rows tile by tile and contracts them into a kernel, as the plan says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernelmem.core.batches import Batch, Rows
from kernelmem.core.errors import VerificationError
from kernelmem.tangents.capture import Capture, UseKey, capture
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian, supports_vectorized_jacobian, vectorized_jacobian
from kernelmem.tangents.engine.accumulate import ALL, KernelAccumulator, TangentAssembler, add_dense, mirror
from kernelmem.tangents.engine.backward import ForwardPass, ResidentRows
from kernelmem.tangents.engine.certified import SideCertificate, certify_pass, check_rows_are_independent
from kernelmem.tangents.engine.plan import Plan, Tiling, choose_methods, make_plan, scheduled_plan
from kernelmem.tangents.groups.base import Buffers, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import PassMismatchError, Survey, locate_uses, survey

Progress = Callable[[int, int], object] | None


@dataclass(frozen=True)
class LabeledRows:
    """Examples of one side of the kernel matrix (its rows or its columns), with labels if a target function needs them."""

    rows: Rows
    labels: Tensor | None = None

    def take(self, indices: list[int]) -> "LabeledRows":
        """Return the examples at ``indices``, with their labels."""
        return LabeledRows(
            Rows(self.rows.take(indices), len(indices)), None if self.labels is None else self.labels[indices]
        )


@dataclass(frozen=True)
class Engine:
    """A prepared model, its survey and output directions: computes the kernel of any two sets of rows."""

    prepared: PreparedModel
    survey: Survey
    directions: OutputDirections
    vectorized: bool  # whether the dense Jacobian is computed by torch.func instead of row by row
    rows: Rows  # a few rows, on which the model is surveyed
    certified: bool = True  # whether each pass is compared with autograd

    @classmethod
    def build(
        cls, prepared: PreparedModel, rows: Rows, directions: OutputDirections, *, certified: bool = True
    ) -> "Engine":
        """Return the engine of a model, after probing on a few of ``rows`` how the model uses its parameters.

        An engine that is not ``certified`` compares the tangents of these few rows with autograd, instead of those of each
        pass.
        """
        few_rows = Rows(rows.take(list(range(min(rows.n, 3)))), min(rows.n, 3))
        surveyed = survey(prepared, few_rows, RULES, certify=not certified)
        vectorized = bool(surveyed.dense) and supports_vectorized_jacobian(prepared, few_rows, list(surveyed.dense))
        return cls(prepared, surveyed, directions, vectorized, few_rows, certified)

    def capture(self, batch: Batch, n: int) -> Capture:
        """Run the model on a batch of n examples and return the recorded parameter uses that the survey kept.

        Raises:
            PassMismatchError: uses that the survey did not see, or whose rows cannot be located.
            VerificationError: outputs that depend on the other examples of the batch.
        """
        surveyed = self.survey
        captured = capture(
            self.prepared, batch, n, RULES, skip=surveyed.skip, dense=surveyed.dense, batch_axes=surveyed.batch_axes
        )
        if self.certified:
            check_rows_are_independent(self.prepared, batch, captured.outputs)
        unlocated = locate_uses(captured, [use for use in captured.uses if use.parameters & surveyed.located])
        if unlocated:
            names = set().union(*(use.parameters for use in captured.uses if use.key in unlocated))
            raise PassMismatchError(frozenset(names & surveyed.located))
        return captured

    def without_assumptions(self, mismatch: PassMismatchError) -> "Engine":
        """Return an engine that treats the parameters of a mismatch in a slower way that assumes less.

        Uses are located by tagged gradients in each pass; if they are already, the Jacobian is formed by autograd.

        Raises:
            VerificationError: their Jacobian, row by row, differs from the gradient of the batch.
        """
        dense, located = set(self.survey.dense), set(self.survey.located)
        wrong_dense = mismatch.names & dense
        if wrong_dense and not self.vectorized:
            raise VerificationError(
                f"a model whose tangents with respect to {', '.join(sorted(wrong_dense)[:3])} in a batch differ from those of"
                f" single rows by {mismatch.relative_error:.2g} (relative)",
                expected="an output for each row that depends on that row alone, and the same result in each run",
                hint="check that no operation mixes the rows of a batch (batch statistics, attention over rows) and that the"
                " model is deterministic; pass dtype=torch.float64 if rounding may explain the difference (normalization of small"
                " variances); or leave these parameters out with parameters=",
            )
        dense |= mismatch.names & located
        located |= mismatch.names - dense
        surveyed = survey(
            self.prepared,
            self.rows,
            RULES,
            located=frozenset(located),
            dense=frozenset(dense),
            certify=not self.certified,
        )
        vectorized = not wrong_dense and bool(surveyed.dense)
        vectorized = vectorized and supports_vectorized_jacobian(self.prepared, self.rows, list(surveyed.dense))
        return replace(self, survey=surveyed, vectorized=vectorized)

    def plan(self, n: int, m: int, *, symmetric: bool, memory: int) -> Plan:
        """Return the plan for the kernel of n by m examples within ``memory`` bytes (``symmetric``: equal sides)."""
        return make_plan(self.prepared, self.survey, self.directions, n=n, m=m, symmetric=symmetric, memory=memory)

    def scheduled_plan(self, n: int, m: int, *, symmetric: bool, tile: int, block: int, chunk: int) -> Plan:
        """Return the plan for the kernel of n by m examples with given sizes, for a result that is not in memory."""
        return scheduled_plan(
            self.prepared,
            choose_methods(self.prepared, self.survey, self.directions, n, m, symmetric=symmetric),
            self.directions,
            self.survey.dense,
            (n, m, symmetric),
            Tiling(1.0, min(tile, max(n, m)), block, min(chunk, tile), 1.0, 0),
            0,
        )

    def kernel(
        self,
        left: LabeledRows,
        right: LabeledRows | None,
        plan: Plan,
        *,
        by_layer: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> dict[str, Tensor]:
        """Compute K(left, right), or the symmetric K(left, left), as {"": kernel}, or one kernel per layer.

        A pass that contradicts the survey makes the computation start again with fewer assumptions.
        """
        engine = self
        while True:
            try:
                return engine._kernel(left, right, plan, by_layer=by_layer, progress=progress)
            except PassMismatchError as mismatch:
                engine = engine.without_assumptions(mismatch)
                plan = engine.plan(plan.n, plan.m, symmetric=plan.symmetric, memory=plan.memory)

    def _kernel(
        self,
        left: LabeledRows,
        right: LabeledRows | None,
        plan: Plan,
        *,
        by_layer: bool,
        progress: Callable[[int, int], object] | None,
    ) -> dict[str, Tensor]:
        names = self._layer_names(plan) if by_layer else [""] * (len(plan.groups) + len(plan.dense))
        shape = self.directions.result_shape(left.rows.n, (right or left).rows.n)
        tensor_options = {"dtype": self.prepared.dtype, "device": self.prepared.device}
        results = {name: torch.zeros(shape, **tensor_options) for name in (dict.fromkeys(names) if by_layer else [""])}
        compute = self._compute_streamed if plan.streamed else self._compute_tiled
        compute(
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

    def _layer_names(self, plan: Plan) -> list[str]:
        """Return the module name of each parameter group of the plan, then of each parameter that no rule covers."""
        return [group.layer for group in plan.groups] + [name.rpartition(".")[0] or name for name in plan.dense]

    def _forward_pass(self, side: LabeledRows, rows: range, plan: Plan) -> ForwardPass:
        """Run the model on the examples ``rows`` of one side of the kernel, and return the recorded forward pass."""
        captured = self.capture(side.rows.slice(rows.start, rows.stop), len(rows))
        labels = None if side.labels is None else side.labels[rows.start : rows.stop]
        return ForwardPass(captured, plan.groups, self.directions, self.survey.readout, plan.sweeps, labels)

    def _compute_streamed(
        self, results: KernelAccumulator, left: LabeledRows, right: LabeledRows, plan: Plan, progress: Progress
    ) -> None:
        """Add the kernel to ``results``, with all examples in memory and one output direction after another.

        Groups that stream are contracted after each direction; the output gradients of the others are collected and
        contracted at the end.
        """
        groups, all_sweeps = plan.groups, range(plan.sweeps)
        streaming = [index for index, group in enumerate(groups) if group.streams]
        contracted_once = [index for index, group in enumerate(groups) if group.all_directions]
        buffer_numbers = max((groups[index].numbers_per_row(1) for index in streaming), default=0)
        sides: list[ResidentRows] = []
        for side in (left,) if results.symmetric else (left, right):
            forward_passes = [self._forward_pass(side, rows, plan) for rows in _row_ranges(0, side.rows.n, plan.chunk)]
            sides.append(ResidentRows(forward_passes, buffer_numbers, set(streaming)))
        certificates = [SideCertificate(self.prepared, side) for side in sides] if self.certified else []

        def add_group(index: int, gradients: list[list[dict[UseKey, UseGradients]]], block: range) -> None:
            """Add the contraction of one parameter group, from its output gradients in the directions of ``block``."""
            k = 1 if groups[index].all_directions else len(block)
            tangents: list[Buffers] = []
            for side_index, (side, pass_gradients) in enumerate(zip(sides, gradients, strict=True)):
                tangents.append(side.tangents(index, pass_gradients, k, results.combine))
                if certificates:
                    certificates[side_index].add(index, tangents[-1], block, results.combine)
            results.add(index, groups[index].add, tangents[0], tangents[-1], block, symmetric=results.symmetric)

        if contracted_once:
            factored_gradients = [side.factored_gradients() for side in sides]
            for index in contracted_once:
                add_group(index, factored_gradients, all_sweeps)
        for direction in all_sweeps:
            swept_gradients = [side.sweep(direction) for side in sides]
            for index in streaming:
                add_group(index, swept_gradients, range(direction, direction + 1))
            if progress is not None:
                progress(direction + 1, plan.sweeps)
        for index in sorted({*range(len(groups))} - {*streaming, *contracted_once}):
            add_group(index, [side.collected for side in sides], all_sweeps)
            for side in sides:
                side.drop(index)
        for certificate in certificates:
            certificate.check()

    def _compute_tiled(
        self, results: KernelAccumulator, left: LabeledRows, right: LabeledRows, plan: Plan, progress: Progress
    ) -> None:
        """Add the kernel to ``results`` tile by tile.

        For each tile, the tangents of its two sets of examples in a block of output directions are contracted. Those that the
        last tile used, or with ``plan.cached`` all, are not computed again.
        """
        sides = left, right
        starts = [range(0, side.rows.n, plan.tile) for side in sides]
        blocks = [range(c, min(c + plan.block, plan.sweeps)) for c in range(0, plan.sweeps, plan.block)]
        tiles = [
            (block, row_start, column_start)
            for block in blocks
            for row_start in starts[0]
            for column_start in starts[1]
            if not results.symmetric or column_start >= row_start
        ]
        held: dict[tuple[range, int, int], list[Buffers]] = {}  # tangents by block, side and first row
        for n_done, (block, row_start, column_start) in enumerate(tiles, 1):
            keys = (block, 0, row_start), (block, 0 if results.symmetric else 1, column_start)
            held = {
                key: held[key] for key in held if key in keys or (plan.cached and key[0] == block)
            }  # free the others
            for key in keys:
                if key not in held:
                    _, side_index, start = key
                    side = sides[side_index]
                    held[key] = self.tangents(side, range(start, min(start + plan.tile, side.rows.n)), plan, block)
            tile = slice(row_start, row_start + plan.tile), slice(column_start, column_start + plan.tile)
            self.add_tile(results, held[keys[0]], held[keys[1]], plan, block, tile)
            if progress is not None:
                progress(n_done, len(tiles))

    def add_tile(
        self,
        results: KernelAccumulator,
        x: list[Buffers],
        y: list[Buffers],
        plan: Plan,
        block: range,
        tile: tuple[slice, slice] = ALL,
    ) -> None:
        """Add the contraction of the tangents ``x`` and ``y`` of all parameter groups to a tile of ``results``, in place.

        If y is x, only the upper triangle of the tile is computed.
        """
        for index, (group_x, group_y) in enumerate(zip(x, y, strict=True)):
            if group_x and group_y:
                add_block = plan.groups[index].add if index < len(plan.groups) else add_dense
                results.add(index, add_block, group_x, group_y, block, tile, symmetric=x is y)

    def tangents(self, side: LabeledRows, tile: range, plan: Plan, block: range) -> list[Buffers]:
        """Return, for each parameter group, the named tangents of the examples in ``tile``.

        They are collected from several forward passes, in the output directions of ``block``.

        Raises:
            PassMismatchError: a pass that contradicts the survey.
        """
        combine = self.directions.combine
        buffers: dict[int, Tensor] = {}
        assemblers: list[TangentAssembler] = []
        for rows in _row_ranges(tile.start, tile.stop, plan.chunk):
            all_directions = block.start == 0 or combine != "sum"  # in a sum, all_directions groups are added once
            chunk = self._chunk_tangents(side, rows, tile, plan, block, buffers, all_directions=all_directions)
            assemblers = assemblers or [TangentAssembler(len(tile), buffers.get(i)) for i in range(len(chunk))]
            for assembler, group_tangents in zip(assemblers, chunk, strict=True):
                assembler.add(group_tangents)
            del chunk  # free it before the next pass
        return [assembler.buffers for assembler in assemblers]

    def _chunk_tangents(
        self,
        side: LabeledRows,
        rows: range,
        tile: range,
        plan: Plan,
        block: range,
        buffers: dict[int, Tensor],
        *,
        all_directions: bool,
    ) -> list[Buffers]:
        """Return, for each parameter group, the named tangents of the examples ``rows`` of one forward pass.

        ``tile`` are the examples of the tile, into whose ``buffers`` (by group index) tangents are written. Groups that are
        contracted once for all directions are included only with ``all_directions``.
        """
        forward_pass, combine = self._forward_pass(side, rows, plan), self.directions.combine
        gradients = forward_pass.gradients(block, all_directions=all_directions)
        n, tangents = forward_pass.n, list[Buffers]()
        for index, group in enumerate(plan.groups):
            if group.all_directions and not all_directions:
                tangents.append({})
                continue
            uses, k = forward_pass.group_uses[index], 1 if group.all_directions else len(block)
            buffer_shape = group.buffer_shape(len(tile), k)
            if buffer_shape is not None and index not in buffers:
                buffers[index] = torch.empty(buffer_shape, dtype=self.prepared.dtype, device=self.prepared.device)
            out = buffers[index][rows.start - tile.start : rows.stop - tile.start] if index in buffers else None
            like = forward_pass.outputs.detach()
            tangents.append(
                group.write(uses, [gradients.get(use.key) for use in uses], n, k, combine, like=like, out=out)
            )
        if self.survey.dense:
            jacobian = self.dense(side.rows.slice(rows.start, rows.stop), n, forward_pass.cotangents(block))
            sizes = [self.prepared.parameters[name].numel() for name in self.survey.dense]
            tangents += [{"tangents": block} for block in jacobian.split(sizes, dim=2)]
        if self.certified:
            certify_pass(self.prepared, forward_pass, tangents, plan, block, combine)
        return tangents

    def dense(self, batch: Batch, n: int, cotangents: Tensor) -> Tensor:
        """Return the tangents (n examples, k, P) of the P scalars that no rule covers, for cotangents (n, k, C outputs)."""
        names = list(self.survey.dense)
        if self.vectorized:
            return vectorized_jacobian(self.prepared, batch, names, cotangents)
        chunk = Rows(batch, n)
        return rowwise_jacobian(self.prepared, [chunk.slice(i, i + 1) for i in range(n)], names, cotangents)


def _row_ranges(start: int, stop: int, size: int) -> Iterator[range]:
    """Yield consecutive ranges of at most ``size`` indices that cover start..stop (exclusive)."""
    return (range(first, min(first + size, stop)) for first in range(start, stop, size))
