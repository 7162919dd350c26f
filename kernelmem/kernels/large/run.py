"""One call of ntk_store: its plan, its tasks, and what is done with their results."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.checks import check_choice, check_instance
from kernelmem.core.errors import InputError, TaskError
from kernelmem.core.files import file_system, write_file
from kernelmem.core.files.hashed_files import JSON
from kernelmem.core.tasks import run_tasks
from kernelmem.core.tasks.calls import pickler
from kernelmem.kernels.large.inputs import Inputs, InputsReference
from kernelmem.kernels.large.options import StoreOptions
from kernelmem.kernels.large.plan import Limits, StorePlan, make_store_plan, plan_of_schedule
from kernelmem.kernels.large.tangent_files import TangentFiles
from kernelmem.kernels.large.worker import Schedule, Task, Worker, computation_key, register, release, run_task
from kernelmem.kernels.ntk import Computation
from kernelmem.kernels.store import KernelStore
from kernelmem.tangents.engine.engine import Engine
from kernelmem.tangents.survey import PassMismatchError
from kernelmem.version import __version__

COMPARED_ROWS = 2  # rows and columns of a stored tile that are computed again when a store is resumed

Place = tuple[int, int, int | None]  # tile (0, i, j), or sweep of a block of rows (side, i, None)
Finished = Callable[[tuple[int, int], np.ndarray], object]


@dataclass(frozen=True)
class StoredKernel:
    """Checked arguments of one kernel: its computation, and the inputs as workers receive them."""

    computation: Computation
    inputs: Inputs

    @classmethod
    def of(
        cls, model: nn.Module, x: Batch, y: Batch | None, outputs: str, forward: Forward | None, options: StoreOptions
    ) -> "StoredKernel":
        """Check the arguments of :func:`ntk_store`."""
        check_choice(outputs, "outputs", ("trace", "pseudo"), hint="use km.ntk for the diagonal and the full kernel")
        check_instance(options, "options", StoreOptions, hint="pass options=StoreOptions(...)")
        names = None if options.parameters is None else list(options.parameters)
        computation = Computation(
            model, x, y, outputs, options.target, options.labels, names, forward, options.dtype, options.device
        )
        left, right, prepared = computation.left, computation.right, computation.prepared
        inputs = Inputs(
            model,
            left.rows,
            None if right is None else right.rows,
            (left.labels, None if right is None else right.labels),
            outputs,
            options.target,
            None if names is None else tuple(names),
            forward,
            prepared.dtype,
            prepared.device,
            options.verify,
        )
        return cls(computation, inputs)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.inputs.x.n, (self.inputs.y or self.inputs.x).n

    @property
    def symmetric(self) -> bool:
        """True if y = x."""
        return self.inputs.y is None

    def engine(self, contradictions: Sequence[Sequence[str]]) -> Engine:
        """Return the engine with fewer assumptions on the parameters of passes that contradicted the survey."""
        engine = replace(self.computation.engine, certified=self.inputs.certified)
        for names in contradictions:
            engine = engine.without_assumptions(PassMismatchError(frozenset(names)))
        return engine


class StoreRun:
    """One call of :func:`ntk_store`: the plan, the tasks, and the files that it needs while it runs."""

    def __init__(
        self,
        kernel: StoredKernel,
        file: Path,
        facts: dict[str, JSON],
        executor: Executor | None,
        options: StoreOptions,
        limits: Limits,
    ) -> None:
        self.kernel, self.file, self.facts, self.executor = kernel, file, facts, executor
        self.options, self.limits = options, limits
        self.contradictions: list[tuple[str, ...]] = []
        self.reference = InputsReference("", file)
        self.content = b""
        self.worker: Worker | None = None

    @property
    def directory(self) -> Path:
        """Directory for files of tangents, and of the inputs for worker processes."""
        if self.options.tangents is not None:
            return Path(self.options.tangents)
        return self.file.with_name(f"{self.file.name}.tangents")

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free the worker of this process and the file with the inputs at the end of the ``with`` block."""
        try:
            yield
        finally:
            if self.worker is not None:
                release(self.worker)
            if self.content:
                file_system.remove(self.reference.file)

    def begin(self) -> KernelStore:
        """Sweep all rows, so that assumptions which a pass contradicts are known, and create the store."""
        n, m = self.kernel.shape
        while True:
            engine = self.kernel.engine(self.contradictions)
            plan = make_store_plan(engine, n, m, self.limits, symmetric=self.kernel.symmetric, tile=self.options.tile)
            plan.check(self.file)
            if self.options.verify:
                self.kernel.computation.verify(plan.methods)
            self._prepare(engine, plan)
            grid = [range(-(-size // plan.schedule.tile)) for size in ((n,) if self.kernel.symmetric else (n, m))]
            try:
                if plan.kept != "nothing":
                    self._run([(side, i, None) for side, blocks in enumerate(grid) for i in blocks], lambda *_: None)
                break
            except PassMismatchError as mismatch:
                self.contradictions.append(tuple(sorted(mismatch.names)))
        schedule = plan.schedule
        notes = {
            "schedule": {"block": schedule.block, "chunk": schedule.chunk},
            "contradictions": [list(names) for names in self.contradictions],
            "versions": {"kernelmem": __version__, "torch": torch.__version__},
        }
        return KernelStore.create(
            self.file,
            self.facts,
            n,
            m,
            tile=schedule.tile,
            dtype=self.kernel.inputs.dtype,
            symmetric=self.kernel.symmetric,
            notes=notes,
        )

    def resume(self, store: KernelStore) -> KernelStore:
        """Plan the missing tiles of a store as they were begun.

        Raises:
            InputError: the stored values are not those of this model, whose facts are the same (another forward= or target),
                or the store was begun by something else.
        """
        try:
            n, m = self.kernel.shape
            notes = store.notes
            if not {"schedule", "contradictions"} <= notes.keys():
                raise InputError(
                    f"{self.file}, which another program has begun",
                    expected="a store that ntk_store has begun",
                    hint="pass another path, or write the missing tiles yourself: KernelStore.put",
                )
            schedule = Schedule(store.layout.tile, notes["schedule"]["block"], notes["schedule"]["chunk"])
            self.contradictions = [tuple(names) for names in notes["contradictions"]]
            engine = self.kernel.engine(self.contradictions)
            plan = plan_of_schedule(engine, n, m, self.limits, symmetric=self.kernel.symmetric, schedule=schedule)
            plan.check(self.file, self.file.stat().st_size)
            self._compare_values(engine, store)
            self._prepare(engine, plan)
            return store
        except BaseException:
            store.close()
            raise

    def _compare_values(self, engine: Engine, store: KernelStore) -> None:
        """Compute some values of a stored tile again."""
        missing = set(store.missing())
        index = next((index for index in store.layout.stored() if index not in missing), None)
        if index is None:
            return
        tile = store.tile(*index)
        rows, columns = store.layout.rows_of(index[0]), store.layout.columns_of(index[1])
        a, b = (sorted({0, size - 1})[:COMPARED_ROWS] for size in tile.shape)
        left, right = self.kernel.computation.left, self.kernel.computation.right or self.kernel.computation.left
        left, right = left.take([rows.start + i for i in a]), right.take([columns.start + j for j in b])
        plan = engine.plan(left.rows.n, right.rows.n, symmetric=False, memory=max(self.limits.memory, 2**27))
        values = engine.kernel(left, right, plan)[""].cpu()
        error = float((values - tile[a][:, b]).abs().max()) / max(float(tile.abs().max()), torch.finfo(tile.dtype).tiny)
        tolerance = engine.prepared.tolerance(1e-3, 1e-8)
        if not error <= tolerance:
            raise InputError(
                f"{self.file}, whose values differ from those of this model by {error:.2g} (relative)",
                expected="the model, forward= and target of which the store was made",
                hint="pass the same functions, or another path",
            )

    def _prepare(self, engine: Engine, plan: StorePlan) -> None:
        """Make the tasks of a plan, and the worker of this process."""
        schedule, inputs = plan.schedule, replace(self.kernel.inputs, contradictions=tuple(self.contradictions))
        self.key = computation_key(self.facts, schedule, self.contradictions)
        self.schedule = schedule
        self.files = TangentFiles(self.directory) if plan.kept == "disk" else None
        self.keep = 2
        if plan.kept == "memory":
            self.keep = sum(-(-size // schedule.tile) for size in self.kernel.shape) * plan.methods.sweeps
        if self.limits.shared:
            if self.worker is not None:
                release(self.worker)
            self.worker = Worker(inputs, self.key, schedule, engine, self.files, self.keep)
            register(self.worker)
        elif self.executor is not None:
            self.content = inputs.pickled(pickler(self.executor))
            sha256 = hashlib.sha256(self.content).hexdigest()
            self.reference = InputsReference(sha256, self.directory / f"{sha256[:32]}.inputs")
            write_file(self.reference.file, self.content)

    def compute_tiles(self, store: KernelStore, report: Callable[[int, int], object]) -> None:
        """Compute the missing tiles and write them, the last one while the next is computed."""
        missing = store.missing()
        total, done = store.layout.n_stored, store.layout.n_stored - len(missing)
        pending: list[Future[None]] = []

        def finish() -> None:
            nonlocal done
            if pending:
                pending.pop().result()
                done += 1
                report(done, total)

        with ThreadPoolExecutor(1) as writer:

            def write(place: tuple[int, int], tile: np.ndarray) -> None:
                finish()
                pending.append(writer.submit(store.put, *place, tile))

            try:
                self._run([(0, i, j) for i, j in missing], write)
            finally:
                finish()

    def _run(self, places: list[Place], finished: Finished) -> None:
        """Run tasks: tiles (0, i, j), or sweeps (side, i, None). Those that cannot see the inputs get them sent."""
        tasks = [
            Task(self.reference, self.key, self.schedule, self.files, self.keep, i, j, side) for side, i, j in places
        ]
        unseen: list[Task] = []

        def take(tasks: list[Task], index: int, value: np.ndarray | bool | None) -> None:
            task = tasks[index]
            if value is None:
                unseen.append(replace(task, inputs=replace(task.inputs, content=self.content)))
            elif isinstance(value, np.ndarray) and task.j is not None:
                finished((task.i, task.j), value)

        for _ in range(2):
            batch, unseen = (tasks, []) if not unseen else (unseen, [])
            if batch:
                run_tasks(
                    run_task,
                    batch,
                    self.executor,
                    lambda index, value, batch=batch: take(batch, index, value),
                    lambda: None,
                    timeout=self.options.timeout,
                    names=[task.name for task in batch],
                )
            tasks = []
        if unseen:
            raise TaskError(
                f"{len(unseen)} tasks without the model and rows",
                expected="workers that receive them",
                hint="report this as a bug",
            )

    def remove_tangents(self) -> None:
        """Remove the files of tangents of a complete store, unless the user chose their directory."""
        if self.options.tangents is None:
            TangentFiles(self.directory).remove()
