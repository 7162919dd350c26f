"""Scores of kernel regressions that predict each row from the rows before it, by one Cholesky factorization per ridge."""

import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError, NumericalError
from kernelmem.core.checks import as_square_kernel
from kernelmem.core.options import MAX_BYTES
from kernelmem.kernel_machines.solvers.factorization import EPS, cholesky_in_place
from kernelmem.kernel_machines.solvers.panel_factor import PANEL, factorize_stored
from kernelmem.kernels import KernelStore

STREAMED_COLUMNS = 9 * PANEL  # of n numbers, half of them next to the factor of a kernel in a file
SMALL = 2000  # rows of a kernel whose eigenvalues are computed for an error message


def scaled_kernel(kernel: Tensor, name: str, rows: Tensor) -> Tensor:
    """Return the kernel (n, n) with its ``rows`` and columns reordered, divided by its mean diagonal entry.

    Raises:
        InputError: a diagonal entry is negative, or all are zero.
    """
    scale = _mean_diagonal(kernel, name)
    return kernel[rows[:, None], rows].div_(scale)


def _mean_diagonal(kernel: Tensor | KernelStore, name: str) -> float:
    """Return the mean diagonal entry of a kernel.

    Raises:
        InputError: a diagonal entry is negative, or all are zero.
    """
    diagonal = kernel.diagonal().to(torch.float64)
    scale = float(diagonal.mean())
    if float(diagonal.min()) < 0 or scale == 0:
        raise InputError(
            f"{name} with diagonal entries from {float(diagonal.min()):.3g} to {float(diagonal.max()):.3g}",
            expected="diagonal entries >= 0, not all zero",
            hint="pass a positive semidefinite kernel of the rows with themselves",
        )
    return scale


def cholesky_factor(kernel: Tensor, ridge: float, name: str) -> Tensor:
    """Return the lower Cholesky factor of kernel + ridge I, (n, n).

    Raises:
        NumericalError: not positive definite beyond rounding.
    """
    L, largest_diagonal, positive = cholesky_in_place(kernel.clone(), ridge)
    rounding = len(kernel) * EPS * largest_diagonal
    if not positive or float(L.diagonal().min()) ** 2 <= rounding:
        raise _not_positive(name, ridge, rounding, kernel if len(kernel) <= SMALL else None)
    return L


def _not_positive(name: str, ridge: float, rounding: float, kernel: Tensor | None) -> NumericalError:
    """Return the error of a scaled kernel whose sum with the ridge is not positive definite beyond ``rounding``.

    ``kernel`` is None if it is large: its eigenvalues would take minutes.
    """
    smallest = None if kernel is None else float(torch.linalg.eigvalsh(kernel)[0])
    known = (
        "" if smallest is None else f" with smallest eigenvalue {smallest:.3g} relative to its mean diagonal entry, and"
    )
    needed = 100 * rounding if smallest is None else max(-2 * smallest, 100 * rounding)
    return NumericalError(
        f"{name}{known} ridge {ridge:g}",
        expected="kernel + ridge positive definite, beyond rounding",
        hint="check that the kernel is positive semidefinite and in float64"
        + (f", or pass options=OnlineOptions(ridges=[...]) with ridges above {needed:.1g}" if needed < 1 else ""),
    )


