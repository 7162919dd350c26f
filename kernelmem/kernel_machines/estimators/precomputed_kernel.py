"""Kernel with precomputed values in an array or a file; the rows X are row numbers of that kernel."""

from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_dense
from kernelmem.core.checks import as_array as check_array
from kernelmem.core.errors import InputError
from kernelmem.kernels import KernelStore

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StoredKernel:
    """Callable kernel(X, Y) that reads K[X][:, Y] from ``values`` (N, N); X and Y are row numbers, (n,) or (n, 1).

    ``values`` is an array, a tensor (on any device), a KernelStore, a path kernel, or another array-like. Clones of an
    estimator share it, so that cross-validation reads one file. For all rows in their order the array itself is returned: a
    memory-mapped or stored one is then streamed by the solver and never copied.

    Raises:
        InputError: row numbers are not whole or out of range, or the values are not a square matrix.

    >>> kernel = StoredKernel(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> kernel([[1]], [[0], [1]]).tolist()
    [[1.0, 3.0]]
    """

    values: ArrayLike | KernelStore

    def __call__(self, X: ArrayLike, Y: ArrayLike | None = None) -> np.ndarray | KernelStore:
        """Return the entries of the stored matrix at row numbers X and column numbers Y, (n, m); Y=None means Y = X."""
        values = self.values
        if not isinstance(values, np.ndarray | KernelStore):
            values = check_array(as_array(values), "values")
        if len(values.shape) != 2 or values.shape[0] != values.shape[1]:
            raise InputError(
                f"stored kernel of shape {values.shape}",
                expected="(N, N), one number per pair of rows",
                hint='compute it on all rows, training and test, without y, with outputs="trace"',
            )
        n = values.shape[0]
        rows = _check_row_numbers(X, n)
        columns = rows if Y is None else _check_row_numbers(Y, n)
        all_rows = np.arange(n)
        if np.array_equal(rows, all_rows) and np.array_equal(columns, all_rows):
            return values
        if isinstance(values, KernelStore):
            return values.entries(rows, columns).numpy()
        return np.asarray(values[rows])[:, columns]

    def __sklearn_clone__(self) -> "StoredKernel":
        """Return this object itself, so that clones of an estimator share the stored values."""
        return self


def as_array(value: T) -> T:
    """Return a tensor on any device as a NumPy array, where bfloat16 becomes float32; return any other value unchanged."""
    if not isinstance(value, Tensor):
        return value
    tensor = as_dense(value, "array").cpu()
    return cast(T, (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _check_row_numbers(rows: ArrayLike, n: int) -> np.ndarray:
    """Check the row numbers of a stored kernel with n rows, (m,) or (m, 1), and return them as (m,) integers.

    Raises:
        InputError: they are not whole numbers in 0..n − 1.
    """
    array = check_array(as_array(rows), "rows")
    numbers = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    are_whole = numbers.ndim == 1 and numbers.dtype.kind in "iuf" and bool(np.all(numbers == np.round(numbers)))
    if not are_whole or (len(numbers) and (numbers.min() < 0 or numbers.max() >= n)):
        raise InputError(
            f"rows of shape {array.shape} and dtype {array.dtype}",
            expected=f"row numbers in 0..{n - 1} of the stored kernel, (n,) or (n, 1)",
            hint='pass X = np.arange(N)[:, None] or a subset of it; with kernel="precomputed" X is the kernel itself',
        )
    return numbers.astype(np.intp)
