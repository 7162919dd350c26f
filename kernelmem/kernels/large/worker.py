"""Work of one process or thread: tangents of blocks of rows, swept once each, and tiles as products of two of them."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.files.hashed_files import JSON
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.tasks import one_thread_per_worker
from kernelmem.kernels.large.inputs import Inputs, InputsReference
from kernelmem.kernels.large.tangent_files import TangentFiles
from kernelmem.kernels.ntk import output_directions
from kernelmem.tangents.engine.accumulate import KernelAccumulator, mirror
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan
from kernelmem.tangents.groups.base import Buffers
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.survey import PassMismatchError

MAX_WORKERS = 2  # computations whose model and rows a process keeps


@dataclass(frozen=True)
class Schedule:
    """Sizes of the parts of a computation: they determine the last bits of the values, so a resumed one keeps them.

    Attributes:
        tile: rows and columns of a tile.
        block: output directions whose tangents are in memory at a time.
        chunk: rows of a forward pass.
    """

    tile: int
    block: int
    chunk: int


@dataclass(frozen=True)
class Task:
    """Tile (i, j) of a kernel, or with j = None the tangents of block i of a side.

    Attributes:
        inputs: where the model and the rows are.
        key: hash of the inputs and the schedule.
        directory: of the files of tangents; None: they are kept in memory.
        keep: blocks of tangents that are kept in memory.
    """

    inputs: InputsReference
    key: str
    schedule: Schedule
    directory: TangentFiles | None
    keep: int
    i: int
    j: int | None = None
    side: int = 0

    @property
    def name(self) -> str:
        """Name that tells the task from all others, also of other computations."""
        part = f"tangents {self.side}-{self.i}" if self.j is None else f"tile ({self.i}, {self.j})"
        return f"{part} of {self.key[:12]}"


class Worker:
    """Computes tangents and tiles of one kernel.

    The forward and backward passes of one model run one at a time, the products of tangents in all threads at once.
    """

    def __init__(
        self, inputs: Inputs, key: str, schedule: Schedule, engine: Engine, files: TangentFiles | None, keep: int
    ) -> None:
        self.key, self.schedule, self.engine, self.files, self.keep = key, schedule, engine, files, keep
        self.symmetric = inputs.y is None
        sides = (inputs.x,) if inputs.y is None else (inputs.x, inputs.y)
        self.sides = [
            LabeledRows(rows.to(dtype=inputs.dtype, device=engine.prepared.device), labels)
            for rows, labels in zip(sides, inputs.side_labels, strict=False)
        ]
        self.plan = plan_of(engine, inputs, schedule)
        blocks = range(0, self.plan.sweeps, self.plan.block)
        self.blocks = [range(c, min(c + self.plan.block, self.plan.sweeps)) for c in blocks]
        self.held: OrderedDict[str, list[Buffers]] = OrderedDict()
        self.lock = threading.RLock()

    @classmethod
    def build(cls, inputs: Inputs, key: str, schedule: Schedule, files: TangentFiles | None, keep: int) -> "Worker":
        """Prepare the model of ``inputs`` and return a worker."""
        return cls(inputs, key, schedule, engine_of(inputs), files, keep)

    def rows(self, side: int, block: int) -> range:
        """Return the rows of a block of one side."""
        tile = self.schedule.tile
        return range(block * tile, min((block + 1) * tile, self.sides[side].rows.n))

    def tangents(self, side: int, index: int, block: range) -> list[Buffers]:
        """Return the tangents of the block ``index`` of a side in some output directions: kept, or from one sweep."""
        name = f"{self.key[:32]}-{side}-{index}-{block.start}"
        with self.lock:
            if name in self.held:
                self.held.move_to_end(name)
                return self.held[name]
            tangents = None if self.files is None else self.files.read(name)
            if tangents is None:
                while len(self.held) >= max(1, self.keep):  # free the oldest before the new ones are computed
                    self.held.popitem(last=False)
                tangents = self.engine.tangents(self.sides[side], self.rows(side, index), self.plan, block)
                if self.files is not None:
                    self.files.write(name, tangents)
                    tangents = self.files.read(name) or tangents  # mapped: the same memory in all processes
            if self.keep:
                self.held[name] = tangents
            while len(self.held) > self.keep:
                self.held.popitem(last=False)
        return tangents

    def sweep(self, side: int, index: int) -> None:
        """Compute the tangents of a block of a side, unless they are kept."""
        for block in self.blocks:
            self.tangents(side, index, block)

    def tile(self, i: int, j: int) -> Tensor:
        """Return tile (i, j) of the kernel on the CPU.

        Raises:
            NumericalError: NaN or infinite values; the message names the rows.
        """
        rows, columns, right = self.rows(0, i), self.rows(len(self.sides) - 1, j), len(self.sides) - 1
        engine = self.engine
        options = {"dtype": engine.prepared.dtype, "device": engine.prepared.device}
        result = torch.zeros(len(rows), len(columns), **options)
        is_diagonal = self.symmetric and i == j
        n_groups = len(self.plan.groups) + len(self.plan.dense)
        accumulator = KernelAccumulator("sum", {"": result}, [""] * n_groups, is_diagonal)
        for block in self.blocks:
            x = self.tangents(0, i, block)
            y = x if is_diagonal else self.tangents(right, j, block)
            engine.add_tile(accumulator, x, y, self.plan, block)
            del x, y
        if is_diagonal:
            mirror(result, "sum")
        return result.cpu()


def engine_of(inputs: Inputs) -> Engine:
    """Return the engine of the model, with the assumptions that passes of this computation have left."""
    prepared = prepare(
        inputs.model,
        inputs.x,
        forward=inputs.forward,
        parameters=inputs.parameters,
        dtype=inputs.dtype,
        device=inputs.device,
    )
    directions = output_directions(inputs.outputs, inputs.target, prepared.n_outputs)
    rows = inputs.x.to(dtype=prepared.dtype, device=prepared.device)
    engine = Engine.build(prepared, rows, directions, certified=inputs.certified)
    for names in inputs.contradictions:
        engine = engine.without_assumptions(PassMismatchError(frozenset(names)))
    return engine


def plan_of(engine: Engine, inputs: Inputs, schedule: Schedule) -> Plan:
    """Return the plan of a computation with the sizes of a schedule."""
    n, m = inputs.x.n, (inputs.y or inputs.x).n
    symmetric = inputs.y is None
    return engine.scheduled_plan(
        n, m, symmetric=symmetric, tile=schedule.tile, block=schedule.block, chunk=schedule.chunk
    )


def computation_key(facts: Mapping[str, JSON], schedule: Schedule, contradictions: Sequence[Sequence[str]]) -> str:
    """Return the hash of all that determines the bits of the tiles."""
    values = dict(facts), asdict(schedule), [list(names) for names in contradictions]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_workers: OrderedDict[str, Worker] = OrderedDict()  # of this process, by key
_workers_lock = threading.Lock()


def register(worker: Worker) -> None:
    """Let the tasks of this process use ``worker``."""
    _workers[worker.key] = worker


def release(worker: Worker) -> None:
    """Free a worker of this process, with the tangents that it keeps."""
    _workers.pop(worker.key, None)


@standard_modes()
def run_task(task: Task) -> np.ndarray | bool | None:
    """Run a task of a kernel: return its tile, or True after a sweep; None if the inputs cannot be seen here.

    Pure: the same task gives the same result, and may run more than once.
    """
    with one_thread_per_worker():
        with _workers_lock:
            worker = _workers.get(task.key)
            if worker is None:
                inputs = task.inputs.load()
                if inputs is None:
                    return None
                while len(_workers) >= MAX_WORKERS:
                    _workers.popitem(last=False)
                worker = Worker.build(inputs, task.key, task.schedule, task.directory, task.keep)
                _workers[task.key] = worker
        if task.j is None:
            worker.sweep(task.side, task.i)
            return True
        return worker.tile(task.i, task.j).numpy()
