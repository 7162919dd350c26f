"""Input of the eigenframework: eigenvalues of the kernel, power of the target in each eigendirection, label noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import (
    ArrayLike,
    as_array,
    as_count,
    as_dense,
    as_number,
    as_square_kernel,
    as_tensor,
    check_choice,
)
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.argument_checks import as_nonnegative

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class SpectralTask(Result):
    """A kernel and a noiseless target in the eigenbasis of the kernel; tensors are float64 on the CPU.

    Attributes:
        eigenvalues: (M,) eigenvalues of the kernel operator of the data distribution, or of the kernel matrix of the pool.
        power: (M,) squared coefficients of the target in the eigenbasis, summed over outputs.
        pool: size N of the pool from which training examples are drawn without replacement; None: a population.
    """

    eigenvalues: Tensor
    power: Tensor
    pool: int | None

    def as_population(self) -> "SpectralTask":
        """Return the task in which the pool of N examples is the population: eigenvalues / N and power / N."""
        return self if self.pool is None else SpectralTask(self.eigenvalues / self.pool, self.power / self.pool, None)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with the columns eigenvalues and power, largest eigenvalue first."""
        import pandas as pd

        order = self.eigenvalues.argsort(descending=True)
        return pd.DataFrame({"eigenvalue": self.eigenvalues[order].numpy(), "power": self.power[order].numpy()})

    def __str__(self) -> str:
        """Return the range of the eigenvalues, and the power of the target in the largest eigendirections, as text."""
        setting = "population" if self.pool is None else f"pool of {self.pool:,} examples"
        order = self.eigenvalues.argsort(descending=True)
        total, eigenvalues, power = float(self.power.sum()), self.eigenvalues[order], self.power[order]
        lines = [
            f"spectral task ({setting}): {int((eigenvalues > 0).sum()):,} positive eigenvalues,"
            f" {float(eigenvalues[0]):.4g} to {float(eigenvalues[-1]):.4g}; target power {total:.4g}"
        ]
        for k in (1, 10, 100, 1000):
            if k < len(power):
                fraction = float(power[:k].sum()) / total if total else 0.0
                lines.append(f"  target power in the {k:>4} largest eigendirections: {fraction:.1%}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FlipNoise:
    """Mean and variance of flipped one-hot labels.

    Attributes:
        shrink: factor by which the mean centered target shrinks.
        variance: variance of the target given the input, summed over classes.
    """

    shrink: float
    variance: float


def population_task(eigenvalues: ArrayLike, power: ArrayLike) -> SpectralTask:
    """Return a task with eigenvalues λ_i of the kernel operator and squared target coefficients v_i², both (M,).

    Raises:
        InputError: the lengths differ, or a value is negative beyond rounding or not finite.
    """
    kernel_eigenvalues, target_power = as_nonnegative(eigenvalues, "eigenvalues"), as_nonnegative(power, "power")
    if len(kernel_eigenvalues) != len(target_power):
        raise InputError(
            f"{len(kernel_eigenvalues)} eigenvalues and {len(target_power)} powers",
            expected="one squared coefficient for each eigenvalue",
            hint="pad the shorter list with zeros",
        )
    return SpectralTask(torch.from_numpy(kernel_eigenvalues), torch.from_numpy(target_power), None)


def pool_task(kernel: ArrayLike, targets: ArrayLike) -> SpectralTask:
    """Return the task of a pool of N examples from its kernel matrix (N, N) and noiseless targets (N,) or (N, C).

    For labels pass centered one-hot rows, one_hot - 1/C, which is what the kernel machines fit.

    Raises:
        InputError: the shapes do not match, a value is not finite, or the kernel has negative eigenvalues beyond rounding.
        NumericalError: the kernel is not symmetric.

    Cost: one eigendecomposition (N, N), on the device of the kernel.
    """
    K = as_square_kernel(kernel)
    Y = as_tensor(targets, "targets").to(K)
    if Y.ndim not in (1, 2) or len(Y) != len(K):
        raise InputError(
            f"targets of shape {tuple(Y.shape)} for a kernel of {len(K)} examples",
            expected=f"real targets of shape ({len(K)},) or ({len(K)}, C)",
            hint="pass one_hot(labels, C) - 1 / C for labels",
        )
    eigenvalues, eigenvectors = torch.linalg.eigh(K)
    power = (eigenvectors.T @ Y.reshape(len(K), -1)).square().sum(1)
    return SpectralTask(torch.from_numpy(as_nonnegative(eigenvalues, "eigenvalues of the kernel")), power.cpu(), len(K))


def flip_noise(rate: float, n_classes: int, *, kind: Literal["symmetric", "uniform"] = "symmetric") -> FlipNoise:
    """Return the mean and variance of flipped labels as seen by regression on one_hot - 1/C.

    "symmetric" flips go to a wrong class, "uniform" ones to any class. The mean target shrinks by c, and its variance
    given the input, summed over classes, is P (1 - c²), P = 1 - 1/C being the power of a centered one-hot row::

        symmetric: c = 1 - rate C / (C - 1)          uniform: c = 1 - rate

    Args:
        rate: flip probability in [0, 1].
        n_classes: number of classes C >= 2.
        kind: "symmetric" (always a wrong class) or "uniform" (any class).

    Raises:
        InputError: the rate is outside of [0, 1], there are fewer than 2 classes, or the kind is unknown.
    """
    rate, n_classes = as_number(rate, "rate", maximum=1.0), as_count(n_classes, "n_classes", minimum=2)
    check_choice(kind, "kind", ("symmetric", "uniform"))
    shrink = 1 - rate * (n_classes / (n_classes - 1) if kind == "symmetric" else 1.0)
    return FlipNoise(shrink, (1 - 1 / n_classes) * (1 - shrink * shrink))


def error_bound(clean: ArrayLike) -> Tensor:
    """Return min(1, 2 · clean), an upper bound on the error rate of argmax, from the squared error to clean labels.

    ``clean`` is the mean over examples of |f(x) - (one_hot - 1/C)|², summed over classes (inf allowed). If argmax is wrong
    f is at least 1/√2 away from the target, hence the bound; no sharper one follows from the squared error alone.

    Raises:
        InputError: a value is negative or NaN.
    """
    if isinstance(clean, Tensor):
        clean = as_dense(clean, "clean").cpu()
        clean = clean if clean.is_complex() else clean.double()
    array = as_array(clean, "clean")
    squared_errors = torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "biuf" else torch.tensor([-1.0])
    if not bool((squared_errors >= 0).all()):
        raise InputError("squared errors with negative or NaN values", expected="values >= 0", hint="pass curve.clean")
    return (2 * squared_errors).clamp_max(1.0)
