"""Kernel computed tile by tile into a store: planned before it starts, by any executor, resumed after anything."""

import shutil
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from torch import nn

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.checks import as_path, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.kernels.large.facts import facts_of
from kernelmem.kernels.large.options import StoreOptions
from kernelmem.kernels.large.plan import Limits, StorePlan, make_store_plan
from kernelmem.kernels.large.run import StoredKernel, StoreRun
from kernelmem.kernels.store import KernelStore

DEFAULTS = StoreOptions()


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

    >>> import tempfile, torch
    >>> directory = tempfile.mkdtemp()
    >>> with ntk_store(nn.Linear(2, 3), torch.eye(2), path=f"{directory}/kernel.sqlite") as store:
    ...     store.rows(0, 2)
    tensor([[6., 3.],
            [3., 6.]])
    """
    file, report = as_path(path, "path"), as_progress(progress, "NTK", "tile")
    kernel = StoredKernel.of(model, x, y, outputs, forward, options)
    limits = _limits(memory, executor, file, options)
    if not file.absolute().parent.is_dir():
        raise InputError(
            f"path {file} in a directory that does not exist", expected="a directory", hint="create it first"
        )
    facts = facts_of(kernel.inputs, list(kernel.computation.prepared.parameters))
    existing = KernelStore.open(file, facts, write=True) if file.exists() else None
    if existing is not None and existing.complete:
        existing.close()
        return KernelStore.open(file)
    run = StoreRun(kernel, file, facts, executor, options, limits)
    with run.released(), run.begin() if existing is None else run.resume(existing) as store:
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

    >>> import torch
    >>> print(ntk_store_plan(nn.Linear(2, 3), torch.zeros(5000, 2)))  # doctest: +ELLIPSIS
    stored kernel (trace) of 5,000 x 5,000 rows, symmetric, 3 outputs, 9 parameters, float32
    6 tiles of 1,667 rows, ...
    """
    file = as_path(path, "path")
    kernel = StoredKernel.of(model, x, y, outputs, forward, options)
    limits = _limits(memory, executor, file, options)
    n, m = kernel.shape
    return make_store_plan(kernel.computation.engine, n, m, limits, symmetric=kernel.symmetric, tile=options.tile)


def _limits(memory: int | str, executor: Executor | None, file: Path, options: StoreOptions) -> Limits:
    """Return the resources, from memory=, the executor and the disk on which tangents are kept."""
    if executor is not None:
        check_instance(executor, "executor", Executor, hint="pass concurrent.futures.ProcessPoolExecutor(2), or None")
    directory = file.absolute().parent if options.tangents is None else Path(options.tangents).absolute()
    nearest = next(parent for parent in (directory, *directory.parents) if parent.is_dir())
    workers = getattr(executor, "_max_workers", None) or getattr(executor, "num_workers", None) or 1
    shared = executor is None or isinstance(executor, ThreadPoolExecutor)
    return Limits(as_bytes(memory), shutil.disk_usage(nearest).free, workers if isinstance(workers, int) else 1, shared)
