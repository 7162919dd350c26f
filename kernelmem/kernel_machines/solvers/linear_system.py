"""The kernel of a linear system as array, memory-mapped array, stored kernel or operator, read in blocks of float64."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_array, as_dense
from kernelmem.core.errors import InputError
from kernelmem.core.symmetry import measure_asymmetry
from kernelmem.kernels import KernelStore

EPS = torch.finfo(torch.float64).eps
GATHERED_ROWS = 64  # rows gathered at once by System.columns
TILE = 1024  # diagonal entries of a file read at once
BLOCK = 2**23  # numbers in a block of rows: 64 MiB in float64
Entries = Tensor | np.ndarray


class LinearOperator(Protocol):
    """A square matrix known only by its products, such as an NTKOperator or a SciPy LinearOperator."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n, n) of the matrix."""
        ...

    def __matmul__(self, v: Tensor, /) -> Tensor:
        """Return the product of the matrix and v (n, k), (n, k)."""
        ...


@dataclass(frozen=True, eq=False)
class System:
    """A kernel K (n, n) that is given by its entries, which are read in blocks of rows, or by its products with vectors.

    Results are float64 unless stated otherwise.
    """

    n: int
    device: torch.device
    eps: float  # machine epsilon of the dtype of the entries
    integer: bool  # True if the entries are integers
    mapped: bool  # True if the entries are in a memory-mapped file
    mapping: mmap.mmap | None  # memory map of that file, if its pages can be released
    entries: Entries | None  # None for an operator
    product: Callable[[Tensor], Tensor] | None  # product of an operator with (n, k)
    known_diagonal: Callable[[], Tensor] | None  # diagonal of an operator that provides it

    @property
    def matrix_free(self) -> bool:
        """True if the kernel is an operator, whose entries are unknown."""
        return self.entries is None

    @property
    def is_checked(self) -> bool:
        """True if the entries are known to be finite and exactly symmetric."""
        return False

    @property
    def read_size(self) -> int | None:
        """Number of rows and columns that are read at once to compare the kernel with its transpose; None: the default."""
        return 2048 if self.mapped else None

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the rows ``start`` to ``stop`` − 1 of the kernel, (stop − start, n)."""
        return self._as_float64(self._stored_entries[start:stop])

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return the block of entries at the slices ``rows`` and ``columns``, in the dtype of the kernel."""
        block = self._stored_entries[rows, columns]
        return block if isinstance(block, Tensor) else self._copy_to_memory(block, block.dtype)

    def dense(self) -> Tensor:
        """Return the kernel as a new float64 tensor (n, n), without making it symmetric."""
        if self.entries is None:
            return self.columns(torch.arange(self.n))
        if isinstance(self.entries, Tensor):
            return self.entries.to(torch.float64, copy=True)
        return self._as_float64(self.entries)

    def symmetric(self) -> Tensor:
        """Return the mean of the kernel and its transpose as a new float64 tensor (n, n), which is exactly symmetric."""
        K = self.dense()
        measure_asymmetry(lambda rows, columns: K[rows, columns], self.n, K)
        return K

    def columns(self, indices: Tensor) -> Tensor:
        """Return the columns of the kernel at the k column numbers ``indices``, (n, k)."""
        if self.entries is None:
            unit = torch.zeros(self.n, len(indices), dtype=torch.float64, device=self.device)
            unit[indices, torch.arange(len(indices))] = 1
            return self @ unit
        # Rows instead of columns, because the kernel is symmetric and rows are contiguous in a file.
        columns = torch.empty(self.n, len(indices), dtype=torch.float64, device=self.device)
        for start in range(0, len(indices), GATHERED_ROWS):
            block_indices = indices[start : start + GATHERED_ROWS]
            entries = self.entries
            rows = (
                entries[block_indices.to(self.device)]
                if isinstance(entries, Tensor)
                else entries[block_indices.numpy()]
            )
            columns[:, start : start + GATHERED_ROWS] = self._as_float64(rows).T
        return columns

    def diagonal(self) -> Tensor | None:
        """Return the diagonal of the kernel, (n,), or None for an operator that does not provide its diagonal."""
        if self.entries is None:
            return None if self.known_diagonal is None else self.known_diagonal().to(torch.float64)
        if isinstance(self.entries, Tensor):
            return self._as_float64(self.entries.diagonal())
        # In tiles: in a file, each entry loads many pages.
        tiles = [slice(start, start + TILE) for start in range(0, self.n, TILE)]
        return torch.cat([self._as_float64(self.entries[tile, tile].diagonal()) for tile in tiles])

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product K v, (n, k), for v (n, k), computed in blocks of rows."""
        if self.product is not None:
            return self.product(v)
        if self.mapped:
            return self._product_by_lower_triangle(v)
        return torch.cat([self.rows(i, i + self.rows_per_block) @ v for i in range(0, self.n, self.rows_per_block)])

    def _product_by_lower_triangle(self, v: Tensor) -> Tensor:
        """Return the product K v, (n, k), for v (n, k), where K is in a memory-mapped file.

        Only the lower triangle of K is read, so that rounding cannot make the product asymmetric.
        """
        product = torch.zeros_like(v)
        for start in range(0, self.n, self.rows_per_block):
            stop = min(start + self.rows_per_block, self.n)
            block = self._as_float64(self._stored_entries[start:stop, :stop])
            diagonal_block = block[:, start:]
            block[:, start:] = diagonal_block.tril() + diagonal_block.tril(-1).T
            product[start:stop] += block @ v[:stop]
            product[:start] += block[:, :start].T @ v[start:stop]
        return product

    @property
    def rows_per_block(self) -> int:
        """The number of rows that are read at once."""
        return max(1, BLOCK // self.n)

    @property
    def _stored_entries(self) -> Entries:
        """The entries of a kernel that is not an operator."""
        assert self.entries is not None
        return self.entries

    def _as_float64(self, block: Entries) -> Tensor:
        """Return a block of entries as a float64 tensor."""
        return (
            block.to(torch.float64) if isinstance(block, Tensor) else self._copy_to_memory(block, np.dtype(np.float64))
        )

    def _copy_to_memory(self, block: np.ndarray, dtype: np.dtype) -> Tensor:
        """Return a copy of a block of entries as a tensor of the given dtype, and release the pages of its file."""
        copy = torch.from_numpy(np.array(block, dtype=dtype))
        if self.mapping is not None:  # pages count as memory of this process until released; the system caches them
            self.mapping.madvise(mmap.MADV_DONTNEED)
        return copy


@dataclass(frozen=True, eq=False)
class StoredSystem(System):
    """A stored kernel (n, n), read tile by tile."""

    store: KernelStore

    @property
    def matrix_free(self) -> bool:
        """False: the entries are known."""
        return False

    @property
    def is_checked(self) -> bool:
        """True if one triangle is stored, whose tiles were checked when they were written."""
        return self.store.symmetric

    @property
    def read_size(self) -> int | None:
        """Size of the tiles in the file."""
        return self.store.layout.tile

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the rows ``start`` to ``stop`` − 1 of the kernel, (stop − start, n)."""
        return self.store.rows(start, min(stop, self.n)).to(torch.float64)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return the block of entries at the slices ``rows`` and ``columns``, in the dtype of the kernel."""
        row_numbers, column_numbers = (torch.arange(*part.indices(self.n)) for part in (rows, columns))
        return self.store.entries(row_numbers, column_numbers)

    def dense(self) -> Tensor:
        """Return the kernel as a new float64 tensor (n, n), without making it symmetric."""
        K = torch.empty(self.n, self.n, dtype=torch.float64)
        for rows, block in self.store.blocks():
            K[rows] = block
        return K

    def columns(self, indices: Tensor) -> Tensor:
        """Return the columns of the kernel at the k column numbers ``indices``, (n, k), in one pass over the file."""
        return self.store.entries(indices).T.to(torch.float64) if len(indices) else torch.empty(self.n, 0).double()

    def diagonal(self) -> Tensor | None:
        """Return the diagonal of the kernel, (n,)."""
        return self.store.diagonal().to(torch.float64)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product K v, (n, k), for v (n, k): every tile is read once."""
        return self.store @ v


