"""Plan of a kernel computation: contraction method per parameter group, tile sizes, operation and byte counts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING

import torch

from kernelmem.core.errors import InputError
from kernelmem.tangents.engine.methods import GroupCost, choose_method, direction_pairs
from kernelmem.tangents.groups.base import Group
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.groups.outer import OuterGroup, VectorGroup
from kernelmem.tangents.groups.readout import ReadoutGroup
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.survey import Survey

if TYPE_CHECKING:
    import pandas

TABLE_ROWS = 36  # largest number of rows of a printed plan

# Graph and output gradients of a chunk: small enough for memory to be reused, large enough for GEMM.
CHUNK_BYTES = 128 * 2**20
SMALLEST_TILE = 256  # rows; smaller tiles do not run at full speed
WORKSPACE_BYTES = 2**23  # buffers of the libraries for products
# Peak relative to the plan if all rows are in memory, with temporaries of operations: measured up to 1.44 (convolutions).
STREAM_PEAK = 1.45
STREAM_BYTES = 512 * 2**20  # the same if all rows are in memory: convolutions are faster on more rows


@dataclass(frozen=True, repr=False)
class Plan:
    """Plan of a kernel computation. ``print(plan)`` shows it as a table, ``plan.to_frame()`` as a DataFrame."""

    n: int
    m: int
    symmetric: bool
    outputs: str
    dtype: str
    n_outputs: int
    n_parameters: int
    costs: tuple[GroupCost, ...]
    groups: tuple[Group, ...]
    dense: tuple[str, ...]
    tile: int  # rows whose tangents are held at a time, on each side
    block: int  # directions held at a time
    chunk: int  # rows of one forward pass
    passes: float  # average number of times that a row is swept
    memory: int  # bytes that may be allocated
    expected_bytes: int  # peak above what is resident, result included
    sweeps: int  # backward sweeps: outputs, or hidden directions if the readout has fewer inputs
    streamed: bool  # all rows held at once, tangents contracted direction by direction
    unused: tuple[str, ...] = ()  # parameters on which the outputs of the first rows do not depend
    cached: bool = False  # the tangents of all rows in a block of directions are held, and tiles are products of them

    def __str__(self) -> str:
        """Return the plan as a table with one line per parameter group."""
        width = max([len("parameters"), *(len(_shortened_names(cost.parameters)) for cost in self.costs)])
        total_operations = sum(cost.operations for cost in self.costs)
        header = (
            f"kernel ({self.outputs}) of {self.n:,} x {self.m:,} rows{', symmetric' if self.symmetric else ''},"
            f" {self.n_outputs} outputs, {self.n_parameters:,} parameters, {self.dtype}"
        )
        shown_costs = self.costs if len(self.costs) <= TABLE_ROWS else self.costs[: TABLE_ROWS - 1]
        table = [f"{'parameters':<{width}}  {'method':<18}{'GFLOP':>9}  {'numbers/row':>11}  alternative"]
        table += [
            f"{_shortened_names(cost.parameters):<{width}}  {cost.method:<18}{cost.operations / 1e9:>9.2f}"
            f"  {cost.numbers_per_row:>11,}  {cost.alternative}".rstrip()
            for cost in shown_costs
        ]
        if len(shown_costs) < len(self.costs):
            hidden_costs = self.costs[len(shown_costs) :]
            operations = sum(cost.operations for cost in hidden_costs) / 1e9
            table.append(f"{f'... {len(hidden_costs)} more groups':<{width}}  {'':<18}{operations:>9.2f}")
        schedule = (
            f"all rows held, one direction after another, forward passes of {self.chunk:,} rows"
            if self.streamed
            else f"tiles of {self.tile:,} rows, {self.block} directions at a time, forward passes of {self.chunk:,} rows;"
            f" each row is swept {self.passes:.1f} times"
        )
        summary = (
            f"contraction {total_operations / 1e9:.2f} GFLOP; {schedule};"
            f" about {self.expected_bytes / 2**20:.0f} of {self.memory / 2**20:.0f} MiB"
        )
        if self.unused:
            summary += f"\nnot used by the outputs of the first rows: {_shortened_names(self.unused)}"
        return "\n".join([header, *table, summary])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table of ``print(plan)`` as HTML for notebooks."""
        return f"<pre>{escape(str(self))}</pre>"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a DataFrame with one row per parameter group.

        Its columns are the parameters, method, operations, stored numbers per example, and the rejected alternative.
        """
        import pandas

        columns = [field.name for field in fields(GroupCost)]
        rows = [[", ".join(cost.parameters), *(getattr(cost, name) for name in columns[1:])] for cost in self.costs]
        return pandas.DataFrame(rows, columns=columns)


def _shortened_names(names: tuple[str, ...]) -> str:
    """Join the first two names and the number of names to a text of at most 48 characters."""
    text = ", ".join(names[:2]) + (f", ... ({len(names)})" if len(names) > 2 else "")
    return text if len(text) <= 48 else text[:45] + "..."


def make_plan(
    prepared: PreparedModel,
    survey: Survey,
    directions: OutputDirections,
    *,
    n: int,
    m: int,
    symmetric: bool,
    memory: int,
) -> Plan:
    """Return the plan for the kernel of n and m examples: a method per parameter group, and tiles that fit ``memory`` bytes.

    Raises:
        InputError: the result, with the tangents of one row on each side, does not fit.
    """
    methods = choose_methods(prepared, survey, directions, n, m, symmetric=symmetric)
    groups, sweeps = methods.groups, methods.sweeps
    itemsize = torch.finfo(prepared.dtype).bits // 8
    result_bytes = int(torch.Size(directions.result_shape(n, m)).numel()) * itemsize
    problem = _Problem(n, m, symmetric, sweeps, memory, result_bytes, itemsize)
    tiling = None if survey.dense else _streamed_tiling(groups, survey, directions, problem)
    tiling = tiling or _tiled_tiling(groups, survey, directions, prepared, problem)
    if tiling is None:
        row_bytes = sum(group.numbers_per_row(1) for group in groups) * itemsize
        raise InputError(
            f"memory of {memory / 2**20:.3g} MiB for a kernel of {result_bytes / 2**20:.3g} MiB with {row_bytes / 2**20:.2g} MiB"
            " of tangents per row",
            expected="enough memory for the kernel and the tangents of one row on each side",
            hint='raise memory=, choose fewer parameters=, pass outputs="trace", or use ntk_store, which writes the kernel'
            " to a file, or ntk_operator, which never forms it",
        )
    return scheduled_plan(prepared, methods, directions, survey.dense, (n, m, symmetric), tiling, memory)


def scheduled_plan(
    prepared: PreparedModel,
    methods: "Methods",
    directions: OutputDirections,
    dense: tuple[str, ...],
    shape: tuple[int, int, bool],
    tiling: "Tiling",
    memory: int,
) -> Plan:
    """Return the plan with these methods and sizes, for a kernel of ``shape`` (n, m, symmetric)."""
    return Plan(
        *shape,
        directions.outputs,
        str(prepared.dtype).removeprefix("torch."),
        prepared.n_outputs,
        prepared.n_parameters,
        methods.costs,
        methods.groups,
        dense,
        tiling.tile,
        tiling.block,
        tiling.chunk,
        tiling.passes,
        memory,
        tiling.used_bytes,
        methods.sweeps,
        tiling.streamed,
        prepared.unused,
        tiling.cached,
    )


@dataclass(frozen=True)
class Methods:
    """Contraction methods of all parameter groups, their costs, and the number of backward sweeps of each row."""

    costs: tuple[GroupCost, ...]
    groups: tuple[Group, ...]
    sweeps: int


def choose_methods(
    prepared: PreparedModel, survey: Survey, directions: OutputDirections, n: int, m: int, *, symmetric: bool
) -> Methods:
    """Choose the cheapest contraction of each parameter group for the kernel of n and m examples."""
    pairs = n * m * (0.5 if symmetric else 1.0)
    costs, groups = list[GroupCost](), list[Group]()
    for group in survey.groups:
        cost, planned_group = choose_method(group, directions, survey, n, m, pairs)
        costs.append(cost)
        groups.append(planned_group)
    if survey.dense:
        for obstacle in dict.fromkeys(survey.obstacles[name] for name in survey.dense):
            names = tuple(name for name in survey.dense if survey.obstacles[name] == obstacle)
            n_dense = sum(prepared.parameters[name].numel() for name in names)
            operations = 2 * pairs * n_dense * direction_pairs(directions)
            costs.append(GroupCost(names, "dense", operations, n_dense, obstacle))
    sweeps = directions.k
    is_compressed = (
        directions.outputs == "trace" and not survey.dense and any(isinstance(g, ReadoutGroup) for g in groups)
    )
    if is_compressed and survey.readout is not None:
        sweeps = len(survey.readout.compressed)
    return Methods(tuple(costs), tuple(groups), sweeps)


@dataclass(frozen=True)
class _Problem:
    """Size of the kernel computation, and the memory available to it."""

    n: int
    m: int
    symmetric: bool
    sweeps: int
    memory: int
    result_bytes: int
    itemsize: int

    @property
    def spare_numbers(self) -> float:
        """How many numbers fit in memory in addition to the result, with a fifth left unused for fragmentation."""
        return 0.8 * (self.memory - self.result_bytes) / self.itemsize

    @property
    def workspace_bytes(self) -> int:
        """Buffers of the libraries for products, at most an eighth of the memory in addition to the result."""
        return min(WORKSPACE_BYTES, max(0, self.memory - self.result_bytes) // 8)


@dataclass(frozen=True)
class Tiling:
    """Tile and block sizes; their cost is the number of examples swept, times the passes over each of them."""

    cost: float
    tile: int
    block: int
    chunk: int
    passes: float
    used_bytes: int
    streamed: bool = False
    cached: bool = False


def graph_numbers(survey: Survey) -> tuple[int, int]:
    """Return the numbers per example in the graph of a forward pass, and in the gradients of one backward pass."""
    graph_numbers = 2 * survey.saved + sum(sum(pair) for pair in survey.elements.values())
    return graph_numbers, sum(output for _, output in survey.elements.values())


def _streamed_tiling(
    groups: Sequence[Group], survey: Survey, directions: OutputDirections, problem: _Problem
) -> Tiling | None:
    """Return sizes that keep all examples and their graphs in memory, or None if they do not fit."""
    if directions.combine == "full" or not any(group.streams for group in groups):
        return None
    graph, gradient_numbers = graph_numbers(survey)
    row_numbers = survey.saved + 2 * gradient_numbers  # output gradients of a sweep, and temporaries of the same size
    # Buffers of one group, reused by the others: of groups that are contracted once, before those that stream; the
    # activations of these are kept from one direction to the next.
    contracted_once = streamed = kept_activations = 0
    for group in groups:
        if group.all_directions:
            row_numbers += group.numbers_per_row(1) if isinstance(group, ReadoutGroup) else 0
            contracted_once = max(contracted_once, group.numbers_per_row(1) + activation_numbers(group))
        elif group.streams:
            kept_activations += activation_numbers(group)
            streamed = max(streamed, group.numbers_per_row(1))
        else:
            row_numbers += problem.sweeps * sum(survey.elements[key][1] for key in group.keys)
            streamed = max(streamed, group.numbers_per_row(problem.sweeps) + activation_numbers(group))
    n_rows = problem.n if problem.symmetric else problem.n + problem.m
    row_numbers += max(contracted_once, kept_activations + streamed)
    used_bytes = problem.result_bytes + problem.workspace_bytes + problem.itemsize * n_rows * row_numbers
    if problem.result_bytes + STREAM_PEAK * (used_bytes - problem.result_bytes) > problem.memory:
        return None
    longest_side = max(problem.n, problem.m)
    bytes_per_row = problem.itemsize * (graph + gradient_numbers)
    chunk = -(-longest_side // max(1, round(longest_side * bytes_per_row / STREAM_BYTES)))  # passes of equal length
    return Tiling(n_rows * (problem.sweeps + 1), max(problem.n, problem.m), 1, chunk, 1.0, used_bytes, streamed=True)


def activation_numbers(group: Group) -> int:
    """Return the numbers per example in the activations of outer products; 0 for groups without outer products."""
    if not isinstance(group, OuterGroup) or isinstance(group, ReadoutGroup):
        return 0
    return group.shape.groups * group.shape.positions * group.fan_in


def _tiled_tiling(
    groups: Sequence[Group], survey: Survey, directions: OutputDirections, prepared: PreparedModel, problem: _Problem
) -> Tiling | None:
    """Return the tile of examples and block of output directions of lowest cost that fit in memory; None if none fits."""
    n, m, sweeps, symmetric = problem.n, problem.m, problem.sweeps, problem.symmetric
    spare, itemsize = problem.spare_numbers, problem.itemsize
    graph, swept = graph_numbers(survey)
    # Numbers per pair of rows in the temporaries of one pair of tiles.
    per_pair = 1 + (directions.k**2 if directions.combine == "full" else 0)
    best: Tiling | None = None
    for block in candidate_blocks(groups, survey, sweeps, directions.combine):
        tangents = tangent_numbers(groups, survey, prepared, block)
        per_row = pass_numbers(groups, survey, prepared, block)
        chunk = int(min(1024, CHUNK_BYTES / itemsize // max(1, graph + block * swept), spare / 3 // max(1, per_row)))
        tile_numbers = spare - max(1, chunk) * per_row
        if tile_numbers <= 0:
            continue
        cached_numbers = (n if symmetric else n + m) * tangents
        tile = int(max(0.0, (tile_numbers - cached_numbers) / per_pair) ** 0.5)
        cached = tile >= min(SMALLEST_TILE, max(n, m))
        if not cached:
            tile = _largest_tile(tile_numbers, 2 * tangents, per_pair)
        if tile < 1:
            continue
        tile = min(tile, max(n, m))
        n_tiles = -(-n // tile), -(-m // tile)
        if cached:
            swept_rows, held_numbers = (n if symmetric else n + m), cached_numbers
        else:
            swept_rows = n_tiles[0] * (n_tiles[1] + 1) / 2 * min(tile, n) if symmetric else n + m * n_tiles[0]
            held_numbers = 2 * tile * tangents
        # A full kernel in a single tile is contracted in place, without a copy of the result.
        is_single = directions.combine == "full" and tile == max(n, m)
        pair_numbers = tile * tile * (1 + directions.k if is_single else per_pair)
        used_numbers = held_numbers + max(max(1, chunk) * per_row, pair_numbers)
        used_bytes = problem.result_bytes + problem.workspace_bytes + itemsize * used_numbers
        tiling = Tiling(
            cost=swept_rows * (sweeps + sweeps / block),
            tile=tile,
            block=block,
            chunk=max(1, min(chunk, tile)),
            passes=swept_rows / n * sweeps / block,
            used_bytes=int(used_bytes),
            cached=cached,
        )
        if best is None or tiling.cost < best.cost:
            best = tiling
    return best


def pass_numbers(groups: Sequence[Group], survey: Survey, prepared: PreparedModel, block: int) -> int:
    """Return the numbers per example while a pass is swept in ``block`` directions, without the tangents that it writes.

    They are the saved part of the graph, output gradients of one direction with temporaries of the same size, those of all
    directions, and operands of the products. Factors of vectors are views of them; other tangents are written to their buffers.
    """
    numbers = survey.saved + 2 * graph_numbers(survey)[1]
    for group in groups:
        if not group.all_directions:
            numbers += block * sum(survey.elements[key][1] for key in group.keys)
        if not isinstance(group, VectorGroup | ReadoutGroup) and group.buffer_shape(1, 1) is None:
            numbers += group.numbers_per_row(1 if group.all_directions else block)
    numbers += max((activation_numbers(group) for group in groups if not isinstance(group, VectorGroup)), default=0)
    return numbers + sum(prepared.parameters[name].numel() for name in survey.dense) * block


def _largest_tile(available: float, per_row: float, per_pair: float) -> int:
    """Return the largest integer t with per_row·t + per_pair·t² <= available."""
    return int((-per_row + (per_row**2 + 4 * per_pair * available) ** 0.5) / (2 * per_pair))


def candidate_blocks(groups: Sequence[Group], survey: Survey, k: int, combine: str) -> list[int]:
    """Return candidates, largest first, for how many of k directions are in memory together.

    The full kernel needs all k, and groups that are contracted once for all directions need one pass only.
    """
    if combine == "full" or (not survey.dense and all(group.all_directions for group in groups)):
        return [k]
    return sorted({-(-k // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, k)}, reverse=True)


def tangent_numbers(groups: Sequence[Group], survey: Survey, prepared: PreparedModel, block: int) -> int:
    """Return the numbers per example in the tangents of all groups and dense parameters, in ``block`` directions."""
    tangents = sum(group.numbers_per_row(1 if group.all_directions else block) for group in groups)
    return tangents + sum(prepared.parameters[name].numel() for name in survey.dense) * block
