"""What a kernel computation will do, counted before it runs: a way for each group, tile sizes, operations, bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

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

__all__ = ["GroupCost", "Plan", "make_plan"]

CHUNK_BYTES = 128 * 2**20  # of graph and output gradients at a time: small enough to be reused, large enough for GEMM
STREAM_BYTES = 256 * 2**20  # the same where rows stay: convolutions run faster on more rows
CACHE_NUMBERS = 2**24  # numbers that are read again before they leave the processor's last cache


@dataclass(frozen=True)
class GroupCost:
    """One group: its parameters, the way that was chosen, what it costs."""

    parameters: tuple[str, ...]
    way: str
    operations: float  # multiplications and additions of the whole kernel, products and Gram
    numbers_per_row: int  # numbers kept a row and direction
    rejected: str = ""  # the other way, with its operations


@dataclass(frozen=True)
class Plan:
    """A frozen plan. ``print(plan)`` shows it as a table."""

    n: int
    m: int
    symmetric: bool
    outputs: str
    dtype: str
    n_outputs: int
    n_parameters: int
    lines: tuple[GroupCost, ...]
    groups: tuple[Group, ...]
    dense: tuple[str, ...]
    tile: int  # rows whose tangents are held at a time, on each side
    block: int  # directions held at a time
    chunk: int  # rows of one forward pass
    passes: float  # how often a row is swept, on average
    memory: int
    expected_bytes: int  # peak above what is resident, result included
    sweeps: int  # backward sweeps: outputs, or hidden directions where the readout has fewer
    streamed: bool  # all rows at once, tangents contracted direction by direction

    def __str__(self) -> str:
        wide = max([len("parameters"), *(len(_short(line.parameters)) for line in self.lines)])
        total = sum(line.operations for line in self.lines)
        head = (
            f"kernel ({self.outputs}) of {self.n:,} x {self.m:,} rows{', symmetric' if self.symmetric else ''},"
            f" {self.n_outputs} outputs, {self.n_parameters:,} parameters, {self.dtype}"
        )
        rows = [f"{'parameters':<{wide}}  {'way':<18}{'GFLOP':>9}  {'kept a row':>11}  otherwise"]
        for line in self.lines:
            rows.append(
                f"{_short(line.parameters):<{wide}}  {line.way:<18}{line.operations / 1e9:>9.2f}"
                f"  {line.numbers_per_row:>11,}  {line.rejected}".rstrip()
            )
        how = (
            f"all rows held, one direction after another, forward passes of {self.chunk:,} rows"
            if self.streamed
            else f"tiles of {self.tile:,} rows, {self.block} directions at a time, forward passes of {self.chunk:,} rows;"
            f" every row is swept {self.passes:.1f} times"
        )
        tail = (
            f"contraction {total / 1e9:.2f} GFLOP; {how};"
            f" about {self.expected_bytes / 2**20:.0f} of {self.memory / 2**20:.0f} MiB"
        )
        return "\n".join([head, *rows, tail])


def _short(names: tuple[str, ...]) -> str:
    text = ", ".join(names[:2]) + (f", ... ({len(names)})" if len(names) > 2 else "")
    return text if len(text) <= 48 else text[:45] + "..."


def make_plan(
    prepared: PreparedModel,
    found: Survey,
    directions: OutputDirections,
    *,
    n: int,
    m: int,
    symmetric: bool,
    memory: int,
) -> Plan:
    """Choose a way for each group, and tiles that fit ``memory`` bytes.

    Raises:
        InputError: the result, with the tangents of one row on each side, does not fit.
    """
    pairs = n * m * (0.5 if symmetric else 1.0)
    lines, groups = [], []
    for group in found.groups:
        line, chosen = _choose(group, directions, found, n, m, pairs)
        lines.append(line)
        groups.append(chosen)
    if found.dense:
        p = sum(prepared.parameters[name].numel() for name in found.dense)
        lines.append(GroupCost(found.dense, "dense", 2 * pairs * p * _combinations(directions), p))
    k = directions.k
    compressed = directions.outputs == "trace" and not found.dense and any(isinstance(g, ReadoutGroup) for g in groups)
    if compressed and found.readout is not None:
        k = len(found.readout.compressed)
    itemsize = torch.finfo(prepared.dtype).bits // 8
    result = int(torch.Size(directions.result_shape(n, m)).numel()) * itemsize
    sizes = _Sizes(n, m, symmetric, k, memory, result, itemsize)
    best = None if found.dense else _streamed(groups, found, directions, sizes)
    best = best or _tiled(groups, found, directions, prepared, sizes)
    if best is None:
        least = sum(group.numbers_per_row(1) for group in groups) * itemsize
        raise InputError(
            f"memory of {memory / 2**20:.3g} MiB for a kernel of {result / 2**20:.3g} MiB with {least / 2**20:.2g} MiB"
            " of tangents a row",
            expected="room for the kernel and for the tangents of one row on each side",
            hint='raise memory=, choose fewer parameters=, or take outputs="trace"; ntk_operator never forms the kernel',
        )
    return Plan(
        n,
        m,
        symmetric,
        directions.outputs,
        str(prepared.dtype).removeprefix("torch."),
        prepared.n_outputs,
        prepared.n_parameters,
        tuple(lines),
        tuple(groups),
        found.dense,
        best.tile,
        best.block,
        best.chunk,
        best.passes,
        memory,
        best.used,
        k,
        best.streamed,
    )


@dataclass(frozen=True)
class _Sizes:
    """How much there is to do, and the room for it."""

    n: int
    m: int
    symmetric: bool
    sweeps: int
    memory: int
    result: int  # bytes
    itemsize: int

    @property
    def spare(self) -> float:
        """Numbers that fit beside the result; a fifth is left for holes between tensors of many sizes."""
        return 0.8 * (self.memory - self.result) / self.itemsize


@dataclass(frozen=True)
class _Tiling:
    """One choice of sizes: rows swept times (directions + a forward pass for each block of them), and what it needs."""

    cost: float
    tile: int
    block: int
    chunk: int
    passes: float
    used: int
    streamed: bool = False


def _graph(found: Survey) -> tuple[int, int]:
    """Numbers a row: in the graph of a forward pass, and in the output gradients of one sweep."""
    graph = 2 * found.saved + sum(sum(pair) for pair in found.elements.values())
    return graph, sum(output for _, output in found.elements.values())


def _streamed(groups: Sequence[Group], found: Survey, directions: OutputDirections, sizes: _Sizes) -> _Tiling | None:
    """All rows in memory with their graph, tangents of one direction at a time: nothing is swept twice."""
    if directions.combine == "full" or not any(group.streams for group in groups):
        return None
    graph, swept = _graph(found)
    row = graph + 2 * swept  # output gradients of a sweep, and as much again inside it
    most = 0  # of a group's own space, one after the other
    for group in groups:
        if group.all_directions:
            row += group.numbers_per_row(1) if isinstance(group, ReadoutGroup) else 0
            most = max(most, group.numbers_per_row(1) + _patches(group))
        elif group.streams:
            row += _patches(group)  # kept from one direction to the next
            most = max(most, group.numbers_per_row(1))
        else:
            row += sizes.sweeps * sum(found.elements[key][1] for key in group.keys)
            most = max(most, group.numbers_per_row(sizes.sweeps) + _patches(group))
    n = sizes.n if sizes.symmetric else sizes.n + sizes.m
    used = sizes.result + sizes.itemsize * n * (row + 2 * most)
    if used > sizes.memory:
        return None
    longest = max(sizes.n, sizes.m)
    passes = max(1, round(longest * sizes.itemsize * (graph + swept) / STREAM_BYTES))  # of equal length
    chunk = -(-longest // passes)
    return _Tiling(n * (sizes.sweeps + 1), max(sizes.n, sizes.m), 1, chunk, 1.0, used, streamed=True)


def _patches(group: Group) -> int:
    """Numbers a row in the activations of outer products, where they are formed."""
    if not isinstance(group, OuterGroup) or isinstance(group, ReadoutGroup):
        return 0
    return group.shape.groups * group.shape.positions * group.fan_in


def _tiled(
    groups: Sequence[Group], found: Survey, directions: OutputDirections, prepared: PreparedModel, sizes: _Sizes
) -> _Tiling | None:
    """Tiles of rows and blocks of directions that fit, with the least to sweep."""
    n, m, k, symmetric, spare, itemsize = sizes.n, sizes.m, sizes.sweeps, sizes.symmetric, sizes.spare, sizes.itemsize
    graph, swept = _graph(found)
    patches = max((_patches(group) for group in groups), default=0)
    # Blocks of one pair of tiles, beside the result.
    pair = 1 + (directions.k**2 if directions.combine == "full" else 0)
    best: _Tiling | None = None
    for block in _blocks(k, directions.combine):
        kept = sum(group.numbers_per_row(1 if group.all_directions else block) for group in groups)
        kept += sum(prepared.parameters[name].numel() for name in found.dense) * block
        # While a chunk is swept: graph, stacks, and what a product needs beside.
        row = graph + 2 * block * swept + kept + patches
        chunk = int(min(1024, CHUNK_BYTES / itemsize // max(1, graph + block * swept), spare / 3 // max(1, row)))
        room = spare - max(1, chunk) * row
        if room <= 0:
            continue
        whole = symmetric and n * kept + n * n * pair <= room
        tile = max(n, m) if whole else _largest_tile(room, 2 * kept, pair)
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


def _largest_tile(room: float, a_row: float, a_pair: float) -> int:
    """The largest t with a_row·t + a_pair·t² <= room."""
    return int((-a_row + (a_row**2 + 4 * a_pair * room) ** 0.5) / (2 * a_pair))


def _blocks(k: int, combine: str) -> list[int]:
    """Numbers of directions that may be held at a time: all, or where the kernel is a sum over them, fewer."""
    if combine == "full":
        return [k]
    return sorted({-(-k // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, k)}, reverse=True)


def _combinations(directions: OutputDirections) -> int:
    return directions.k**2 if directions.combine == "full" else directions.k


def _choose(
    group: Group, directions: OutputDirections, found: Survey, n: int, m: int, pairs: float
) -> tuple[GroupCost, Group]:
    """The cheaper way for one group."""
    k, times, readout = directions.k, _combinations(directions), found.readout
    if isinstance(group, MixedGroup):
        p = sum(shape.numel() for shape in group.shapes)
        direct = not any(found.elements[key][1] for key in group.keys)
        return GroupCost(group.names, "summed", 2 * pairs * p * times, p), replace(group, streams=direct)
    assert isinstance(group, OuterGroup)
    o = group.shape
    fan_in = group.fan_in
    values = {field.name: getattr(group, field.name) for field in fields(OuterGroup)}
    factored = False
    if readout is not None and directions.outputs in OUTPUT_KINDS[:3]:
        if group.keys == (readout.key,):
            line = GroupCost(group.names, "readout", 2 * pairs * fan_in, fan_in)
            return line, ReadoutGroup(**values, n_outputs=directions.n_outputs)
        factored = len(group.keys) == 1 and group.keys[0] in readout.factored
    if factored and directions.outputs == "trace":
        k = times = 1
        values["factored"] = True
    note = ", factored" if values["factored"] else ""
    if isinstance(group, VectorGroup):
        line = GroupCost(group.names, "vector" + note, 2 * pairs * (fan_in + times * o.fan_out), fan_in + o.fan_out)
        return line, VectorGroup(**values)
    p = o.groups * fan_in * o.fan_out
    rows = n if pairs < n * m else n + m
    explicit = 2 * rows * k * o.positions * p + 2 * pairs * times * p
    token = 2 * pairs * o.positions**2 * (fan_in + k * o.fan_out) * 1.5  # element by element passes are dear
    if factored and directions.outputs == "full":
        assert readout is not None
        cost = 2 * rows * o.positions * p + 2 * pairs * (p + times * o.fan_out)
        line = GroupCost(group.names, "channels", cost, p, f"explicit {explicit / 1e9:.2f}")
        return line, ChannelGroup(**values, readout=readout.weight)
    if directions.combine == "sum" and o.groups == 1 and token < explicit:
        line = GroupCost(
            group.names, "token", token, o.positions * (fan_in + o.fan_out), f"explicit {explicit / 1e9:.2f}"
        )
        return line, TokenGroup(**values)
    values["streams"] = not values["factored"] and _streams(o, fan_in, rows, k)
    return GroupCost(group.names, "explicit" + note, explicit, p, f"token {token / 1e9:.2f}"), ExplicitGroup(**values)


def _streams(o: OuterShape, fan_in: int, rows: int, k: int) -> bool:
    """Whether one direction after another moves fewer numbers than all of them side by side.

    One by one, the activations are read again for each direction; side by side, gradients are copied beside one
    another. Tangents are written and read again where they outgrow the cache.
    """
    activations, gradients, tangents = o.positions * fan_in, o.positions * o.fan_out, fan_in * o.fan_out

    def spilled(numbers: int) -> int:
        return 2 * numbers if rows * o.groups * numbers > CACHE_NUMBERS else 0

    one_by_one = k * (activations + gradients + spilled(tangents))
    return one_by_one <= activations + 3 * k * gradients + spilled(k * tangents)
