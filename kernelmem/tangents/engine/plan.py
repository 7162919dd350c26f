"""Plan of a kernel computation: contraction method per parameter group, tile sizes, operation and byte counts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from typing import TYPE_CHECKING

import torch

from kernelmem.core.errors import InputError
from kernelmem.tangents.capture import OuterShape
from kernelmem.tangents.groups.base import Group
from kernelmem.tangents.groups.directions import OUTPUT_KINDS, OutputDirections
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.outer import (
    ChannelGroup,
    ExplicitGroup,
    OuterGroup,
    ReadoutGroup,
    TokenGroup,
    VectorGroup,
)
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.survey import Survey

if TYPE_CHECKING:
    import pandas

TABLE_ROWS = 36  # of a printed plan

CHUNK_BYTES = (
    128 * 2**20
)  # graph and output gradients of a chunk: small enough for memory to be reused, large enough for GEMM
STREAM_BYTES = 256 * 2**20  # the same if all rows are held: convolutions are faster on more rows
CACHE_NUMBERS = 2**24  # numbers that stay in the last-level cache until they are read again


@dataclass(frozen=True)
class GroupCost:
    """Method chosen for one group of parameters, and its cost."""

    parameters: tuple[str, ...]
    method: str
    operations: float  # multiplications and additions for the whole kernel, products and Gram matrices
    numbers_per_row: int  # numbers kept per row and direction
    alternative: str = ""  # the other method, with its GFLOP


@dataclass(frozen=True, repr=False)
class Plan:
    """Frozen plan of a kernel computation. ``print(plan)`` shows it as a table, ``plan.to_frame()`` as a DataFrame."""

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
    passes: float  # how often a row is swept, on average
    memory: int  # bytes
    expected_bytes: int  # peak above what is resident, result included
    sweeps: int  # backward sweeps: outputs, or hidden directions if the readout has fewer inputs
    streamed: bool  # all rows held at once, tangents contracted direction by direction

    def __str__(self) -> str:
        width = max([len("parameters"), *(len(_short(cost.parameters)) for cost in self.costs)])
        total = sum(cost.operations for cost in self.costs)
        head = (
            f"kernel ({self.outputs}) of {self.n:,} x {self.m:,} rows{', symmetric' if self.symmetric else ''},"
            f" {self.n_outputs} outputs, {self.n_parameters:,} parameters, {self.dtype}"
        )
        shown = self.costs if len(self.costs) <= TABLE_ROWS else self.costs[: TABLE_ROWS - 1]
        table = [f"{'parameters':<{width}}  {'method':<18}{'GFLOP':>9}  {'numbers/row':>11}  alternative"]
        table += [
            f"{_short(cost.parameters):<{width}}  {cost.method:<18}{cost.operations / 1e9:>9.2f}"
            f"  {cost.numbers_per_row:>11,}  {cost.alternative}".rstrip()
            for cost in shown
        ]
        if len(shown) < len(self.costs):
            rest = self.costs[len(shown) :]
            operations = sum(cost.operations for cost in rest) / 1e9
            table.append(f"{f'... {len(rest)} more groups':<{width}}  {'':<18}{operations:>9.2f}")
        schedule = (
            f"all rows held, one direction after another, forward passes of {self.chunk:,} rows"
            if self.streamed
            else f"tiles of {self.tile:,} rows, {self.block} directions at a time, forward passes of {self.chunk:,} rows;"
            f" each row is swept {self.passes:.1f} times"
        )
        tail = (
            f"contraction {total / 1e9:.2f} GFLOP; {schedule};"
            f" about {self.expected_bytes / 2**20:.0f} of {self.memory / 2**20:.0f} MiB"
        )
        return "\n".join([head, *table, tail])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return f"<pre>{escape(str(self))}</pre>"

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per group: parameters, method, operations, numbers per row, alternative."""
        import pandas

        columns = [field.name for field in fields(GroupCost)]
        rows = [[", ".join(cost.parameters), *(getattr(cost, name) for name in columns[1:])] for cost in self.costs]
        return pandas.DataFrame(rows, columns=columns)