def as_system(kernel: ArrayLike | LinearOperator | KernelStore | System) -> System:
    """Return a kernel (n, n) as a System.

    The kernel may be a tensor, an array, a memory-mapped array, a KernelStore, an NTKOperator or a SciPy LinearOperator.

    Entries are neither copied nor checked.

    Raises:
        InputError: the kernel is not square, is empty or complex, or does not consist of numbers.
    """
    if isinstance(kernel, System):
        return kernel
    if isinstance(kernel, KernelStore):
        require_square(kernel)
        eps = torch.finfo(kernel.dtype).eps
        return StoredSystem(kernel.shape[0], torch.device("cpu"), eps, False, True, None, None, None, None, kernel)
    if hasattr(kernel, "__matmul__") and not hasattr(kernel, "__array__") and hasattr(kernel, "shape"):
        return _operator_system(cast(LinearOperator, kernel))
    if isinstance(kernel, Tensor):
        entries = as_dense(kernel, "kernel")
        is_integer, eps = not entries.is_floating_point(), EPS
        is_real = not entries.is_complex()
        if is_real and entries.is_floating_point():
            eps = torch.finfo(entries.dtype).eps
        device = entries.device
    else:
        entries = as_array(kernel, "kernel")
        is_integer, is_real, device = entries.dtype.kind in "iub", entries.dtype.kind in "iubf", torch.device("cpu")
        eps = float(np.finfo(entries.dtype).eps) if entries.dtype.kind == "f" else EPS
    if not is_real or entries.ndim != 2 or entries.shape[0] != entries.shape[1] or entries.shape[0] == 0:
        raise InputError(
            f"kernel of shape {tuple(entries.shape)} and dtype {entries.dtype}".replace("torch.", ""),
            expected="a square matrix (n, n) of real numbers, n >= 1",
            hint="pass the kernel of the training rows with themselves",
        )
    return System(len(entries), device, max(eps, EPS), is_integer, *_memory_map(entries), entries, None, None)


