"""Plan of a stored kernel: tiles, operations, memory, disk and expected time, refused where they do not fit."""

import itertools
import math
import shutil
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from kernelmem.core.errors import InputError
from kernelmem.core.memory import check_available_memory
from kernelmem.kernels import verification
from kernelmem.kernels.large.worker import Schedule
from kernelmem.tangents.engine.engine import Engine
from kernelmem.tangents.engine.plan import (
    CHUNK_BYTES,
    SMALLEST_TILE,
    Plan,
    candidate_blocks,
    graph_numbers,
    pass_numbers,
    tangent_numbers,
)
from kernelmem.tangents.groups.outer import OuterGroup

LARGEST_TILE = 2048  # rows: products run at full speed, and a tile is written in a hundredth of the time it takes
# Numbers per entry of a tile: the tile, the factor of one group, and the tile that is being written with the copies that its
# check, hash and SQL statement make.
PAIR_NUMBERS = 8
WORKSPACE_BYTES = 2**24  # of the libraries for products and SQLite; at most an eighth of the memory
RATE_SECONDS = 0.03  # of the measurement of the speed of products
WRITE_RATE = 200e6  # bytes per second, of a tile with its hash and fsync
SWEEP_FACTOR = 2  # time of an operation of a forward or backward pass, relative to one of a large product
READ_OPERATIONS = 2  # of a large product, in the time in which a byte of a file in the page cache is read
DISK_SHARE = 0.5  # of the free disk that tangents may take

Kept = Literal["memory", "disk", "nothing"]
KEPT: tuple[Kept, ...] = ("memory", "disk", "nothing")


