"""Input of the eigenframework: eigenvalues of the kernel, power of the target in each eigendirection, label noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.double_descent.argument_checks import as_powers

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class SpectralTask(Result):
    """A kernel and a noiseless target in the eigenbasis of the kernel; tensors are float64 on the CPU.

    Attributes:
        eigenvalues: (M,) of the kernel operator of the data distribution, or of the kernel matrix of the pool.
        power: (M,) squared coefficients of the target in the eigenbasis, summed over outputs.
        pool: size N of the pool from which training examples are drawn without replacement; None: a population.
    """

    eigenvalues: Tensor
    power: Tensor
    pool: int | None

    def as_population(self) -> "SpectralTask":
        """Treat the pool as the population: eigenvalues / N, power / N (without the finite-pool correction)."""
        return self if self.pool is None else SpectralTask(self.eigenvalues / self.pool, self.power / self.pool, None)

    def to_frame(self) -> "pd.DataFrame":
        """Return eigenvalues and power, largest eigenvalue first."""
        import pandas as pd

        order = self.eigenvalues.argsort(descending=True)
        return pd.DataFrame({"eigenvalue": self.eigenvalues[order].numpy(), "power": self.power[order].numpy()})

    def __str__(self) -> str:
        where = "population" if self.pool is None else f"pool of {self.pool:,} examples"
        order = self.eigenvalues.argsort(descending=True)
        total, eigenvalues, power = float(self.power.sum()), self.eigenvalues[order], self.power[order]
        lines = [
            f"spectral task ({where}): {int((eigenvalues > 0).sum()):,} positive eigenvalues,"
            f" {float(eigenvalues[0]):.4g} to {float(eigenvalues[-1]):.4g}; target power {total:.4g}"
        ]
        for k in (1, 10, 100, 1000):
            if k < len(power):
                share = float(power[:k].sum()) / total if total else 0.0
                lines.append(f"  target power in the {k:>4} largest eigendirections: {share:.1%}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FlipNoise:
    """Label flips: the mean one-hot target shrinks by the factor ``shrink``, with ``variance`` summed over classes."""

    shrink: float
    variance: float


def population_task(eigenvalues: ArrayLike, power: ArrayLike) -> SpectralTask:
    """Return a task with eigenvalues λ_i of the kernel operator and squared target coefficients v_i², both (M,).

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


def pool_task(kernel: ArrayLike, targets: ArrayLike) -> SpectralTask:
    """Return the task of a pool of N examples from its kernel matrix (N, N) and noiseless targets (N,) or (N, C).

    For labels pass centered one-hot rows, one_hot - 1/C, which is what the kernel machines fit.

    Raises:
        InputError: incompatible shapes, not finite, a kernel with negative eigenvalues beyond rounding.
        NumericalError: an asymmetric kernel.

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
    values, V = torch.linalg.eigh(K)
    power = (V.T @ Y.reshape(len(K), -1)).square().sum(1)
    return SpectralTask(torch.from_numpy(as_powers(values, "eigenvalues of the kernel")), power.cpu(), len(K))


def flip_noise(rate: float, n_classes: int, *, kind: Literal["symmetric", "uniform"] = "symmetric") -> FlipNoise:
    """Return the mean and variance of flipped labels as seen by regression on one_hot - 1/C.

    "symmetric" flips go to a wrong class, "uniform" ones to any class. The mean target shrinks by c, and its variance
    given the input, summed over classes, is P (1 - c²), P = 1 - 1/C being the power of a centered one-hot row::

        symmetric: c = 1 - rate C / (C - 1)          uniform: c = 1 - rate

    Args:
        rate: flip probability in [0, 1].
        n_classes: C >= 2.
        kind: "symmetric" or "uniform".

    Raises:
        InputError: a rate outside [0, 1], fewer than 2 classes, another kind.
    """
    rate, n_classes = as_number(rate, "rate", maximum=1.0), as_count(n_classes, "n_classes", minimum=2)
    if kind not in ("symmetric", "uniform"):
        raise InputError(f"kind={kind!r}", expected='"symmetric" or "uniform"', hint="pass one of these")
    shrink = 1 - rate * (n_classes / (n_classes - 1) if kind == "symmetric" else 1.0)
    return FlipNoise(shrink, (1 - 1 / n_classes) * (1 - shrink * shrink))


def error_bound(clean: ArrayLike) -> Tensor:
    """Return min(1, 2 · clean), an upper bound on the error rate of argmax, from the squared error to clean labels.

    ``clean`` is the mean over examples of |f(x) - (one_hot - 1/C)|², summed over classes (inf allowed). If argmax is wrong
    f is at least 1/√2 away from the target, hence the bound; no sharper one follows from the squared error alone.

    Raises:
        InputError: negative or NaN.
    """
    squares = torch.as_tensor(clean, dtype=torch.float64)
    if not bool((squares >= 0).all()):
        raise InputError("squared errors with negative or NaN values", expected="values >= 0", hint="pass curve.clean")
    return (2 * squares).clamp_max(1.0)
