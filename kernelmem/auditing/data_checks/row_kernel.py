"""Kernel of all rows of an audit: in memory, or in a file where the audit would exceed its memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from kernelmem.auditing.data_checks.inputs import AuditInputs
from kernelmem.core.batches import concatenate
from kernelmem.core.errors import InputError
from kernelmem.core.options import as_bytes
from kernelmem.kernels import KernelStore, ntk
from kernelmem.kernels.large.temporary_store import temporary_ntk_store

AuditKernel: TypeAlias = Tensor | KernelStore
"""Kernel (N, N) float64 of training rows and then control rows."""

MATRICES = 6  # N x N in float64 at the same time, for the methods in memory
TILE = 512  # largest number of rows that are read from a file at once
STREAMED_COLUMNS = 8 * TILE  # of N numbers, besides one matrix, for the methods that read a file


@contextmanager
def audit_kernel(
    inputs: AuditInputs, control: Tensor, *, memory: int | str, progress: bool | None
) -> Iterator[AuditKernel]:
    """Compute the NTK of the training rows and the ``control`` test rows, trace over outputs, in float64 on the CPU.

    If six matrices of its size exceed the memory, it is written to a file in a temporary directory, which is removed at
    the end of the ``with`` block.

    Raises:
        InputError: one matrix exceeds the memory, or the file exceeds the disk.
    """
    train, test, max_bytes = inputs.rows[0].tree, inputs.rows[1].take(control), as_bytes(memory)
    rows, N = concatenate([train, test], "x_train and x_test"), inputs.rows[0].n + len(control)
    in_memory = 8 * MATRICES * N * N
    if in_memory <= max_bytes:
        kernel = ntk(
            inputs.module, rows, forward=inputs.forward, dtype=torch.float64, memory=max_bytes, progress=progress
        )
        yield kernel.cpu()
        return
    need = 8 * N * (N + STREAMED_COLUMNS)
    if need > max_bytes:
        raise InputError(
            f"memory of {max_bytes / 2**30:.2f} GiB for an audit with the kernel of {N:,} rows",
            expected=f"{need / 2**30:.2f} GiB, one matrix of its size",
            hint=f'pass memory="{need / 2**30 + 0.1:.1f}GiB", fewer test rows (at most max(n, 2000) are used), or random'
            " training rows",
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        temporary_ntk_store(
            inputs.module,
            rows,
            Path(folder) / "kernel",
            tile=TILE,
            forward=inputs.forward,
            memory=max_bytes,
            progress=progress,
        ) as store,
    ):
        yield store


def kernel_blocks(kernel: AuditKernel) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, K[rows]) for all rows in order; the blocks must not be modified."""
    if isinstance(kernel, KernelStore):
        yield from kernel.blocks()
        return
    for start in range(0, len(kernel), TILE):
        rows = slice(start, min(start + TILE, len(kernel)))
        yield rows, kernel[rows]


def kernel_entries(kernel: AuditKernel, rows: Tensor, columns: Tensor) -> Tensor:
    """Return K[rows][:, columns], (a, b)."""
    return kernel.entries(rows, columns) if isinstance(kernel, KernelStore) else kernel[rows[:, None], columns]


@contextmanager
def kernel_of_rows(kernel: AuditKernel, rows: Tensor) -> Iterator[AuditKernel]:
    """Return the kernel of the rows (R,), ascending; of a file, in another file next to it within the ``with`` block."""
    if len(rows) == kernel.shape[0]:
        yield kernel
    elif isinstance(kernel, KernelStore):
        with (
            tempfile.TemporaryDirectory(dir=kernel.file.parent) as folder,
            kernel.subset(rows, Path(folder) / "kernel") as store,
        ):
            yield store
    else:
        yield kernel_entries(kernel, rows, rows)
