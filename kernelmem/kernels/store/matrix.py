"""Kernel matrix that is read tile by tile: rows, entries, diagonal and products without the whole matrix in memory."""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_indices, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.kernels.store.layout import Index, Layout
from kernelmem.kernels.store.tiles import TileTable

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class TiledMatrix:
    """Reading half of a :class:`KernelStore`, which opens and closes the file."""

    file: Path
    layout: Layout
    _process: int  # that opened the file
    _finalizer: weakref.finalize  # closes the file
    _tiles: TileTable

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
                hint="use it by blocks: store @ v, store.rows(start, stop), store.blocks(), km.leave_one_out,"
                " scipy.sparse.linalg.eigsh(store.as_scipy(), k=20); store.rows(0, n) reads all of it",
            )
        array = self.rows(0, self.shape[0]).numpy()
        return array if dtype is None else array.astype(dtype, copy=False)  # type: ignore[arg-type]

    def _tile(self, index: Index) -> Tensor:
        """Return a tile in the dtype of the store, mirrored below the diagonal of a symmetric kernel."""
        if self.symmetric and index[0] > index[1]:
            return self._table.read((index[1], index[0])).T
        return self._table.read(index)

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
