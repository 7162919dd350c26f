"""Table of the tiles of a stored kernel: values as bytes with a SHA-256 of them, of their place and of the facts."""

import hashlib
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_array, as_dense
from kernelmem.core.errors import FileCorruptError, InputError, NumericalError
from kernelmem.kernels.store.database import READ_ERRORS, transaction, translate_read_errors
from kernelmem.kernels.store.layout import MAX_FACT_BYTES, Index, Layout

COLUMNS = "first_row, stop_row, first_column, stop_column, dtype, sha256"
ASYMMETRY_TOLERANCE = 1e-6  # relative to the largest entry of a tile on the diagonal
BLOCK = 256  # rows and columns that are compared with their transpose at a time
REPAIR_HINT = "store.repair(recompute) computes the damaged tiles again, and `kernelmem store repair` drops them"


class TileTable:
    """Reads and writes the tiles of one open file."""

    def __init__(self, connection: sqlite3.Connection, file: Path, layout: Layout, facts_sha256: str) -> None:
        """``facts_sha256`` is part of the hash of every tile, so that a tile of another store does not pass."""
        self._connection, self._file, self._layout, self._facts_sha256 = connection, file, layout, facts_sha256
        self._lock = threading.RLock()
        self._dtype = np.dtype("<f4" if layout.dtype == torch.float32 else "<f8")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(MAX_FACT_BYTES, layout.tile_bytes + 4096))

    def of_copy(self, connection: sqlite3.Connection, file: Path) -> "TileTable":
        """Return the table of the same kernel in another file."""
        return TileTable(connection, file, self._layout, self._facts_sha256)

    def present(self) -> set[int]:
        """Return the numbers of the tiles in the file; their values are not read.

        Raises:
            FileCorruptError: the table cannot be read, or holds tiles that are not part of the kernel.
        """
        with self._lock, translate_read_errors(self._file, "its list of tiles", REPAIR_HINT):
            limit = self._layout.n_stored
            rows = self._connection.execute("SELECT tile FROM tiles").fetchmany(limit + 1)
            numbers = {number for (number,) in rows}
            if len(numbers) < len(rows) or len(rows) > limit or not numbers <= self._all_numbers():
                raise ValueError("a tile is there twice or lies outside of the kernel")
            return numbers

    def read(self, index: Index, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values of a stored tile as a new tensor, after checking its hash.

        Raises:
            InputError: the tile is not stored yet.
            FileCorruptError: the tile was altered.
        """
        query = f"SELECT {COLUMNS}, data FROM tiles WHERE tile = ?"
        with self._lock, translate_read_errors(self._file, f"tile {index}", REPAIR_HINT):
            row = self._connection.execute(query, (self._layout.number(index),)).fetchone()
            if row is None:
                raise InputError(
                    f"{self._file} without tile {index}",
                    expected="a store that holds this tile",
                    hint="compute the tiles of store.missing() first",
                )
            *place, sha256, data = row
            if tuple(place) != self._place(index):
                raise ValueError("its rows, columns or dtype were altered")
            shape = self._layout.tile_shape(index)
            if not isinstance(data, bytes) or len(data) != shape[0] * shape[1] * self._dtype.itemsize:
                raise ValueError(f"it does not hold {shape[0]} x {shape[1]} numbers")
            if sha256 != self._hash(index, data):
                raise ValueError("its sha256 differs from the recorded one")
        target = np.dtype("f4" if (dtype or self._layout.dtype) == torch.float32 else "f8")
        return torch.from_numpy(np.frombuffer(data, self._dtype).reshape(shape).astype(target))

    def write(self, index: Index, array: ArrayLike) -> None:
        """Write one tile to disk; when this returns, it survives a kill and a power failure.

        Raises:
            InputError: another shape or dtype, a tile that is stored with other values, or a disk that cannot be written.
            NumericalError: NaN or infinite values, or a tile on the diagonal of a symmetric kernel that is asymmetric.
        """
        values = self._checked(index, array)
        data = np.ascontiguousarray(values, dtype=self._dtype).data.cast("B")
        sha256 = self._hash(index, data)
        with self._lock, transaction(self._connection, self._file):
            number = self._layout.number(index)
            stored = self._connection.execute("SELECT sha256 FROM tiles WHERE tile = ?", (number,)).fetchone()
            if stored is None:
                row = (number, *self._place(index), sha256, data)
                self._connection.execute("INSERT INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            elif stored[0] != sha256:
                raise InputError(
                    f"tile {index}, which is stored with other values",
                    expected="each tile once, or again with equal values",
                    hint="compute the tiles of store.missing() only",
                )

    def drop(self, indices: list[Index]) -> bool:
        """Delete tiles, and return False, with nothing deleted, if the structure of the file is damaged.

        In a damaged page SQLite would delete bytes of other tiles.
        """
        numbers = [(self._layout.number(index),) for index in indices]
        with self._lock, suppress(*READ_ERRORS):
            self.present()
            if self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                return False
            if indices:
                with transaction(self._connection, self._file):
                    self._connection.executemany("DELETE FROM tiles WHERE tile = ?", numbers)
            return True
        return False

    def sort_out(self, report: Callable[[int, int], object]) -> tuple[list[Index], list[Index]]:
        """Return the stored tiles that can be read with the hash they were written with, and those that cannot."""
        try:
            present = self.present()
        except FileCorruptError:
            present = self._all_numbers()
        stored = [index for index in self._layout.stored() if self._layout.number(index) in present]
        readable: list[Index] = []
        damaged: list[Index] = []
        for done, index in enumerate(stored, 1):
            try:
                self.read(index)
                readable.append(index)
            except FileCorruptError:
                damaged.append(index)
            except InputError:  # not stored, but not in a list that can be read
                pass
            report(done, len(stored))
        return readable, damaged

    def check(self, report: Callable[[int, int], object]) -> None:
        """Check every stored tile and the structure of the whole file.

        Raises:
            FileCorruptError: names the damaged tiles.
        """
        self.present()
        damaged = self.sort_out(report)[1]
        if damaged:
            names = ", ".join(map(str, damaged[:8])) + ", ..." * (len(damaged) > 8)
            raise FileCorruptError(
                f"{self._file} with {len(damaged)} damaged tile{'s' * (len(damaged) > 1)}: {names}",
                expected="the tiles as they were written",
                hint=REPAIR_HINT,
            )
        with self._lock, translate_read_errors(self._file, "its pages", REPAIR_HINT):
            state = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if state != "ok":
                raise ValueError(str(state))

    def _all_numbers(self) -> set[int]:
        return {self._layout.number(index) for index in self._layout.stored()}

    def _place(self, index: Index) -> tuple[int, int, int, int, str]:
        """Return the rows, columns and dtype of a tile, as they are stored."""
        rows, columns = self._layout.rows_of(index[0]), self._layout.columns_of(index[1])
        return rows.start, rows.stop, columns.start, columns.stop, self._dtype.str

    def _hash(self, index: Index, data: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(f"{self._facts_sha256}|{self._place(index)}|".encode())
        digest.update(data)
        return digest.digest()

    def _checked(self, index: Index, array: ArrayLike) -> np.ndarray:
        """Return the values of a tile, after checking their shape, dtype, finiteness and symmetry."""
        name, shape = f"tile {index}", self._layout.tile_shape(index)
        values = as_dense(array, name).cpu().numpy() if isinstance(array, Tensor) else as_array(array, name)
        if values.shape != shape or values.dtype != self._dtype.newbyteorder("="):
            raise InputError(
                f"{name} of shape {values.shape} and dtype {values.dtype}",
                expected=f"shape {shape} and dtype {self._dtype.newbyteorder('=').name}",
                hint="compute the rows and columns of this tile, in the dtype of the store",
            )
        values = np.require(values, requirements=["C", "W"])  # torch shares neither read-only nor reversed memory
        tile = torch.from_numpy(values)
        if not all(bool(torch.isfinite(extreme)) for extreme in tile.aminmax()):
            self._check_finite(index, values)
        if not self._layout.symmetric or index[0] != index[1]:
            return values
        if _is_symmetric(tile):
            return values
        mirrored = tile.triu()
        mirrored += tile.triu(1).T
        gap, largest = float((tile - mirrored).abs().max()), float(tile.abs().max())
        if gap > ASYMMETRY_TOLERANCE * largest:
            raise NumericalError(
                f"{name} on the diagonal of a symmetric kernel with asymmetry {gap:.3g} and entries up to {largest:.3g}",
                expected=f"a symmetric tile (asymmetry at most {ASYMMETRY_TOLERANCE:g} of its largest entry)",
                hint="check that both sides were computed on the same rows, in eval mode",
            )
        return mirrored.numpy()

    def _check_finite(self, index: Index, values: np.ndarray) -> None:
        """Raise an error that names the rows and columns of the kernel with NaN or infinite values, if there are any."""
        wrong = ~np.isfinite(values)
        if not wrong.any():
            return
        # A bad example spoils its whole row or column; only without one are single entries named by their rows.
        rows, columns = np.flatnonzero(wrong.all(1)), np.flatnonzero(wrong.all(0))
        if not len(rows) and not len(columns):
            rows = np.flatnonzero(wrong.any(1))
        first_row, first_column = self._layout.rows_of(index[0]).start, self._layout.columns_of(index[1]).start
        places = [
            f"{name} {', '.join(map(str, numbers[:8] + first))}{', ...' * (len(numbers) > 8)}"
            for name, numbers, first in (
                ("rows", rows, first_row),
                ("columns", columns, first_column),
            )
            if len(numbers)
        ]
        raise NumericalError(
            f"tile {index} with {int(wrong.sum())} NaN or infinite values, in {' and '.join(places)} of the kernel",
            expected="finite values",
            hint="check these examples and the weights (a diverged run?), or compute in float64 if numbers overflow;"
            " the tile was not stored",
        )


def _is_symmetric(tile: Tensor) -> bool:
    """Tell whether a square tile equals its transpose, by blocks that fit in the processor cache."""
    starts = range(0, len(tile), BLOCK)
    return all(
        torch.equal(tile[i : i + BLOCK, j : j + BLOCK], tile[j : j + BLOCK, i : i + BLOCK].T)
        for i in starts
        for j in starts
        if i <= j
    )
