"""Kernel computed tile by tile into a store: planned before it starts, by any executor, resumed after anything."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.checks import as_path, check_choice, check_instance
from kernelmem.core.errors import InputError, TaskError
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.core.tasks import pickler, run_tasks
from kernelmem.kernels.large.facts import facts_of
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

DEFAULTS = StoreOptions()
COMPARED_ROWS = 2  # rows and columns of a stored tile that are computed again when a store is resumed


@standard_modes()
def ntk_store(
    model: nn.Module,
    x: Batch,
    y: Batch | None = None,
    *,
    path: str | Path,
    outputs: Literal["trace", "pseudo"] = "trace",
    forward: Forward | None = None,
    executor: Executor | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
    options: StoreOptions = DEFAULTS,
) -> KernelStore:
    """Compute the empirical neural tangent kernel K(x, y) into a file, tile by tile, and return the store.

    Each block of rows is swept once; its tangents are kept (in memory, or in files) and every tile is a product of two of
    them. A tile that is in the store is safe, whatever happens then. The same call resumes: it computes only what is
    missing, and the result is that of an uninterrupted call to the bit (with as many threads).

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed.
        x: n rows, in any form that :func:`ntk` takes.
        y: m rows; None: y = x (symmetric, half the tiles).
        path: the store; created, or resumed if it exists and was made from the same model, rows and options.
        outputs: "trace" or "pseudo", as in :func:`ntk`; ``options.target`` for the kernel of a scalar.
        forward: maps (model, batch) to (n, C) outputs.
        executor: any PEP 3148 executor; None: this process. Processes (also Dask's ``client.get_executor()``) receive the
            model and the rows once each and compute with one thread each; only this process writes the store.
        memory: bytes that may be allocated in addition to what is resident: by this process, or by each worker process.
        progress: called with (done, total) tiles; True for a bar, False for none.
        options: further options.

    Returns:
        The complete store, opened for reading.

    Raises:
        InputError: as in :func:`ntk`; a plan that does not fit in memory or on disk, before anything is allocated; a store of
            other inputs, with what differs.
        NumericalError: NaN or infinite values in a tile; the message names the rows. The other tiles are kept.
        TaskError: workers died or exceeded the time limit again and again; the message names their tiles.

    Cost: one sweep per row, and the products of :func:`ntk`; ``print(ntk_store_plan(...))`` tells before.

    >>> directory = tempfile.mkdtemp()
    >>> with ntk_store(nn.Linear(2, 3), torch.eye(2), path=f"{directory}/kernel.sqlite") as store:
    ...     store.rows(0, 2)
    tensor([[6., 3.],
            [3., 6.]])
    """
    file, report = as_path(path, "path"), as_progress(progress, "NTK", "tile")
    kernel = _Kernel.of(model, x, y, outputs, forward, options)
    limits = _limits(memory, executor, file, options)
    facts = facts_of(kernel.inputs, list(kernel.computation.prepared.parameters))
    existing = KernelStore.open(file, facts, write=True) if file.exists() else None
    if existing is not None and existing.complete:
        existing.close()
        return KernelStore.open(file)
    run = _Run(kernel, file, facts, executor, options, limits)
    with run.temporary_files():
        if existing is None:
            store = run.begin()
        else:
            store = run.resume(existing)
        with store:
            run.compute_tiles(store, report)
    run.remove_tangents()
    return KernelStore.open(file)


@standard_modes()
def ntk_store_plan(
    model: nn.Module,
    x: Batch,
    y: Batch | None = None,
    *,
    path: str | Path = ".",
    outputs: Literal["trace", "pseudo"] = "trace",
    forward: Forward | None = None,
    executor: Executor | None = None,
    memory: int | str = MEMORY,
    options: StoreOptions = DEFAULTS,
) -> StorePlan:
    """Return the plan that :func:`ntk_store` follows for the same arguments: tiles, operations, memory, disk, time.

    Only probes of a few rows are run, and products of matrices for about 30 ms, whose speed gives the expected time.

    Raises:
        InputError: as :func:`ntk_store`, except for what only the running call can see.

    >>> print(ntk_store_plan(nn.Linear(2, 3), torch.zeros(5000, 2)))  # doctest: +ELLIPSIS
    stored kernel (trace) of 5,000 x 5,000 rows, symmetric, 3 outputs, 9 parameters, float32
    6 tiles of 1,667 rows, forward passes of 1,024 rows; tangents of all rows in memory (0.0572 MiB)
    products 0 GFLOP, ...
    """
    file = as_path(path, "path")
    kernel = _Kernel.of(model, x, y, outputs, forward, options)
    limits = _limits(memory, executor, file, options)
    n, m = kernel.shape
    return make_store_plan(
        kernel.computation.engine, n, m, limits, symmetric=kernel.symmetric, tile=options.tile
    )


@dataclass(frozen=True)
class _Kernel:
    """Checked arguments of one kernel: its computation, and the inputs as workers receive them."""

    computation: Computation
    inputs: Inputs

    @classmethod
    def of(
        cls, model: nn.Module, x: Batch, y: Batch | None, outputs: str, forward: Forward | None, options: StoreOptions
    ) -> "_Kernel":
        check_choice(
            outputs, "outputs", ("trace", "pseudo"), hint="use km.ntk for the diagonal and the full kernel"
        )
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


def _limits(memory: int | str, executor: Executor | None, file: Path, options: StoreOptions) -> Limits:
    """Return the resources, from memory=, the executor and the disk on which tangents are kept."""
    if executor is not None:
        check_instance(executor, "executor", Executor, hint="pass concurrent.futures.ProcessPoolExecutor(2), or None")
    directory = (file.absolute().parent if options.tangents is None else Path(options.tangents).absolute())
    nearest = next(parent for parent in (directory, *directory.parents) if parent.is_dir())
    workers = getattr(executor, "_max_workers", None) or getattr(executor, "num_workers", None) or 1
    shared = executor is None or isinstance(executor, ThreadPoolExecutor)
    return Limits(as_bytes(memory), shutil.disk_usage(nearest).free, workers if isinstance(workers, int) else 1, shared)


class _Run:
    """One call of :func:`ntk_store`: the plan, the tasks, and the files that it needs while it runs."""

    def __init__(
        self,
        kernel: _Kernel,
        file: Path,
        facts: dict[str, object],
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

    @contextmanager
    def temporary_files(self) -> Iterator[None]:
        """Hold the file with the inputs for worker processes, and release the worker of this process at the end."""
        with tempfile.TemporaryDirectory(prefix=".kernelmem-", dir=self._tangent_directory(exists=True)) as directory:
            self.directory = Path(directory)
            try:
                yield
            finally:
                if self.worker is not None:
                    release(self.worker)

    def _tangent_directory(self, *, exists: bool = False) -> Path:
        """Return the directory for files of tangents, or with ``exists`` the nearest one that exists."""
        directory = self.file.with_name(f"{self.file.name}.tangents")
        if self.options.tangents is not None:
            directory = Path(self.options.tangents)
        if not exists:
            return directory
        return next(parent for parent in (directory, *directory.absolute().parents) if parent.is_dir())

    def begin(self) -> KernelStore:
        """Sweep all rows, so that assumptions which a pass contradicts are known, and create the store."""
        n, m = self.kernel.shape
        while True:
            engine = self.kernel.engine(self.contradictions)
            plan = make_store_plan(
                engine, n, m, self.limits, symmetric=self.kernel.symmetric, tile=self.options.tile
            )
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
            InputError: the stored values are not those of this model, whose facts are the same (another forward= or target).
        """
        try:
            n, m = self.kernel.shape
            notes = store.notes
            schedule = Schedule(store.layout.tile, notes["schedule"]["block"], notes["schedule"]["chunk"])
            self.contradictions = [tuple(names) for names in notes["contradictions"]]
            engine = self.kernel.engine(self.contradictions)
            plan = plan_of_schedule(
                engine, n, m, self.limits, symmetric=self.kernel.symmetric, schedule=schedule
            )
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
        self.key = computation_key(str(sorted(self.facts.items())), schedule, self.contradictions)
        self.schedule = schedule
        self.files = TangentFiles(self._tangent_directory()) if plan.kept == "disk" else None
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
            self.reference = InputsReference(hashlib.sha256(self.content).hexdigest(), self.directory / "inputs")
            self.reference.file.write_bytes(self.content)

    def compute_tiles(self, store: KernelStore, report) -> None:
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

            def write(place: tuple[int, int | None], tile: np.ndarray) -> None:
                finish()
                pending.append(writer.submit(store.put, *place, tile))

            try:
                self._run([(0, i, j) for i, j in missing], write)
            finally:
                finish()

    def _run(self, places: list[tuple[int, int, int | None]], finished) -> None:
        """Run tasks: tiles (0, i, j), or sweeps (side, i, None). Those that cannot see the inputs get them sent."""
        tasks = [
            Task(self.reference, self.key, self.schedule, self.files, self.keep, i, j, side) for side, i, j in places
        ]
        unseen: list[Task] = []

        def take(tasks: list[Task], index: int, value: np.ndarray | bool | None) -> None:
            task = tasks[index]
            if value is None:
                unseen.append(replace(task, inputs=replace(task.inputs, content=self.content)))
            elif isinstance(value, np.ndarray):
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
            shutil.rmtree(self._tangent_directory(), ignore_errors=True)
