"""A kernel whose values lie in an array, perhaps in a file: rows of X are then row numbers of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.errors import InputError

__all__ = ["StoredKernel", "as_array"]


@dataclass(frozen=True, eq=False)
class StoredKernel:
    """Callable kernel(X, Y) that reads K[X][:, Y] from ``values`` (N, N), X and Y being row numbers, (n,) or (n, 1).

    ``values`` is an array, a tensor (on any device), a path kernel, or whatever else NumPy reads. It is shared, not copied,
    when an estimator is cloned, so that cross-validation reads one file. For all rows in their order it returns the array
    itself: a memory-mapped one is then streamed by the solver and never copied.

    Raises:
        InputError: row numbers that are not whole or out of range; values that are not square.

    >>> kernel = StoredKernel(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> kernel([[1]], [[0], [1]]).tolist()
    [[1.0, 3.0]]
    """

    values: Any

    def __call__(self, X: Any, Y: Any = None) -> Any:
        """K[X][:, Y], (n, m); Y=None means Y = X."""
        values = self.values if isinstance(self.values, np.ndarray) else np.asarray(as_array(self.values))
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise InputError(
                f"stored kernel of shape {values.shape}",
                expected="(N, N), one number for each pair of one set of rows",
                hint='compute it of all rows, training and test, without y, with outputs="trace"',
            )
        rows = _numbers(X, len(values))
        columns = rows if Y is None else _numbers(Y, len(values))
        every = np.arange(len(values))
        if np.array_equal(rows, every) and np.array_equal(columns, every):
            return values
        return np.asarray(values[rows])[:, columns]

    def __sklearn_clone__(self) -> "StoredKernel":
        return self


def as_array(value: Any) -> Any:
    """A tensor, wherever it is, as a NumPy array (bfloat16, which NumPy has not, as float32); all else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _numbers(rows: Any, n: int) -> np.ndarray:
    given = np.asarray(rows)
    numbers = given.reshape(-1) if given.ndim == 2 and given.shape[1] == 1 else given
    whole = numbers.ndim == 1 and numbers.dtype.kind in "iuf" and bool(np.all(numbers == np.round(numbers)))
    if not whole or (len(numbers) and (numbers.min() < 0 or numbers.max() >= n)):
        raise InputError(
            f"rows of shape {given.shape} and dtype {given.dtype}",
            expected=f"row numbers in 0..{n - 1} of the stored kernel, (n,) or (n, 1)",
            hint="pass X = np.arange(N)[:, None], or the numbers of those rows that are wanted;"
            ' kernel="precomputed" takes the kernel itself as X',
        )
    return numbers.astype(np.intp)