def _means_and_variances(L: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean μ (n, C) and the variance v (n,) of every row given the targets (n, C) of the rows before it.

    The Cholesky factor L (n, n) is overwritten.
    """
    z = torch.linalg.solve_triangular(L, targets, upper=False)
    variance = L.diagonal().square()
    L.diagonal().zero_()  # Y − L_ii z would be the same, but for rounding by the label of the row itself
    return L @ z, variance


def _stored_predictions(
    store: KernelStore, name: str, rows: Tensor, ridges: Sequence[float], targets: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same for a kernel in a file and each ridge, with rows and columns reordered, in half a matrix of memory."""
    scale = _mean_diagonal(store, name)
    with (
        tempfile.TemporaryDirectory(dir=store.file.parent) as folder,
        store.subset(rows, Path(folder) / "kernel") as ordered,
    ):
        for ridge in ridges:
            try:  # the factor of the scaled kernel times the scale
                factor = factorize_stored(ordered, targets, ridge * scale, MAX_BYTES)
            except NumericalError as error:
                n = len(rows)
                rounding = n * EPS * (float(ordered.diagonal().max()) / scale + ridge)
                kernel = ordered.rows(0, n).to(torch.float64) / scale if n <= SMALL else None
                raise _not_positive(name, ridge, rounding, kernel) from error
            diagonals = [panel.diagonal() for panel in factor.panels]
            variance = torch.cat(diagonals).square() / scale
            for diagonal in diagonals:
                diagonal.zero_()
            yield factor.product(factor.whitened), variance


def kernel_score_bytes(n: int, n_classes: int, n_scores: int, *, streamed: bool) -> int:
    """Return the memory of :meth:`KernelScores.of_all_rows`, besides the kernels of n rows; ``streamed``: they are in files."""
    matrices = (n * n + n * STREAMED_COLUMNS) // 2 if streamed else 4 * n * n
    return 8 * (matrices + (n_scores + 2) * n * n_classes)


class KernelScores:
    """Scores of kernel regressions, (kernels × ridges, C) for each row, from the labels of the rows before it.

    For K + ridge I = L Lᵀ, targets Y = one-hot − 1/C and z = L⁻¹ Y, the Gaussian process prediction of row i from the rows
    before it has mean μ_i = Σ_{j<i} L_ij z_j and variance v_i = L_ii² (ridge included). The score is μ_i / v_i: up to a
    constant, the log-likelihood of each one-hot vector.
    """

    def __init__(
        self, kernels: Mapping[str, Tensor | KernelStore], ridges: Sequence[float], n_classes: int, order: np.ndarray
    ) -> None:
        """Use kernels (n, n) by name, with rows and columns in the ``order`` (n,), and every one of the ``ridges``."""
        self._kernels, self._ridges, self._n_classes = kernels, ridges, n_classes
        self._order = torch.from_numpy(order)
        self.names = [
            f"kernel {name}, ridge {ridge:g}" if name else f"ridge {ridge:g}" for name in kernels for ridge in ridges
        ]

    def __len__(self) -> int:
        """Return the number n of rows."""
        return len(self._order)

    def of_all_rows(self, labels: np.ndarray) -> np.ndarray:
        """Return the scores (B, n, C) of all rows, given the labels (n,).

        Cost: a factorization, n³/3 operations, and 2 n² C for each kernel and ridge; memory: four n² arrays, or half of one
        for kernels in files.
        """
        targets = torch.full((len(labels), self._n_classes), -1 / self._n_classes, dtype=torch.float64)
        targets[torch.arange(len(labels)), torch.from_numpy(labels)] += 1
        scores = np.empty((len(self.names), len(labels), self._n_classes))
        for b, (mean, variance) in enumerate(self._predictions(targets)):
            scores[b] = (mean / variance[:, None]).numpy()
        return scores

    def n_bytes(self, *, decoding: bool) -> int:
        """Return the memory of :meth:`of_all_rows`, or of :meth:`one_by_one` if ``decoding``, besides the kernels."""
        streamed = all(isinstance(kernel, KernelStore) for kernel in self._kernels.values()) and not decoding
        factors = len(self.names) * len(self) ** 2 if decoding else 0
        return kernel_score_bytes(len(self), self._n_classes, len(self.names), streamed=streamed) + 8 * factors

    def one_by_one(self) -> Generator[np.ndarray, int, None]:
        """Yield the scores (B, C) of one row after the other, and receive the label of each.

        Memory: kernels × ridges × n² numbers, for all factors at once.
        """
        n, C = len(self), self._n_classes
        factors = np.empty((len(self.names), n, n))
        each = (
            L
            for name, K in self._kernels.items()
            for L in self._factors(as_square_kernel(K), f"kernel {name}".rstrip())
        )
        for b, L in enumerate(each):
            factors[b] = L.numpy()
        z = np.zeros((len(self.names), n, C))
        for i in range(n):
            diagonal = factors[:, i, i, None]
            mean = (factors[:, i : i + 1, :i] @ z[:, :i])[:, 0]
            label = yield mean / diagonal**2
            target = np.full(C, -1 / C)
            target[label] += 1
            z[:, i] = (target - mean) / diagonal

    def _predictions(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the means (n, C) and variances (n,) of every kernel and ridge."""
        for label, kernel in self._kernels.items():
            name = f"kernel {label}".rstrip()
            if isinstance(kernel, KernelStore):
                yield from _stored_predictions(kernel, name, self._order, self._ridges, targets)
            else:
                for L in self._factors(kernel, name):
                    yield _means_and_variances(L, targets)

    def _factors(self, kernel: Tensor, name: str) -> Iterator[Tensor]:
        """Yield the Cholesky factor of a kernel for each ridge."""
        scaled = scaled_kernel(kernel, name, self._order)
        for ridge in self._ridges:
            yield cholesky_factor(scaled, ridge, name)
