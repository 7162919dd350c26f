"""What the eigenframework needs of a problem: the kernel's eigenvalues, the target's power in each, the noise."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import as_powers

__all__ = ["FlipNoise", "SpectralTask", "error_bound", "flip_noise", "pool_task", "population_task"]


@dataclass(frozen=True, eq=False)
class SpectralTask:
    """A kernel and a noiseless target in the kernel's eigenbasis; tensors are float64 on the CPU.

    Attributes:
        eigenvalues: (M,) of the kernel operator of the data distribution, or of the pool's kernel matrix.
        power: (M,) squared coefficients of the target in the eigenbasis, summed over outputs.
        pool: number of rows N of the pool that training rows are drawn from without replacement; None: a population.
    """

    eigenvalues: Tensor = field(repr=False)
    power: Tensor = field(repr=False)
    pool: int | None

    def as_population(self) -> "SpectralTask":
        """Take the pool for the population: eigenvalues / N, power / N. The error it makes is what the pool corrects."""
        return self if self.pool is None else SpectralTask(self.eigenvalues / self.pool, self.power / self.pool, None)


@dataclass(frozen=True)
class FlipNoise:
    """Labels that flip: the mean one-hot target shrinks to ``shrink`` times itself, and varies by ``variance``.

    ``variance`` is summed over the classes.
    """

    shrink: float
    variance: float


def population_task(eigenvalues: Any, power: Any) -> SpectralTask:
    """Return a task with known eigenvalues λ_i of the kernel operator and squared target coefficients v_i², both (M,).

    Raises:
        InputError: different lengths, negative values beyond rounding, not finite.
    """
    values, squares = as_powers(eigenvalues, "eigenvalues"), as_powers(power, "power")
    if len(values) != len(squares):
        raise InputError(
            f"{len(values)} eigenvalues and {len(squares)} powers",
            expected="one squared coefficient for each eigenvalue",
            hint="pad the shorter list with zeros",
        )
    return SpectralTask(torch.from_numpy(values), torch.from_numpy(squares), None)


def pool_task(kernel: Any, targets: Any) -> SpectralTask:
    """Return the task of a pool of N rows: its kernel matrix (N, N) and noiseless targets (N,) or (N, C).

    For labels pass centered one-hot rows, one_hot - 1/C, as the kernel machines fit them.

    Raises:
        InputError: shapes that do not fit, not finite, a kernel with negative eigenvalues beyond rounding.
        NumericalError: the kernel is not symmetric.

    Cost: one eigendecomposition of (N, N), on the kernel's device.
    """
    K = as_square_kernel(kernel)
    Y = as_tensor(targets, "targets").to(K)
    if Y.ndim not in (1, 2) or len(Y) != len(K):
        raise InputError(
            f"targets of shape {tuple(Y.shape)} for a kernel of {len(K)} rows",
            expected=f"real targets of shape ({len(K)},) or ({len(K)}, C)",
            hint="pass one_hot(labels, C) - 1 / C for labels",
        )
    values, V = torch.linalg.eigh(K)
    power = (V.T @ Y.reshape(len(K), -1)).square().sum(1)
    return SpectralTask(torch.from_numpy(as_powers(values, "eigenvalues of the kernel")), power.cpu(), len(K))


def flip_noise(rate: float, n_classes: int, *, kind: Literal["symmetric", "uniform"] = "symmetric") -> FlipNoise:
    """Return what flipped labels are to a machine that fits one_hot - 1/C.

    "symmetric" flips go to a wrong class, "uniform" ones to any class. The mean target shrinks by c, and its variance
    given the row, summed over classes, is P (1 - c²) with P = 1 - 1/C the power of a centered one-hot row::

        symmetric: c = 1 - rate C / (C - 1)          uniform: c = 1 - rate

    Raises:
        InputError: a rate outside [0, 1], fewer than 2 classes, another kind.
    """
    rate, n_classes = as_number(rate, "rate", maximum=1.0), as_count(n_classes, "n_classes", minimum=2)
    if kind not in ("symmetric", "uniform"):
        raise InputError(f"kind {kind!r}", expected='"symmetric" or "uniform"', hint="pass one of these")
    shrink = 1 - rate * (n_classes / (n_classes - 1) if kind == "symmetric" else 1.0)
    return FlipNoise(shrink, (1 - 1 / n_classes) * (1 - shrink * shrink))


def error_bound(clean: Any) -> Tensor:
    """Return min(1, 2 x clean): an upper bound on the error rate of argmax, from the squared error to clean labels.

    ``clean`` is the mean over rows of |f(x) - (one_hot - 1/C)|², summed over classes. A wrong argmax is at least 1/√2
    away from the label, hence the bound; nothing sharper follows from a squared error alone.

    Raises:
        InputError: negative or NaN.
    """
    squares = torch.as_tensor(clean, dtype=torch.float64)  # infinite at a peak, which is allowed
    if not bool((squares >= 0).all()):
        raise InputError("a squared error that is negative or NaN", expected="values >= 0", hint="pass curve.clean")
    return (2 * squares).clamp_max(1.0)
