"""Kernel matrix in one file: tiles that are written once and checked at every read."""

import hashlib
import json
import os
import sqlite3
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kernelmem.core.checks import ArrayLike, as_count, as_flag, as_indices, as_path, check_callable
from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import write_file
from kernelmem.core.files.hashed_files import JSON
from kernelmem.core.options import Progress, as_progress
from kernelmem.kernels.store.database import connect, translate_read_errors
from kernelmem.kernels.store.export import export_matrix
from kernelmem.kernels.store.header import check_facts, empty_database, read_header
from kernelmem.kernels.store.layout import Index, Layout, as_facts
from kernelmem.kernels.store.matrix import TiledMatrix
from kernelmem.kernels.store.rebuilding import copy_tiles, remove_database, replace_database
from kernelmem.kernels.store.tiles import TileTable
from kernelmem.kernels.store.writer_lock import WriterLock

if TYPE_CHECKING:
    pass

TILE = 2048  # 16 MiB in float32: far more work to compute than to write
OPEN_HINT = "restore the file from a copy, or compute it again"


class KernelStore(TiledMatrix):
    """A kernel matrix (n, m) in one SQLite file, in tiles, larger than memory if need be.

    A tile is written in one transaction with fsync: when :meth:`put` returns, it survives a kill and a power failure, and
    before it is not there at all. Every tile has a SHA-256 of its values, its place and the facts of the store, checked at
    every read. The facts say of what the kernel is: a store is not opened with others. A symmetric store holds the tiles
    (i, j) with i <= j. One process writes, any number read. Pickling sends the path: the copy is open for reading.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "kernel.sqlite"
    >>> K = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 4.0]])
    >>> with KernelStore.create(path, {"data": "three examples"}, 3, tile=2) as store:
    ...     for i, j in store.missing():
    ...         store.put(i, j, K[2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
    >>> with KernelStore.open(path, {"data": "three examples"}) as store:
    ...     store.complete, store @ [1.0, 1.0, 1.0]
    (True, tensor([3.5000, 4.2500, 4.7500], dtype=torch.float64))
    """

    def __init__(self, file: Path, lock: WriterLock | None) -> None:
        """Open a file; :meth:`create` and :meth:`open` are the public ways."""
        self.file = file
        self._process = os.getpid()
        self._lock = lock
        self._connect()

    @classmethod
    def create(
        cls,
        path: str | Path,
        facts: Mapping[str, JSON],
        n: int,
        m: int | None = None,
        *,
        tile: int = TILE,
        dtype: torch.dtype = torch.float32,
        symmetric: bool | None = None,
        notes: Mapping[str, JSON] | None = None,
    ) -> "KernelStore":
        """Create a store without tiles and return it, opened for writing.

        Args:
            path: the file; its directory must exist.
            facts: what determines the values, as JSON: hashes of model, data rows and their order, options.
            n: number of rows.
            m: number of columns; None: n.
            tile: largest number of rows and columns of a tile.
            dtype: torch.float32 or torch.float64.
            symmetric: store one triangle; None: True if ``m`` is None.
            notes: what is recorded but not compared when the store is opened, such as versions.

        Raises:
            InputError: the file exists, an argument is invalid, or the file cannot be written.
        """
        file = as_path(path, "path")
        size = as_count(n, "n")
        layout = Layout.checked(
            size, size if m is None else m, tile, dtype, m is None if symmetric is None else symmetric
        )
        checked_facts, checked_notes = as_facts(facts), as_facts({} if notes is None else notes, "notes")
        if not file.absolute().parent.is_dir():
            raise InputError(
                f"path {file} in a directory that does not exist", expected="a directory", hint="create it first"
            )
        lock = WriterLock(file)
        try:
            if os.path.lexists(file):
                raise InputError(
                    f"path {file}, which exists",
                    expected="a new file",
                    hint="KernelStore.open(path, facts, write=True)",
                )
            write_file(file, empty_database(layout, checked_facts, checked_notes))
            return cls(file, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: str | Path, facts: Mapping[str, JSON] | None = None, *, write: bool = False) -> "KernelStore":
        """Open a store, for reading only unless ``write`` is True.

        ``facts`` are compared with those of the store; None: not compared.

        Raises:
            InputError: there is no such file, other facts (the message says which), or another process is writing it.
            FileCorruptError: the file is not a store, or is damaged.
        """
        file = as_path(path, "path", any_bytes=True)
        expected = None if facts is None else as_facts(facts)
        if not file.is_file():
            raise InputError(f"path {file}, which is not a file", expected="a kernel store", hint="check the path")
        lock = WriterLock(file) if as_flag(write, "write") else None
        store = None
        try:
            store = cls(file, lock)
            if expected is not None:
                check_facts(file, store._facts, expected)
            return store
        except BaseException:
            if store is not None:
                store.close()
            elif lock is not None:
                lock.release()
            raise

    @property
    def facts(self) -> dict[str, JSON]:
        """What determines the values, as passed to :meth:`create`."""
        return json.loads(json.dumps(self._facts))

    @property
    def notes(self) -> dict[str, JSON]:
        """What was recorded and is not compared."""
        return json.loads(json.dumps(self._notes))

    @property
    def complete(self) -> bool:
        """True if all tiles are stored."""
        return len(self._table.present()) == self.layout.n_stored

    def missing(self) -> list[Index]:
        """Return the indices (i, j) of the tiles that are not stored yet, row by row."""
        present = self._table.present()
        return [index for index in self.layout.stored() if self.layout.number(index) not in present]

    def put(self, i: int, j: int, array: ArrayLike) -> None:
        """Write tile (i, j): when this returns, it survives a kill and a power failure.

        The tile holds rows i·tile.. and columns j·tile.. of the kernel. On the diagonal of a symmetric store the upper
        triangle is kept. A tile that is stored already may be written again with equal values.

        Raises:
            InputError: a store opened for reading, an index outside of the kernel or below the diagonal of a symmetric
                one, another shape or dtype, other values than those stored, or a disk that cannot be written.
            NumericalError: NaN or infinite values (the rows are named), or asymmetry; nothing is stored.
        """
        index = self.layout.check_index(i, j)
        self._require_writable()
        if self.symmetric and index[0] > index[1]:
            raise InputError(
                f"tile {index}, below the diagonal of a symmetric kernel",
                expected="tiles (i, j) with i <= j",
                hint=f"put({index[1]}, {index[0]}, array.T)",
            )
        self._table.write(index, array)

    def damaged(self, *, progress: Progress = None) -> list[Index]:
        """Return the indices of the stored tiles whose hash differs or that cannot be read."""
        return self._table.sort_out(as_progress(progress, "verify", "tile"))[1]

    def verify(self, *, progress: Progress = None) -> None:
        """Read and check every stored tile and the structure of the file; missing tiles are not errors.

        Raises:
            FileCorruptError: names the damaged tiles.
        """
        self._table.check(as_progress(progress, "verify", "tile"))

    def repair(
        self, recompute: Callable[[int, int], ArrayLike] | None = None, *, progress: Progress = None
    ) -> list[Index]:
        """Drop the damaged tiles, compute them again, and return their indices; the other tiles are kept.

        Args:
            recompute: maps (i, j) to the values of tile (i, j); None: the tiles are missing afterwards.
            progress: True for a bar, False for none, or a function of (done, total), for the check of all tiles.

        If the damage is to the structure of the file, the readable tiles are copied to a new file that replaces it: this
        needs as much free space as they take.

        Raises:
            InputError: a store opened for reading, or values that :meth:`put` refuses.
            NumericalError: NaN or infinite values.
        """
        self._require_writable()
        if recompute is not None:
            check_callable(recompute, "recompute", ("i", "j"))
        readable, damaged = self._table.sort_out(as_progress(progress, "verify", "tile"))
        if not self._table.drop(damaged):
            copy = copy_tiles(self._table, readable, self.file, empty_database(self.layout, self._facts, self._notes))
            self._finalizer.detach()
            self._connection.close()
            replace_database(copy, self.file)
            self._connect()
        if recompute is not None:
            for i, j in damaged:
                self.put(i, j, recompute(i, j))
        return damaged

    def export(self, path: str | Path, *, progress: Progress = None) -> Path:
        """Write the whole kernel to one array file, block by block; the file is whole or absent.

        The suffix says in which format: .npy (NumPy, can be memory-mapped), .zarr (a directory; package zarr) or .h5 (HDF5,
        data set "kernel"; package h5py).

        Raises:
            InputError: another suffix, a path that exists, a package that is not installed, or an incomplete store.
            FileCorruptError: a tile was altered.
        """
        return export_matrix(self, as_path(path, "path"), as_progress(progress, "export", "block"))

    def subset(self, rows: ArrayLike, path: str | Path) -> "KernelStore":
        """Write the kernel of some rows of a symmetric store, in any order, to a new store, and return it open for reading.

        Its facts are those of this store, and a hash of the row numbers. After an error or an interruption there is no new file.

        Raises:
            InputError: a store that is not symmetric or lacks a tile of these rows, row numbers that repeat or are out of
                range, or a path that exists or cannot be written.
            FileCorruptError: a tile was altered.
        """
        numbers = as_indices(rows, "rows", self.shape[0])
        if not self.symmetric:
            raise InputError(
                f"a store of shape {self.shape} that is not symmetric",
                expected="a symmetric store",
                hint="use store.entries(rows, columns)",
            )
        facts: dict[str, JSON] = {"of": self.facts, "rows": hashlib.sha256(numbers.numpy().tobytes()).hexdigest()}
        layout = self.layout
        part = KernelStore.create(path, facts, len(numbers), tile=layout.tile, dtype=layout.dtype)
        try:
            with part:
                for i in range(part.layout.grid[0]):
                    band = part.layout.rows_of(i)
                    block = self.entries(numbers[band], numbers[band.start :])
                    for j in range(i, part.layout.grid[1]):
                        columns = part.layout.columns_of(j)
                        part.put(i, j, block[:, columns.start - band.start : columns.stop - band.start])
        except BaseException:
            remove_database(part.file)
            raise
        return KernelStore.open(path)

    def close(self) -> None:
        """Close the file; a store opened for writing is then one file again, and another process may write it."""
        self._finalizer()

    def __enter__(self) -> "KernelStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{len(self._table.present())} of {self.layout.n_stored} tiles" if self._finalizer.alive else "closed"
        kind = "symmetric, " if self.symmetric else ""
        return f"KernelStore({self.file}, shape {self.shape}, {self.dtype}, {kind}{state})"

    def __reduce__(self) -> tuple[Callable[[Path], "KernelStore"], tuple[Path]]:
        return KernelStore.open, (self.file.absolute(),)

    def _connect(self) -> None:
        """Open the file and read its header."""
        with translate_read_errors(self.file, "its header", OPEN_HINT):
            self._connection = connect(self.file, write=self._lock is not None)
            self._finalizer = weakref.finalize(self, _close, self._connection, self._lock, self._process)
            self.layout, self._facts, self._notes, facts_sha256 = read_header(self._connection, self.file)
        self._tiles = TileTable(self._connection, self.file, self.layout, facts_sha256)

    def _require_writable(self) -> None:
        if self._lock is None:
            raise InputError(
                f"store {self.file}, opened for reading",
                expected="a store opened for writing",
                hint="KernelStore.open(path, write=True)",
            )


def _close(connection: sqlite3.Connection, lock: WriterLock | None, process: int) -> None:
    if os.getpid() != process:  # a forked process: the file belongs to the other one
        return
    if lock is not None:
        with suppress(sqlite3.Error):  # another process is reading the file: the write-ahead log stays
            connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    if lock is not None:
        lock.release()
