"""Kernel matrix in one file: tiles that are written once and checked at every read."""

import json
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_flag, as_indices, as_path, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import write_file
from kernelmem.core.files.hashed_files import JSON
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.kernels.store.database import connect, translate_read_errors
from kernelmem.kernels.store.header import check_facts, empty_database, read_header
from kernelmem.kernels.store.layout import Index, Layout, as_facts
from kernelmem.kernels.store.tiles import TileTable
from kernelmem.kernels.store.writer_lock import WriterLock

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

TILE = 2048  # 16 MiB in float32: far more work to compute than to write
OPEN_HINT = "restore the file from a copy, or compute it again"


class KernelStore:
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
        self._writable = lock is not None
        with translate_read_errors(file, "its header", OPEN_HINT):
            connection = connect(file, write=lock is not None)
            self._finalizer = weakref.finalize(self, _close, connection, lock, self._process)
            self.layout, self._facts, self._notes, facts_sha256 = read_header(connection, file)
        self._tiles = TileTable(connection, file, self.layout, facts_sha256)
        self._tiles.present()

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
    def shape(self) -> tuple[int, int]:
        """Shape (n, m) of the kernel."""
        return self.layout.n, self.layout.m

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored values."""
        return self.layout.dtype

    @property
    def symmetric(self) -> bool:
        """True if one triangle is stored."""
        return self.layout.symmetric

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
        if not self._writable:
            raise InputError(
                f"store {self.file}, opened for reading",
                expected="a store opened for writing",
                hint="KernelStore.open(path, write=True)",
            )
        if self.symmetric and index[0] > index[1]:
            raise InputError(
                f"tile {index}, below the diagonal of a symmetric kernel",
                expected="tiles (i, j) with i <= j",
                hint=f"put({index[1]}, {index[0]}, array.T)",
            )
        self._table.write(index, array)

    def tile(self, i: int, j: int) -> Tensor:
        """Return tile (i, j) as a new tensor in the dtype of the store, also below the diagonal of a symmetric one.

        Raises:
            InputError: an index outside of the kernel, or a tile that is not stored yet.
            FileCorruptError: the tile was altered.
        """
        return self._tile(self.layout.check_index(i, j))

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the rows ``start`` to ``stop`` − 1, (stop − start, m), in the dtype of the store.

        Raises:
            InputError: not 0 <= start < stop <= n, or a tile that is not stored yet.
            FileCorruptError: a tile was altered.
        """
        start = as_count(start, "start", minimum=0, maximum=self.shape[0] - 1)
        stop = as_count(stop, "stop", minimum=start + 1, maximum=self.shape[0])
        result = torch.empty(stop - start, self.shape[1], dtype=self.dtype)
        for i in range(start // self.layout.tile, (stop - 1) // self.layout.tile + 1):
            band = self.layout.rows_of(i)
            first, last = max(start, band.start), min(stop, band.stop)
            for j in range(self.layout.grid[1]):
                block = self._tile((i, j))[first - band.start : last - band.start]
                result[first - start : last - start, self.layout.columns_of(j)] = block
        return result

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, K[rows]) for all rows in order, ``tile`` rows at a time, in the dtype of the store."""
        for i in range(self.layout.grid[0]):
            rows = self.layout.rows_of(i)
            yield rows, self.rows(rows.start, rows.stop)

    def entries(self, rows: ArrayLike, columns: ArrayLike | None = None) -> Tensor:
        """Return K[rows][:, columns] for row numbers (a,) and column numbers (b,), (a, b); None: all columns.

        Raises:
            InputError: numbers out of range, or a tile that is not stored yet.
            FileCorruptError: a tile was altered.
        """
        row_numbers = as_indices(rows, "rows", self.shape[0], distinct=False)
        column_numbers = torch.arange(self.shape[1])
        if columns is not None:
            column_numbers = as_indices(columns, "columns", self.shape[1], what="column", distinct=False)
        result = torch.empty(len(row_numbers), len(column_numbers), dtype=self.dtype)
        row_tiles, column_tiles = row_numbers // self.layout.tile, column_numbers // self.layout.tile
        for i in row_tiles.unique().tolist():
            a = (row_tiles == i).nonzero()[:, 0]
            for j in column_tiles.unique().tolist():
                b = (column_tiles == j).nonzero()[:, 0]
                block = self._tile((i, j))[row_numbers[a] - i * self.layout.tile]
                result[a[:, None], b] = block[:, column_numbers[b] - j * self.layout.tile]
        return result

    def diagonal(self) -> Tensor:
        """Return the diagonal (n,) of a square kernel, in the dtype of the store.

        Raises:
            InputError: the kernel is not square, or a tile that is not stored yet.
        """
        if self.shape[0] != self.shape[1]:
            raise InputError(f"a store of shape {self.shape}", expected="a square kernel", hint="pass one set of rows")
        return torch.cat([self._tile((i, i)).diagonal() for i in range(self.layout.grid[0])])

    def __matmul__(self, v: ArrayLike) -> Tensor:
        """Return K v in float64, (n,) or (n, k), for v (m,) or (m, k): every stored tile is read once.

        Raises:
            InputError: another shape, NaN or infinite values, or a tile that is not stored yet.
            FileCorruptError: a tile was altered.
        """
        vectors = as_tensor(v, "v", dtype=torch.float64).cpu()
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.shape[1]:
            raise InputError(
                f"v of shape {tuple(vectors.shape)}",
                expected=f"({self.shape[1]},) or ({self.shape[1]}, k)",
                hint="pass one number per column of the kernel",
            )
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        result = torch.zeros(self.shape[0], columns.shape[1], dtype=torch.float64)
        for index in self.layout.stored():
            block = self._table.read(index, torch.float64)
            i, j = self.layout.rows_of(index[0]), self.layout.columns_of(index[1])
            result[i] += block @ columns[j]
            if self.symmetric and index[0] != index[1]:
                result[j] += block.T @ columns[i]
        return result.reshape(self.shape[0], *vectors.shape[1:])

    def as_scipy(self) -> "LinearOperator":
        """Return a ``scipy.sparse.linalg.LinearOperator`` in float64 of a symmetric store, e.g. for eigsh and lobpcg.

        Raises:
            InputError: the store is not symmetric.
        """
        from scipy.sparse.linalg import LinearOperator

        if not self.symmetric:
            raise InputError(
                f"a store of shape {self.shape} that is not symmetric",
                expected="a symmetric store",
                hint="use store @ v",
            )

        def apply(v: np.ndarray) -> np.ndarray:
            return (self @ v).numpy()

        products = {"matvec": apply, "rmatvec": apply, "matmat": apply, "rmatmat": apply}
        return LinearOperator(self.shape, dtype=np.float64, **products)  # type: ignore[call-arg]  # the stub has no keywords

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """Return the whole kernel as an array, if it has at most 4 GiB.

        Raises:
            InputError: it is larger, or incomplete.
        """
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if size > as_bytes(MEMORY):
            raise InputError(
                f"a stored kernel of {size / 2**30:.1f} GiB to be read into one array",
                expected=f"at most {MEMORY}",
                hint="use it by blocks: store @ v, store.rows(start, stop), store.blocks(), km.solve, km.leave_one_out;"
                " store.rows(0, n) reads all of it",
            )
        array = self.rows(0, self.shape[0]).numpy()
        return array if dtype is None else array.astype(dtype, copy=False)  # type: ignore[arg-type]

    def damaged(self, *, progress: Progress = None) -> list[Index]:
        """Return the indices of the stored tiles whose hash differs or that cannot be read."""
        return self._table.damaged(as_progress(progress, "verify", "tile"))

    def verify(self, *, progress: Progress = None) -> None:
        """Read and check every stored tile and the structure of the file; missing tiles are not errors.

        Raises:
            FileCorruptError: names the damaged tiles.
        """
        self._table.check(as_progress(progress, "verify", "tile"))

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

    @property
    def _table(self) -> TileTable:
        """The table of tiles, if the store is open in this process.

        Raises:
            InputError: the store is closed, or was opened before this process was forked.
        """
        if self._finalizer.alive and self._process == os.getpid():
            return self._tiles
        state = "is closed" if self._process == os.getpid() else f"was opened in process {self._process}"
        raise InputError(
            f"store {self.file}, which {state}", expected="an open store", hint="KernelStore.open(path) in this process"
        )

    def _tile(self, index: Index) -> Tensor:
        """Return a tile in the dtype of the store, mirrored below the diagonal of a symmetric kernel."""
        if self.symmetric and index[0] > index[1]:
            return self._table.read((index[1], index[0])).T
        return self._table.read(index)


def _close(connection: sqlite3.Connection, lock: WriterLock | None, process: int) -> None:
    if os.getpid() != process:  # a forked process: the file belongs to the other one
        return
    if lock is not None:
        with suppress(sqlite3.Error):  # another process is reading the file: the write-ahead log stays
            connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    if lock is not None:
        lock.release()
