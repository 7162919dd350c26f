"""Tangent kernel in a file that a function makes for its own use, and reads in blocks of rows."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress
from kernelmem.kernels.large.computation import ntk_store, ntk_store_plan
from kernelmem.kernels.large.options import StoreOptions
from kernelmem.kernels.large.plan import StorePlan
from kernelmem.kernels.store import KernelStore


def temporary_ntk_store(
    model: nn.Module,
    x: Batch,
    path: Path,
    *,
    tile: int,
    forward: Forward | None,
    memory: int | str,
    progress: Progress,
) -> KernelStore:
    """Compute the NTK of the rows x, trace over outputs in float64, into a new file with tiles of at most ``tile`` rows.

    Raises:
        InputError: as :func:`temporary_store_plan`.
        NumericalError: as :func:`ntk_store`.
    """
    plan = temporary_store_plan(model, x, path, tile=tile, forward=forward, memory=memory)
    options = StoreOptions(dtype=torch.float64, tile=plan.schedule.tile)
    return ntk_store(model, x, path=path, forward=forward, memory=memory, progress=progress, options=options)


def temporary_store_plan(
    model: nn.Module, x: Batch, path: Path, *, tile: int, forward: Forward | None, memory: int | str
) -> StorePlan:
    """Return the plan of :func:`temporary_ntk_store`: with fewer rows per tile where the tangents need the memory.

    Raises:
        InputError: tiles of one row exceed the memory, or the file exceeds the disk.
    """
    options = StoreOptions(dtype=torch.float64, tile=tile)
    try:
        try:
            plan = ntk_store_plan(model, x, path=path, forward=forward, memory=memory, options=options)
        except InputError:
            options = replace(options, tile=None)  # the largest that fits, which is smaller
            plan = ntk_store_plan(model, x, path=path, forward=forward, memory=memory, options=options)
        plan.check(path)
    except InputError as error:
        raise InputError(
            error.given,
            expected=error.expected,
            hint="pass fewer rows, more memory, or set the environment variable TMPDIR to a directory on a larger disk",
        ) from error
    return plan
