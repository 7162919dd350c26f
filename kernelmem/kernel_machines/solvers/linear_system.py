"""The kernel of a linear system as array, memory-mapped array or operator, read in blocks of float64."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.core.symmetry import symmetry

EPS = torch.finfo(torch.float64).eps
ROWS = 64  # rows gathered at once
TILE = 1024  # diagonal entries read at once
BLOCK = 2**23  # numbers in a block of rows: 64 MiB in float64
Entries = Tensor | np.ndarray


class LinearOperator(Protocol):
    """A square matrix known only by its products, such as an NTKOperator or a SciPy LinearOperator."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        ...

    def __matmul__(self, v: Tensor, /) -> Tensor:
        """Return the product with v (n, k)."""
        ...


@dataclass(frozen=True, eq=False)
class System:
    """A kernel (n, n), by its entries, read in blocks of rows, or by its products; both are float64."""

    n: int
    device: torch.device
    eps: float  # of the dtype in which the kernel was given
    integer: bool
    mapped: bool  # memory-mapped file
    mapping: mmap.mmap | None  # of that file, if its pages can be released
    entries: Entries | None  # None for an operator
    product: Callable[[Tensor], Tensor] | None  # of an operator
    known_diagonal: Callable[[], Tensor] | None

    @property
    def matrix_free(self) -> bool:
        """True for an operator, whose entries are unknown."""
        return self.entries is None

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows start..stop, (stop - start, n)."""
        return self._read(self._entries[start:stop])

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return a block of the kernel in its own dtype."""
        block = self._entries[rows, columns]
        return block if isinstance(block, Tensor) else self._copy(block, block.dtype)

    def dense(self) -> Tensor:
        """Return the kernel as a new tensor (n, n), not symmetrized."""
        if self.entries is None:
            return self.columns(torch.arange(self.n))
        if isinstance(self.entries, Tensor):
            return self.entries.to(torch.float64, copy=True)
        return self._read(self.entries)

    def symmetric(self) -> Tensor:
        """Return the mean of the kernel and its transpose as a new tensor (n, n), symmetric to the bit."""
        K = self.dense()
        symmetry(lambda rows, columns: K[rows, columns], self.n, K)
        return K

    def columns(self, indices: Tensor) -> Tensor:
        """Return the columns at ``indices``, (n, k)."""
        if self.entries is None:
            unit = torch.zeros(self.n, len(indices), dtype=torch.float64, device=self.device)
            unit[indices, torch.arange(len(indices))] = 1
            return self @ unit
        # Rows instead of columns, because the kernel is symmetric and rows are contiguous in a file.
        columns = torch.empty(self.n, len(indices), dtype=torch.float64, device=self.device)
        for start in range(0, len(indices), ROWS):
            chunk = indices[start : start + ROWS]
            entries = self.entries
            rows = entries[chunk.to(self.device)] if isinstance(entries, Tensor) else entries[chunk.numpy()]
            columns[:, start : start + ROWS] = self._read(rows).T
        return columns

    def diagonal(self) -> Tensor | None:
        """Return the diagonal, (n,), or None if it would take n products."""
        if self.entries is None:
            return None if self.known_diagonal is None else self.known_diagonal().to(torch.float64)
        if isinstance(self.entries, Tensor):
            return self._read(self.entries.diagonal())
        # In tiles: in a file, each entry loads many pages.
        tiles = [slice(i, i + TILE) for i in range(0, self.n, TILE)]
        return torch.cat([self._read(self.entries[tile, tile].diagonal()) for tile in tiles])

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return K v for v (n, k), computed in blocks of rows."""
        if self.product is not None:
            return self.product(v)
        if self.mapped:
            return self._by_lower_triangle(v)
        return torch.cat([self.rows(i, i + self.step) @ v for i in range(0, self.n, self.step)])

    def _by_lower_triangle(self, v: Tensor) -> Tensor:
        """Return K v of a kernel in a file: only half of it is read, and rounding cannot make the product asymmetric."""
        product = torch.zeros_like(v)
        for i in range(0, self.n, self.step):
            j = min(i + self.step, self.n)
            block = self._read(self._entries[i:j, :j])
            diagonal_block = block[:, i:]
            block[:, i:] = diagonal_block.tril() + diagonal_block.tril(-1).T
            product[i:j] += block @ v[:j]
            product[:i] += block[:, :i].T @ v[i:j]
        return product

    @property
    def step(self) -> int:
        """Number of rows in a block."""
        return max(1, BLOCK // self.n)

    @property
    def _entries(self) -> Entries:
        assert self.entries is not None
        return self.entries

    def _read(self, block: Entries) -> Tensor:
        return block.to(torch.float64) if isinstance(block, Tensor) else self._copy(block, np.dtype(np.float64))

    def _copy(self, block: np.ndarray, dtype: np.dtype) -> Tensor:
        copy = torch.from_numpy(np.array(block, dtype=dtype))
        if self.mapping is not None:  # pages count as memory of this process until released; the system caches them
            self.mapping.madvise(mmap.MADV_DONTNEED)
        return copy


def as_system(kernel: ArrayLike | LinearOperator | System) -> System:
    """Return a kernel as a System: tensor, array, memory-mapped array, NTKOperator or SciPy LinearOperator.

    Entries are neither copied nor checked.

    Raises:
        InputError: not square, empty, complex, not numbers.
    """
    if isinstance(kernel, System):
        return kernel
    if hasattr(kernel, "__matmul__") and not hasattr(kernel, "__array__") and hasattr(kernel, "shape"):
        return _operator(cast(LinearOperator, kernel))
    if isinstance(kernel, Tensor):
        entries = kernel.detach()
        integer, eps = not entries.is_floating_point(), EPS
        plain = not entries.is_complex()
        if plain and entries.is_floating_point():
            eps = torch.finfo(entries.dtype).eps
        device = entries.device
    else:
        entries = np.asarray(kernel)
        integer, plain, device = entries.dtype.kind in "iub", entries.dtype.kind in "iubf", torch.device("cpu")
        eps = float(np.finfo(entries.dtype).eps) if entries.dtype.kind == "f" else EPS
    if not plain or entries.ndim != 2 or entries.shape[0] != entries.shape[1] or entries.shape[0] == 0:
        raise InputError(
            f"kernel of shape {tuple(entries.shape)} and dtype {entries.dtype}".replace("torch.", ""),
            expected="a square matrix (n, n) of real numbers, n >= 1",
            hint="pass the kernel of the training rows with themselves",
        )
    return System(len(entries), device, max(eps, EPS), integer, *_memory_map(entries), entries, None, None)


def _operator(kernel: LinearOperator) -> System:
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
        if is_torch:
            return (kernel @ v.to(dtype)).to(torch.float64)
        return torch.from_numpy(np.asarray(kernel @ v.numpy(), dtype=np.float64))

    diagonal: Callable[[], Tensor] | None = getattr(kernel, "diagonal", None)
    diagonal = diagonal if callable(diagonal) else None
    return System(shape[0], device, max(eps, EPS), False, False, None, None, product, diagonal)


def _memory_map(entries: object) -> tuple[bool, mmap.mmap | None]:
    """Return True and the map if the entries are in a memory-mapped file; no map if its pages must not be released."""
    base, mode = entries, None
    while base is not None and not isinstance(base, Tensor | mmap.mmap):
        mode = getattr(base, "mode", mode)
        base = getattr(base, "base", None)
    if not isinstance(base, mmap.mmap):
        return False, None
    # Only for a shared map: releasing modified pages of a private map would lose what was written.
    return True, base if mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED") else None
