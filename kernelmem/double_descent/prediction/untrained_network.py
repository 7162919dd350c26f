"""NTK of an untrained network on a data pool, and the errors it predicts for the trained network."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import as_rows
from kernelmem.core.checks import as_number
from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory.kernel_ridge.curves import learnabilities, learning_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, SpectralTask
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.prepare import prepare

__all__ = ["ExpectedErrors", "UntrainedNetwork", "ridge_of_time"]

EPS = torch.finfo(torch.float64).eps


def ridge_of_time(values: Any, time: float) -> float:
    r"""Find the ridge δ of as many degrees of freedom as gradient flow: Σ κ_i/(κ_i + δ) = Σ (1 − exp(−t κ_i / n)).

    Flow of time t on the mean over n rows of |f − y|²/2 learns the share 1 − exp(−t κ_i/n) of eigendirection i, a ridge
    κ_i/(κ_i + δ): the two shrink alike, but not equally, so that this is an approximation (of the same order δ ≈ n/t).

    Args:
        values: (n,) eigenvalues of the training rows' kernel.
        time: > 0.

    Returns:
        The ridge; the two counts agree to rounding.

    Raises:
        InputError: a time that is not positive, no positive eigenvalue.

    Source: Ali, Kolter and Tibshirani 2019 relate the two; matched degrees of freedom: here.
    """
    kappa = torch.as_tensor(values, dtype=torch.float64).clamp_min(0)
    time = as_number(time, "time", exclusive=True)
    if kappa.ndim != 1 or not len(kappa) or float(kappa.max()) == 0:
        raise InputError("eigenvalues of which none is positive", expected="those of a kernel", hint="check the kernel")
    wanted = float(-torch.expm1(-time * kappa / len(kappa)).sum())
    # 1 − exp(−u) is between u/(1 + u) and 2 u/(2 + u) for small u and below 1: the root is within this range.
    low, high = math.log(EPS * float(kappa.max())), math.log(2 * len(kappa) / time + float(kappa.sum()))
    for _ in range(100):
        middle = (low + high) / 2
        if float((kappa / (kappa + math.exp(middle))).sum()) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class ExpectedErrors:
    """What is expected at one place, and the ridge that it took."""

    clean: float
    noisy: float
    train: float
    gcv: float
    ridge: float


@dataclass(frozen=True, eq=False)
class UntrainedNetwork:
    """One network on the pool: its kernel, with eigenvectors, and what it gives before training."""

    kernel: Tensor  # (N, N), or (N C, N C): a row's outputs side by side
    values: Tensor  # its eigenvalues
    vectors: Tensor
    clean: Tensor  # (N, C): one_hot - 1/C
    start: Tensor  # (N, C): f_0, or zeros

    @classmethod
    def of(
        cls,
        model: nn.Module,
        x: Any,
        labels: Tensor,
        initial: bool,
        forward: Callable[[nn.Module, Any], Tensor] | None,
        memory: int | str,
        outputs: Literal["trace", "full"],
    ) -> "UntrainedNetwork":
        """Compute kernel, eigenvectors and initial outputs, in float64 on the CPU.

        Raises:
            InputError: labels that do not fit rows and outputs.
        """
        start = _outputs(model, x, forward)
        N, C = start.shape
        if len(labels) != N or int(labels.max()) >= C:
            raise InputError(
                f"{len(labels)} labels up to {int(labels.max())} for outputs of shape {(N, C)}",
                expected=f"{N} labels 0..{C - 1}",
                hint="pair every row of the pool with its label, and give the network an output for each class",
            )
        kernel = ntk(model, x, outputs=outputs, dtype=torch.float64, forward=forward, memory=memory).cpu()
        kernel = kernel / C if outputs == "trace" else kernel.permute(0, 2, 1, 3).reshape(N * C, N * C)
        values, vectors = torch.linalg.eigh(kernel)
        # The rank of few parameters is below N: what rounding leaves there is none.
        values = torch.where(values > len(values) * EPS * values[-1], values, 0.0)
        clean = torch.nn.functional.one_hot(labels.cpu(), C).double() - 1 / C
        return cls(kernel, values, vectors, clean, start if initial else torch.zeros_like(start))

    def expected_errors(
        self,
        n: int,
        ridge: float,
        time: float | None,
        flips: FlipNoise,
        train: tuple[Tensor, Tensor] | None,
        seed: int,
    ) -> ExpectedErrors:
        """The errors after training on n rows, by a ridge or for a time; ``seed`` draws the rows that a time needs."""
        N, C = self.clean.shape
        if time is not None:
            drawn = self._places(torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n])
            ridge = ridge_of_time(torch.linalg.eigvalsh(self.kernel[drawn][:, drawn]), time * self.block)
        # Of the kernel between outputs every output of a row counts as a row with one output, and errors are C times its.
        block, size = self.block, len(self.values)
        wanted = self._spectral(flips.shrink * self.clean - self.start)
        clean = self._spectral(self.clean)
        task = SpectralTask(self.values, wanted.square().sum(1), size)
        curve = learning_curve(task, [n * block], ridge=ridge, noise=flips.variance / block)
        assert curve.train is not None
        learned = learnabilities(task, [n * block], ridge=ridge)[0]
        left = block * float(((1 - learned) * (wanted * clean).sum(1)).sum()) / (size - float(learned.sum()))
        lost = 1 - flips.shrink
        noisy = block * float(curve.test[0])
        return ExpectedErrors(
            clean=noisy - flips.variance + lost**2 * (1 - 1 / C) + 2 * lost * left,
            noisy=noisy,
            train=block * float(curve.train[0]),
            gcv=math.nan if train is None else self._gcv(train[0][:n], train[1][:n], ridge),
            ridge=ridge,
        )

    @property
    def block(self) -> int:
        """Rows of the kernel for each row of the pool."""
        return len(self.values) // len(self.clean)

    def _places(self, rows: Tensor) -> Tensor:
        return (rows[:, None] * self.block + torch.arange(self.block)).flatten()

    def _spectral(self, targets: Tensor) -> Tensor:
        return self.vectors.T @ targets.reshape(len(self.values), -1)

    def _gcv(self, rows: Tensor, labels: Tensor, ridge: float) -> float:
        """(1/n) |(I − H) y|² / (tr(I − H) / n)², I − H = δ (K + δ)⁻¹ or its limit δ → 0."""
        C, places = self.clean.shape[1], self._places(rows)
        targets = torch.nn.functional.one_hot(labels, C).double() - 1 / C - self.start[rows]
        values, vectors = torch.linalg.eigh(self.kernel[places][:, places])
        rounding = len(values) * EPS * float(values[-1])
        if ridge > 0:
            rest = ridge / (values.clamp_min(0) + ridge)
        elif float(values[0]) > rounding:
            rest = values[0] / values  # of a kernel without a null space: up to a factor that cancels
        else:
            rest = (values <= rounding).double()
        residual = (rest[:, None] * (vectors.T @ targets.reshape(len(values), -1))).square().sum()
        return self.block * float(residual * len(values) / rest.sum() ** 2)


def _outputs(model: nn.Module, x: Any, forward: Callable[[nn.Module, Any], Tensor] | None) -> Tensor:
    rows = as_rows(x, "x_pool")
    prepared = prepare(model, rows, forward=forward, dtype=torch.float64, device=torch.device("cpu"))
    cast = rows.to(dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        return prepared.outputs(cast.slice(0, cast.n), cast.n).double()
