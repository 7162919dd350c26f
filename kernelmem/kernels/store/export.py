"""Export of a stored kernel to an array file (.npy, .zarr, .h5), block by block, whole or absent."""

import importlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import check_directory
from kernelmem.kernels.store.matrix import TiledMatrix

Report = Callable[[int, int], object]
PACKAGES = {".npy": "numpy", ".zarr": "zarr", ".h5": "h5py", ".hdf5": "h5py"}


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
    check_directory(path.parent)
    matrix.tile(*matrix.layout.last)  # fails before anything is written if the store is incomplete
    path.parent.mkdir(parents=True, exist_ok=True)
    with _new_file(path) as temporary:
        if path.suffix == ".npy":
            _write_npy(matrix, temporary, report)
        elif path.suffix == ".zarr":
            _write_zarr(package, matrix, temporary, report)
        else:
            with package.File(temporary, "w") as file:
                _copy_blocks(matrix, file.create_dataset("kernel", matrix.shape, _dtype(matrix)), report)
    return path


def _write_npy(matrix: TiledMatrix, file: Path, report: Report) -> None:
    header = {"descr": _dtype(matrix).str, "fortran_order": False, "shape": matrix.shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for done, (_, block) in enumerate(matrix.blocks(), 1):
            stream.write(np.ascontiguousarray(block.numpy(), _dtype(matrix)).data)
            report(done, matrix.layout.grid[0])


def _write_zarr(zarr: Any, matrix: TiledMatrix, folder: Path, report: Report) -> None:
    chunks = matrix.layout.tile_shape((0, 0))
    array = zarr.create_array(store=str(folder), shape=matrix.shape, chunks=chunks, dtype=_dtype(matrix))
    _copy_blocks(matrix, array, report)


def _copy_blocks(matrix: TiledMatrix, target: Any, report: Report) -> None:  # an array of zarr or h5py
    for done, (rows, block) in enumerate(matrix.blocks(), 1):
        target[rows] = block.numpy()
        report(done, matrix.layout.grid[0])


def _dtype(matrix: TiledMatrix) -> np.dtype:
    return np.dtype(f"<f{matrix.dtype.itemsize}")


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file or folder, which is renamed to ``path`` at the end and removed after an error."""
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*"), *temporary.parents[:1]]:
            _sync(file)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise
    _sync(path.absolute().parent)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _import(package: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"path {path}, for which the package {package} is not installed",
            expected=f"an installation of {package}",
            hint=f"pip install {package}, or export to a .npy file",
        ) from error
