"""Export of a stored kernel to an array file (.npy, .zarr, .h5), block by block, whole or absent."""

import importlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from kernelmem.core.errors import InputError
from kernelmem.core.files import file_system
from kernelmem.core.files.atomic_files import check_directory
from kernelmem.kernels.store.matrix import TiledMatrix

Report = Callable[[int, int], object]
PACKAGES = {".npy": "numpy", ".zarr": "zarr", ".h5": "h5py", ".hdf5": "h5py"}


class _Target(Protocol):
    """Array of zarr or h5py."""

    def __setitem__(self, key: slice, value: np.ndarray, /) -> None:
        """Write rows."""
        ...


def export_matrix(matrix: TiledMatrix, path: Path, report: Report) -> Path:
    """Write a matrix to a file in the format of its suffix.

    Raises:
        InputError: another suffix, a path that exists or cannot be written, or a package that is not installed.
    """
    if path.suffix not in PACKAGES:
        raise InputError(
            f"path {path}", expected=f"a name that ends in {', '.join(PACKAGES)}", hint='pass "kernel.npy"'
        )
    package = _import(PACKAGES[path.suffix], path)
    if os.path.lexists(path):
        raise InputError(f"path {path}, which exists", expected="a new file", hint="remove it, or pass another name")
    matrix.tile(*matrix.layout.last)  # fails before anything is written if the store is incomplete
    file_system.make_directories(check_directory(path.parent))
    with file_system.named(path), file_system.new_path(path) as temporary:
        if path.suffix == ".npy":
            _write_npy(matrix, temporary, report)
        elif path.suffix == ".zarr":
            _write_zarr(package, matrix, temporary, report)
        else:
            _write_hdf5(package, matrix, temporary, report)
    return path


def _write_npy(matrix: TiledMatrix, file: Path, report: Report) -> None:
    header = io.BytesIO()
    layout = {"descr": _dtype(matrix).str, "fortran_order": False, "shape": matrix.shape}
    np.lib.format.write_array_header_1_0(header, layout)

    def chunks() -> Iterator[bytes | memoryview]:
        yield header.getvalue()
        for done, (_, block) in enumerate(matrix.blocks(), 1):
            yield np.ascontiguousarray(block.numpy(), _dtype(matrix)).data.cast("B")
            report(done, matrix.layout.grid[0])

    file_system.write_chunks(file, chunks())


def _write_zarr(zarr: ModuleType, matrix: TiledMatrix, folder: Path, report: Report) -> None:
    chunks = matrix.layout.tile_shape((0, 0))
    array = zarr.create_array(store=str(folder), shape=matrix.shape, chunks=chunks, dtype=_dtype(matrix))
    _copy_blocks(matrix, array, report)


def _write_hdf5(h5py: ModuleType, matrix: TiledMatrix, path: Path, report: Report) -> None:
    """Write an HDF5 file; the library does not see a full disk: HDF5 2.0 crashes if it cannot write when it closes a file."""
    with closing(file_system.DeferredErrors(path)) as stream:

        def check_and_report(done: int, total: int) -> None:
            stream.check()
            report(done, total)

        with h5py.File(stream, "w") as file:
            _copy_blocks(matrix, file.create_dataset("kernel", matrix.shape, _dtype(matrix)), check_and_report)
        stream.check()


def _copy_blocks(matrix: TiledMatrix, target: _Target, report: Report) -> None:
    for done, (rows, block) in enumerate(matrix.blocks(), 1):
        target[rows] = block.numpy()
        report(done, matrix.layout.grid[0])


def _dtype(matrix: TiledMatrix) -> np.dtype:
    return np.dtype(f"<f{matrix.dtype.itemsize}")


def _import(package: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"path {path}, for which the package {package} is not installed",
            expected=f"an installation of {package}",
            hint=f"pip install {package}, or export to a .npy file",
        ) from error
