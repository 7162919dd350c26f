"""The kernel of a linear system as the solvers see it: an array, a memory-mapped one, or products alone."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.core.symmetry import symmetry

__all__ = ["System", "as_system"]

EPS = torch.finfo(torch.float64).eps
ROWS = 64  # that are gathered at once
TILE = 1024  # entries of the diagonal that are read at once
BLOCK = 2**23  # numbers of a block of rows: 64 MiB in float64


@dataclass(frozen=True, eq=False)
class System:
    """A kernel (n, n): its entries, read in blocks of rows, or its products. All that is read is float64."""

    n: int
    device: torch.device
    eps: float  # of the dtype in which the kernel was given
    integer: bool
    mapped: bool  # lives in a file
    mapping: mmap.mmap | None  # of that file, where its pages can be let go
    entries: Any  # tensor or array; None for an operator
    product: Callable[[Tensor], Tensor] | None  # of an operator
    known_diagonal: Callable[[], Tensor] | None

    @property
    def matrix_free(self) -> bool:
        """Whether the entries are not there."""
        return self.entries is None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop, (stop - start, n)."""
        return self._read(self.entries[start:stop])

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """A part of the kernel in its own dtype."""
        part = self.entries[rows, columns]
        return part if isinstance(part, Tensor) else self._copied(part, part.dtype)

    def dense(self) -> Tensor:
        """The kernel as a new tensor (n, n), as it is."""
        if self.entries is None:
            return self.columns(torch.arange(self.n))
        if isinstance(self.entries, Tensor):
            return self.entries.to(torch.float64, copy=True)
        return self._read(self.entries)

    def symmetric(self) -> Tensor:
        """The kernel as a new tensor (n, n), symmetric to the bit: its mean with its transpose."""
        K = self.dense()
        symmetry(lambda rows, columns: K[rows, columns], self.n, K)
        return K

    def columns(self, indices: Tensor) -> Tensor:
        """Columns at ``indices``, (n, k)."""
        if self.entries is None:
            unit = torch.zeros(self.n, len(indices), dtype=torch.float64, device=self.device)
            unit[indices, torch.arange(len(indices))] = 1
            return self @ unit
        # Rows, since the kernel is symmetric and rows lie together in a file; a few at a time: each brings its neighbors.
        found = torch.empty(self.n, len(indices), dtype=torch.float64, device=self.device)
        for start in range(0, len(indices), ROWS):
            part = indices[start : start + ROWS]
            chosen = part.to(self.device) if isinstance(self.entries, Tensor) else part.numpy()
            found[:, start : start + ROWS] = self._read(self.entries[chosen]).T
        return found

    def diagonal(self) -> Tensor | None:
        """The diagonal, (n,), or None where it would take n products."""
        if self.entries is None:
            return None if self.known_diagonal is None else self.known_diagonal().to(torch.float64)
        if isinstance(self.entries, Tensor):
            return self._read(self.entries.diagonal())
        # Some rows at a time: of a file, each entry brings many pages with it.
        parts = [slice(i, i + TILE) for i in range(0, self.n, TILE)]
        return torch.cat([self._read(self.entries[part, part].diagonal()) for part in parts])

    def __matmul__(self, v: Tensor) -> Tensor:
        """K v for v (n, k), in blocks of rows."""
        if self.product is not None:
            return self.product(v)
        if self.mapped:
            return self._by_lower_triangle(v)
        return torch.cat([self.rows(i, i + self.step) @ v for i in range(0, self.n, self.step)])

    def _by_lower_triangle(self, v: Tensor) -> Tensor:
        """K v of a kernel in a file: half of it is read, and its rounding cannot make it asymmetric."""
        product = torch.zeros_like(v)
        for i in range(0, self.n, self.step):
            j = min(i + self.step, self.n)
            block = self._read(self.entries[i:j, :j])
            own = block[:, i:]
            block[:, i:] = own.tril() + own.tril(-1).T
            product[i:j] += block @ v[:j]
            product[:i] += block[:, :i].T @ v[i:j]
        return product

    @property
    def step(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK // self.n)

    def _read(self, part: Any) -> Tensor:
        if isinstance(part, Tensor):
            return part.to(torch.float64)
        return self._copied(part, np.float64)

    def _copied(self, part: Any, dtype: Any) -> Tensor:
        copy = torch.from_numpy(np.array(part, dtype=dtype))
        if self.mapping is not None:  # pages that were read count as ours until let go; the system keeps them cached
            self.mapping.madvise(mmap.MADV_DONTNEED)
        return copy


def as_system(kernel: Any) -> System:
    """Read a kernel: tensor, array, memory-mapped array, anything NumPy reads, NTKOperator, SciPy LinearOperator.

    Entries are not copied and not checked here.

    Raises:
        InputError: not square, empty, complex, not numbers.
    """
    if isinstance(kernel, System):
        return kernel
    if hasattr(kernel, "__matmul__") and not hasattr(kernel, "__array__") and hasattr(kernel, "shape"):
        return _operator(kernel)
    if isinstance(kernel, Tensor):
        entries: Any = kernel.detach()
        kind, eps = not entries.is_floating_point(), EPS
        plain = not entries.is_complex()
        if plain and entries.is_floating_point():
            eps = torch.finfo(entries.dtype).eps
        device = entries.device
    else:
        entries = np.asarray(kernel)
        kind, plain, device = entries.dtype.kind in "iub", entries.dtype.kind in "iubf", torch.device("cpu")
        eps = float(np.finfo(entries.dtype).eps) if entries.dtype.kind == "f" else EPS
    if not plain or entries.ndim != 2 or entries.shape[0] != entries.shape[1] or entries.shape[0] == 0:
        raise InputError(
            f"kernel of shape {tuple(entries.shape)} and dtype {entries.dtype}".replace("torch.", ""),
            expected="a square matrix (n, n) of real numbers, n >= 1",
            hint="pass the kernel of the training rows with themselves",
        )
    return System(len(entries), device, max(eps, EPS), kind, *_in_a_file(entries), entries, None, None)


def _operator(kernel: Any) -> System:
    shape = tuple(kernel.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(
            f"operator of shape {shape}", expected="a square one", hint="pass the operator of one set of rows"
        )
    device = getattr(kernel, "device", torch.device("cpu"))
    gives_tensors = isinstance(getattr(kernel, "dtype", None), torch.dtype)
    eps = torch.finfo(kernel.dtype).eps if gives_tensors else float(np.finfo(kernel.dtype or np.float64).eps)

    def product(v: Tensor) -> Tensor:
        if gives_tensors:
            return (kernel @ v.to(kernel.dtype)).to(torch.float64)
        return torch.from_numpy(np.asarray(kernel @ v.numpy(), dtype=np.float64))

    diagonal = kernel.diagonal if callable(getattr(kernel, "diagonal", None)) else None
    return System(shape[0], device, max(eps, EPS), False, False, None, None, product, diagonal)


def _in_a_file(entries: Any) -> tuple[bool, mmap.mmap | None]:
    base, mode = entries, None
    while base is not None and not isinstance(base, Tensor | mmap.mmap):
        mode = getattr(base, "mode", mode)
        base = getattr(base, "base", None)
    if not isinstance(base, mmap.mmap):
        return False, None
    # Only of a shared map: letting go of pages that were altered in a private one would lose what was written.
    return True, base if mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED") else None