def _short(names: tuple[str, ...]) -> str:
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
    """Choose a method for each group, and tiles that fit ``memory`` bytes.

    Raises:
        InputError: the result, with the tangents of one row on each side, does not fit.
    """
    pairs = n * m * (0.5 if symmetric else 1.0)
    costs, groups = [], []
    for group in survey.groups:
        cost, chosen = _choose(group, directions, survey, n, m, pairs)
        costs.append(cost)
        groups.append(chosen)
    if survey.dense:
        p = sum(prepared.parameters[name].numel() for name in survey.dense)
        costs.append(GroupCost(survey.dense, "dense", 2 * pairs * p * _combinations(directions), p))
    k = directions.k
    compressed = directions.outputs == "trace" and not survey.dense and any(isinstance(g, ReadoutGroup) for g in groups)
    if compressed and survey.readout is not None:
        k = len(survey.readout.compressed)
    itemsize = torch.finfo(prepared.dtype).bits // 8
    result = int(torch.Size(directions.result_shape(n, m)).numel()) * itemsize
    sizes = _Sizes(n, m, symmetric, k, memory, result, itemsize)
    tiling = None if survey.dense else _streamed(groups, survey, directions, sizes)
    tiling = tiling or _tiled(groups, survey, directions, prepared, sizes)
    if tiling is None:
        row_bytes = sum(group.numbers_per_row(1) for group in groups) * itemsize
        raise InputError(
            f"memory of {memory / 2**20:.3g} MiB for a kernel of {result / 2**20:.3g} MiB with {row_bytes / 2**20:.2g} MiB"
            " of tangents per row",
            expected="enough memory for the kernel and the tangents of one row on each side",
            hint='raise memory=, choose fewer parameters=, pass outputs="trace", or use ntk_operator, which never forms the'
            " kernel",
        )
    return Plan(
        n,
        m,
        symmetric,
        directions.outputs,
        str(prepared.dtype).removeprefix("torch."),
        prepared.n_outputs,
        prepared.n_parameters,
        tuple(costs),
        tuple(groups),
        survey.dense,
        tiling.tile,
        tiling.block,
        tiling.chunk,
        tiling.passes,
        memory,
        tiling.used,
        k,
        tiling.streamed,
    )


@dataclass(frozen=True)
class _Sizes:
    """Size of the problem, and the memory for it."""

    n: int
    m: int
    symmetric: bool
    sweeps: int
    memory: int
    result: int  # bytes
    itemsize: int

    @property
    def spare(self) -> float:
        """Numbers that fit besides the result; a fifth of the memory is left for heap fragmentation."""
        return 0.8 * (self.memory - self.result) / self.itemsize


@dataclass(frozen=True)
class _Tiling:
    """One choice of sizes. Cost: rows swept times (directions + one forward pass per block of them)."""

    cost: float
    tile: int
    block: int
    chunk: int
    passes: float
    used: int  # bytes
    streamed: bool = False


def _graph(survey: Survey) -> tuple[int, int]:
    """Numbers per row: in the graph of a forward pass, and in the output gradients of one sweep."""
    graph = 2 * survey.saved + sum(sum(pair) for pair in survey.elements.values())
    return graph, sum(output for _, output in survey.elements.values())