def require_square(store: KernelStore) -> None:
    """Check that a stored kernel is square and complete.

    Raises:
        InputError: it is not.
    """
    if store.shape[0] != store.shape[1] or not store.complete:
        n_missing = len(store.missing())
        raise InputError(
            f"stored kernel of shape {store.shape}" + (f" without {n_missing:,} of its tiles" if n_missing else ""),
            expected="a complete square kernel (n, n)",
            hint="compute the missing tiles first" if n_missing else "pass the kernel of one set of rows with itself",
        )


def in_memory(store: KernelStore, memory: int, *, matrices: int, work: str) -> Tensor:
    """Return a stored kernel as a tensor (n, n), in its dtype, if ``matrices`` float64 matrices of its size fit.

    Raises:
        InputError: they take more than ``memory`` bytes; ``work`` names what needs them.
    """
    need = 8 * matrices * store.shape[0] * store.shape[1]
    if need > memory:
        raise InputError(
            f"memory of {memory / 2**30:.2f} GiB for {work}, with a stored kernel of shape {store.shape}",
            expected=f"{need / 2**30:.2f} GiB, {matrices} matrices in float64",
            hint=f'pass memory="{need / 2**30 + 0.1:.1f}GiB", or fewer rows: store.entries(rows, rows); for the largest'
            " eigenvalues scipy.sparse.linalg.eigsh(store.as_scipy(), k=20)",
        )
    return store.rows(0, store.shape[0])


def _operator_system(kernel: LinearOperator) -> System:
    """Return a System for an operator (n, n) that is known only by its products.

    Vectors are converted to the dtype of the operator, and its products to float64.

    Raises:
        InputError: the operator is not square or is empty.
    """
    shape = tuple(kernel.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(
            f"operator of shape {shape}",
            expected="a square operator (n, n)",
            hint="pass the operator of one set of rows",
        )
    device = getattr(kernel, "device", torch.device("cpu"))
    dtype = getattr(kernel, "dtype", None)
    is_torch = isinstance(dtype, torch.dtype)
    eps = torch.finfo(dtype).eps if is_torch else float(np.finfo(dtype or np.float64).eps)

    def product(v: Tensor) -> Tensor:
        """Return the product of the operator and v (n, k) as float64, (n, k)."""
        if is_torch:
            return (kernel @ v.to(dtype)).to(torch.float64)
        return torch.from_numpy(np.asarray(kernel @ v.numpy(), dtype=np.float64))

    diagonal: Callable[[], Tensor] | None = getattr(kernel, "diagonal", None)
    diagonal = diagonal if callable(diagonal) else None
    return System(shape[0], device, max(eps, EPS), False, False, None, None, product, diagonal)


def _memory_map(entries: object) -> tuple[bool, mmap.mmap | None]:
    """Return True and the memory map if the entries are in a memory-mapped file; otherwise False and None.

    The map is also None if its pages must not be released, because it is private and may hold modified values.
    """
    owner, mode = entries, None
    while owner is not None and not isinstance(owner, Tensor | mmap.mmap):
        mode = getattr(owner, "mode", mode)
        owner = getattr(owner, "base", None)
    if not isinstance(owner, mmap.mmap):
        return False, None
    # Only for a shared map: releasing modified pages of a private map would lose what was written.
    return True, owner if mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED") else None