@dataclass(frozen=True, repr=False)
class StorePlan:
    """Plan of a stored kernel. ``print(plan)`` shows it.

    Attributes:
        methods: contraction method of each parameter group; ``print(plan.methods)`` is the table of :func:`ntk_plan`.
        schedule: rows of a tile and of a forward pass, and directions at a time.
        n_tiles: tiles of the whole kernel.
        kept: place of the tangents of all rows: "memory", "disk", or "nothing" (swept again for each tile).
        tangent_bytes: size of the tangents of all rows.
        store_bytes: size of the finished store.
        expected_bytes: peak memory of the driver, or of each worker process, above what is resident.
        memory: bytes that may be allocated.
        operations: multiplications and additions of the tiles.
        sweep_operations: those of all forward and backward passes.
        seconds: expected time with the measured speed of products.
        workers: tasks that run at the same time.
    """

    methods: Plan
    schedule: Schedule
    n_tiles: int
    kept: Kept
    tangent_bytes: int
    store_bytes: int
    expected_bytes: int
    memory: int
    operations: float
    sweep_operations: float
    seconds: float
    workers: int

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk: the store, and the tangents if they are kept there."""
        return self.store_bytes + (self.tangent_bytes if self.kept == "disk" else 0)

    def __str__(self) -> str:
        """Return the plan in a few lines."""
        methods, schedule = self.methods, self.schedule
        place = {
            "memory": f"tangents of all rows in memory ({_size(self.tangent_bytes)})",
            "disk": f"tangents of all rows in files ({_size(self.tangent_bytes)})",
            "nothing": "tangents of a block of rows are computed again for each tile",
        }[self.kept]
        workers = f" by {self.workers} workers" if self.workers > 1 else ""
        return "\n".join(
            [
                f"stored kernel ({methods.outputs}) of {methods.n:,} x {methods.m:,} rows"
                f"{', symmetric' if methods.symmetric else ''}, {methods.n_outputs} outputs,"
                f" {methods.n_parameters:,} parameters, {methods.dtype}",
                f"{self.n_tiles:,} {'tile' if self.n_tiles == 1 else 'tiles'} of {schedule.tile:,} rows,"
                f" forward passes of {schedule.chunk:,} rows; {place}",
                f"products {self.operations / 1e9:,.0f} GFLOP, forward and backward passes about"
                f" {self.sweep_operations / 1e9:,.0f} GFLOP; expected time about {_duration(self.seconds)}{workers}",
                f"memory about {_size(self.expected_bytes)} of {_size(self.memory)};"
                f" disk {_size(self.disk_bytes)}, of which the store has {_size(self.store_bytes)}",
            ]
        )

    def __repr__(self) -> str:
        return str(self)

    def check(self, path: Path, stored_bytes: int = 0) -> None:
        """Check that memory and disk suffice, before anything is allocated. ``stored_bytes`` are there already.

        Raises:
            InputError: they do not; the message says how much is needed and available.
        """
        check_available_memory(
            self.expected_bytes,
            f"a kernel of {self.methods.n:,} x {self.methods.m:,} rows",
            f'pass memory="{int(self.expected_bytes / 2**21)}MiB" for smaller tiles, fewer parameters=, or use ntk_operator,'
            " which never forms the kernel",
        )
        directory = path.absolute().parent
        if directory.is_dir():
            needed, free = self.disk_bytes - stored_bytes, shutil.disk_usage(directory).free
            if needed > free:
                raise InputError(
                    f"a store of {_size(self.disk_bytes)} in {directory}, whose disk has {_size(free)} free",
                    expected=f"{_size(needed)} of free disk",
                    hint="pass a path on another disk, dtype=torch.float32, or use ntk_operator, which stores nothing",
                )


@dataclass(frozen=True)
class Limits:
    """Resources of a computation.

    Attributes:
        memory: bytes of this process, or of each worker process.
        free_disk: bytes.
        workers: tasks that run at a time.
        shared: they run in this process, so that memory is for all of them together.
    """

    memory: int
    free_disk: int
    workers: int = 1
    shared: bool = True

    def allow(self, kept: Kept, tangent_bytes: float) -> bool:
        """Return True if tangents of this size can be kept there."""
        return self.shared if kept == "memory" else kept != "disk" or tangent_bytes <= DISK_SHARE * self.free_disk


def make_store_plan(
    engine: Engine, n: int, m: int, limits: Limits, *, symmetric: bool, tile: int | None = None
) -> StorePlan:
    """Return the plan for the kernel of n by m examples: the largest tiles, with the fewest sweeps, that fit.

    A ``tile`` that is given is not changed.

    Raises:
        InputError: tiles of one row do not fit, or those that are given.
    """
    parts, memory = _Parts.of(engine, n, m, limits, symmetric=symmetric), limits.memory
    longest = max(n, m)
    sizes = _tile_sizes(longest) if tile is None else [min(tile, longest)]
    best: tuple[float, Schedule, Kept, float] | None = None
    for block, size, kept in itertools.product(parts.tangents, sizes, KEPT):
        if not limits.allow(kept, parts.tangent_bytes(block)):
            continue
        needed, chunk = parts.needed(size, block, kept, memory)
        cost = parts.cost(size, block, kept)
        if chunk and needed <= memory and (best is None or cost < best[0]):
            best = cost, Schedule(size, block, chunk), kept, needed
    if best is None:
        size, block = min(sizes), min(parts.tangents)
        needed = parts.needed(size, block, "nothing", memory, chunk=1)[0]
        raise InputError(
            f"memory of {_size(memory)} for tiles of {size} rows, which need about {_size(needed)}",
            expected="enough memory for the tangents of two blocks of rows and a tile",
            hint=f'pass memory="{math.ceil(needed / 2**20)}MiB", fewer parameters=, or'
            + (" use ntk_operator, which never forms the kernel" if tile is None else " a smaller tile"),
        )
    _, schedule, kept, needed = best
    return parts.plan(engine, schedule, kept, needed, limits)


def plan_of_schedule(
    engine: Engine, n: int, m: int, limits: Limits, *, symmetric: bool, schedule: Schedule
) -> StorePlan:
    """Return the plan of a store that exists, whose tiles and passes keep their sizes.

    Raises:
        InputError: they do not fit in memory.
    """
    parts, needed = _Parts.of(engine, n, m, limits, symmetric=symmetric), 0.0
    for kept in KEPT:
        if limits.allow(kept, parts.tangent_bytes(schedule.block)):
            needed, _ = parts.needed(schedule.tile, schedule.block, kept, limits.memory, chunk=schedule.chunk)
            if needed <= limits.memory:
                return parts.plan(engine, schedule, kept, needed, limits)
    raise InputError(
        f"memory of {_size(limits.memory)} for a store with tiles of {schedule.tile:,} rows, which need about {_size(needed)}",
        expected="enough memory for the tiles that the store was begun with",
        hint=f'pass memory="{math.ceil(needed / 2**20)}MiB", or begin another store',
    )


@dataclass(frozen=True)
class _Parts:
    """Numbers per row and per pair of rows of a computation."""

    n: int
    m: int
    symmetric: bool
    sweeps: int
    itemsize: int
    graph: int  # of a forward pass
    swept: int  # output gradients of one direction
    swept_passes: dict[int, int]  # by block of directions: all numbers of a forward pass while it is swept
    tangents: dict[int, int]  # by block of directions
    workers: int  # in one process
    operations: float
    weight_products: float  # multiplications and additions of one forward pass, per row

    @classmethod
    def of(cls, engine: Engine, n: int, m: int, limits: Limits, *, symmetric: bool) -> "_Parts":
        """Count the numbers and operations of a computation."""
        prepared, survey = engine.prepared, engine.survey
        plan = engine.scheduled_plan(n, m, symmetric=symmetric, tile=1, block=1, chunk=1)
        blocks = candidate_blocks(plan.groups, survey, plan.sweeps, engine.directions.combine)
        graph, swept = graph_numbers(survey)
        products = sum(
            2.0 * g.shape.groups * g.shape.positions * g.fan_in * g.shape.fan_out
            for g in plan.groups
            if isinstance(g, OuterGroup)
        )
        return cls(
            n,
            m,
            symmetric,
            plan.sweeps,
            torch.finfo(prepared.dtype).bits // 8,
            graph,
            swept,
            {block: pass_numbers(plan.groups, survey, prepared, block) for block in blocks},
            {block: tangent_numbers(plan.groups, survey, prepared, block) for block in blocks},
            limits.workers if limits.shared else 1,
            sum(cost.operations for cost in plan.costs),
            products,
        )

    @property
    def all_rows(self) -> int:
        """Number of rows of both sides."""
        return self.n if self.symmetric else self.n + self.m

    def tangent_bytes(self, block: int) -> float:
        """Return the size of the tangents of all rows and directions."""
        passes = -(-self.sweeps // block)
        return self.itemsize * self.all_rows * self.tangents[block] * passes

    def needed(self, tile: int, block: int, kept: Kept, memory: int, chunk: int | None = None) -> tuple[float, int]:
        """Return the peak memory in bytes, and the rows of a forward pass (0: none fit)."""
        tangents = self.tangents[block]
        per_row, workspace = self.swept_passes[block], min(WORKSPACE_BYTES, memory / 8)
        pairs = self.workers * tile * tile * PAIR_NUMBERS
        all_tangents = self.all_rows * tangents * -(-self.sweeps // block)
        held = all_tangents if kept == "memory" else 2 * self.workers * tile * tangents
        if chunk is None:
            spare = (memory - workspace) / self.itemsize - held - (pairs if kept == "nothing" else 0)
            fastest = max(1, CHUNK_BYTES / self.itemsize // max(1, self.graph + block * self.swept))
            fastest = -(-tile // max(1, round(tile / fastest)))
            chunk = max(0, int(min(fastest, spare // max(1, per_row))))
            chunk = chunk and -(-tile // -(-tile // chunk))  # passes of equal length
        passes = chunk * per_row
        peak = held + (passes + pairs if kept == "nothing" else max(passes, pairs))
        return self.itemsize * peak + workspace, chunk

    def cost(self, tile: int, block: int, kept: Kept) -> float:
        """Return the operations, in which small tiles and rows that are swept again count."""
        grid = -(-self.n // tile), -(-self.m // tile)
        sweep = self.weight_products * (self.sweeps + 4 * -(-self.sweeps // block))
        rows = self.all_rows
        if kept == "nothing":
            rows = tile * grid[0] * (grid[1] + 1) / 2 if self.symmetric else self.n + self.m * grid[0]
        penalty = 1 + SMALLEST_TILE / 4 / tile  # smaller products run slower
        read_bytes = 0.0
        if kept == "disk":
            read_bytes = self.tangent_bytes(block) * ((grid[1] + 1) / 2 if self.symmetric else (1 + grid[0]) / 2)
        return self.operations * penalty + READ_OPERATIONS * read_bytes + SWEEP_FACTOR * rows * sweep

    def plan(self, engine: Engine, schedule: Schedule, kept: Kept, needed: float, limits: Limits) -> StorePlan:
        """Return the plan with these sizes."""
        tile, block = schedule.tile, schedule.block
        methods = engine.scheduled_plan(
            self.n, self.m, symmetric=self.symmetric, tile=tile, block=block, chunk=schedule.chunk
        )
        methods = replace(methods, memory=limits.memory)
        needed = max(needed, verification.needed_bytes(engine, methods))
        grid = -(-self.n // tile), -(-self.m // tile)
        n_tiles = grid[0] * (grid[0] + 1) // 2 if self.symmetric else grid[0] * grid[1]
        entries = self.n * (self.n + tile) / 2 if self.symmetric else self.n * self.m
        rows = self.all_rows if kept != "nothing" else self.all_rows * (grid[1] + 1) / 2
        sweep_operations = rows * self.weight_products * (self.sweeps + 4 * -(-self.sweeps // block))
        rate = gemm_rate(engine.prepared.dtype, engine.prepared.device)
        store_bytes = int(entries * self.itemsize)
        seconds = (self.operations + SWEEP_FACTOR * sweep_operations) / rate + store_bytes / WRITE_RATE
        return StorePlan(
            methods,
            schedule,
            n_tiles,
            kept,
            int(self.tangent_bytes(block)),
            store_bytes,
            int(needed),
            limits.memory,
            self.operations,
            sweep_operations,
            seconds,
            limits.workers,
        )


def _tile_sizes(longest: int) -> list[int]:
    """Return candidate numbers of rows of a tile, largest first, such that tiles are about equally large."""
    sizes, size = [], min(longest, LARGEST_TILE)
    while size >= 1:
        sizes.append(-(-longest // -(-longest // size)))
        size = size * 3 // 4
    return sizes


@cache
def gemm_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the speed of a product of matrices for about 30 ms, in operations per second; kept for the process."""
    size = 768
    a = torch.ones(size, size, dtype=dtype, device=device)
    b = torch.ones_like(a)
    out, best, started = torch.empty_like(a), math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - started < RATE_SECONDS:
        begin = time.perf_counter()
        torch.mm(a, b.T, out=out)
        float(out[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.3g} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