def _streamed(groups: Sequence[Group], survey: Survey, directions: OutputDirections, sizes: _Sizes) -> _Tiling | None:
    """All rows in memory with their graphs, tangents of one direction at a time, so that nothing is swept twice."""
    if directions.combine == "full" or not any(group.streams for group in groups):
        return None
    graph, swept = _graph(survey)
    row = graph + 2 * swept  # output gradients of a sweep, and temporaries of the same size
    largest = 0  # buffer of one group; groups reuse it
    for group in groups:
        if group.all_directions:
            row += group.numbers_per_row(1) if isinstance(group, ReadoutGroup) else 0
            largest = max(largest, group.numbers_per_row(1) + _patches(group))
        elif group.streams:
            row += _patches(group)  # kept from one direction to the next
            largest = max(largest, group.numbers_per_row(1))
        else:
            row += sizes.sweeps * sum(survey.elements[key][1] for key in group.keys)
            largest = max(largest, group.numbers_per_row(sizes.sweeps) + _patches(group))
    n = sizes.n if sizes.symmetric else sizes.n + sizes.m
    used = sizes.result + sizes.itemsize * n * (row + 2 * largest)
    if used > sizes.memory:
        return None
    longest = max(sizes.n, sizes.m)
    passes = max(1, round(longest * sizes.itemsize * (graph + swept) / STREAM_BYTES))  # of equal length
    chunk = -(-longest // passes)
    return _Tiling(n * (sizes.sweeps + 1), max(sizes.n, sizes.m), 1, chunk, 1.0, used, streamed=True)


def _patches(group: Group) -> int:
    """Numbers per row in the activations of outer products (image patches of convolutions)."""
    if not isinstance(group, OuterGroup) or isinstance(group, ReadoutGroup):
        return 0
    return group.shape.groups * group.shape.positions * group.fan_in


def _tiled(
    groups: Sequence[Group], survey: Survey, directions: OutputDirections, prepared: PreparedModel, sizes: _Sizes
) -> _Tiling | None:
    """Tiles of rows and blocks of directions that fit, with the least sweeping."""
    n, m, k, symmetric, spare, itemsize = sizes.n, sizes.m, sizes.sweeps, sizes.symmetric, sizes.spare, sizes.itemsize
    graph, swept = _graph(survey)
    patches = max((_patches(group) for group in groups), default=0)
    # Numbers per pair of rows in the temporaries of one pair of tiles.
    pair = 1 + (directions.k**2 if directions.combine == "full" else 0)
    best: _Tiling | None = None
    for block in _blocks(k, directions.combine):
        kept = sum(group.numbers_per_row(1 if group.all_directions else block) for group in groups)
        kept += sum(prepared.parameters[name].numel() for name in survey.dense) * block
        # Numbers per row while a chunk is swept: graph, output gradients, and operands of the products.
        row = graph + 2 * block * swept + kept + patches
        chunk = int(min(1024, CHUNK_BYTES / itemsize // max(1, graph + block * swept), spare / 3 // max(1, row)))
        free = spare - max(1, chunk) * row
        if free <= 0:
            continue
        one_tile = symmetric and n * kept + n * n * pair <= free
        tile = max(n, m) if one_tile else _largest_tile(free, 2 * kept, pair)
        if tile < 1:
            continue
        tile = min(tile, max(n, m))
        tiles = -(-n // tile), -(-m // tile)
        swept_rows = tiles[0] * (tiles[1] + 1) / 2 * min(tile, n) if symmetric else n + m * tiles[0]
        sides = 1 if symmetric and tile >= n else 2
        used = sizes.result + itemsize * (max(1, chunk) * row + sides * tile * kept + tile * tile * pair)
        passes = swept_rows / n * k / block
        tiling = _Tiling(swept_rows * (k + k / block), tile, block, max(1, min(chunk, tile)), passes, int(used))
        if best is None or tiling.cost < best.cost:
            best = tiling
    return best


def _largest_tile(free: float, per_row: float, per_pair: float) -> int:
    """The largest t with per_row·t + per_pair·t² <= free."""
    return int((-per_row + (per_row**2 + 4 * per_pair * free) ** 0.5) / (2 * per_pair))


def _blocks(k: int, combine: str) -> list[int]:
    """Candidate numbers of directions held at a time: all, or fewer if the kernel is a sum over them."""
    if combine == "full":
        return [k]
    return sorted({-(-k // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, k)}, reverse=True)


def _combinations(directions: OutputDirections) -> int:
    return directions.k**2 if directions.combine == "full" else directions.k


def _choose(
    group: Group, directions: OutputDirections, survey: Survey, n: int, m: int, pairs: float
) -> tuple[GroupCost, Group]:
    """Choose the cheaper method for one group."""
    k, grams, readout = directions.k, _combinations(directions), survey.readout
    if isinstance(group, MixedGroup):
        p = sum(shape.numel() for shape in group.shapes)
        direct = not any(survey.elements[key][1] for key in group.keys)
        return GroupCost(group.names, "summed", 2 * pairs * p * grams, p), replace(group, streams=direct)
    assert isinstance(group, OuterGroup)
    shape = group.shape
    fan_in = group.fan_in
    values = {field.name: getattr(group, field.name) for field in fields(OuterGroup)}
    factored = False
    if readout is not None and directions.outputs in OUTPUT_KINDS[:3]:
        if group.keys == (readout.key,):
            cost = GroupCost(group.names, "readout", 2 * pairs * fan_in, fan_in)
            return cost, ReadoutGroup(**values, n_outputs=directions.n_outputs)
        factored = len(group.keys) == 1 and group.keys[0] in readout.factored
    if factored and directions.outputs == "trace":
        k = grams = 1
        values["factored"] = True
    note = ", factored" if values["factored"] else ""
    if isinstance(group, VectorGroup):
        cost = GroupCost(
            group.names, "vector" + note, 2 * pairs * (fan_in + grams * shape.fan_out), fan_in + shape.fan_out
        )
        return cost, VectorGroup(**values)
    p = shape.groups * fan_in * shape.fan_out
    rows = n if pairs < n * m else n + m
    explicit = 2 * rows * k * shape.positions * p + 2 * pairs * grams * p
    token = (
        2 * pairs * shape.positions**2 * (fan_in + k * shape.fan_out) * 1.5
    )  # elementwise passes are slower than GEMM
    if factored and directions.outputs == "full":
        assert readout is not None
        operations = 2 * rows * shape.positions * p + 2 * pairs * (p + grams * shape.fan_out)
        cost = GroupCost(group.names, "channels", operations, p, f"explicit {explicit / 1e9:.2f}")
        return cost, ChannelGroup(**values, readout=readout.weight)
    if directions.combine == "sum" and shape.groups == 1 and token < explicit:
        cost = GroupCost(
            group.names, "token", token, shape.positions * (fan_in + shape.fan_out), f"explicit {explicit / 1e9:.2f}"
        )
        return cost, TokenGroup(**values)
    values["streams"] = not values["factored"] and _streams(shape, fan_in, rows, k)
    return GroupCost(group.names, "explicit" + note, explicit, p, f"token {token / 1e9:.2f}"), ExplicitGroup(**values)


def _streams(shape: OuterShape, fan_in: int, rows: int, k: int) -> bool:
    """Return True if one direction after another moves fewer numbers than all directions together.

    One by one, the activations are read again for each direction; together, gradients are copied into one tensor.
    Tangents larger than the cache are written to memory and read again.
    """
    activations, gradients, tangents = shape.positions * fan_in, shape.positions * shape.fan_out, fan_in * shape.fan_out

    def spilled(numbers: int) -> int:
        return 2 * numbers if rows * shape.groups * numbers > CACHE_NUMBERS else 0

    one_by_one = k * (activations + gradients + spilled(tangents))
    return one_by_one <= activations + 3 * k * gradients + spilled(k * tangents)
