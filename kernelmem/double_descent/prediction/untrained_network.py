"""NTK of an untrained network on a data pool, and the errors it predicts for the trained network."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, as_rows
from kernelmem.core.checks import ArrayLike, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.theory.kernel_ridge.curves import learnabilities, learning_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, SpectralTask
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.prepare import prepare

EPS = torch.finfo(torch.float64).eps


def ridge_of_time(eigenvalues: ArrayLike, time: float) -> float:
    r"""Find the ridge δ with the degrees of freedom of gradient flow, Σ κ_i/(κ_i + δ) = Σ (1 − exp(−t κ_i / n)).

    Gradient flow for time t on the mean over n examples of |f − y|²/2 learns the fraction 1 − exp(−t κ_i/n) of
    eigendirection i, a ridge κ_i/(κ_i + δ). The two filters are similar but not equal, so this is an approximation (of the
    same order, δ ≈ n/t).

    Args:
        eigenvalues: (n,) eigenvalues κ_i of the kernel of the training examples; negative ones count as 0.
        time: t > 0.

    Returns:
        δ; the two sums agree to rounding.

    Raises:
        InputError: a time that is not positive, no positive eigenvalue.

    Cost: O(100 n), bisection.

    Source: Ali, Kolter and Tibshirani 2019 relate the two; matched degrees of freedom: this package.
    """
    kappa = as_tensor(eigenvalues, "eigenvalues", dtype=torch.float64).clamp_min(0)
    time = as_number(time, "time", exclusive=True)
    if kappa.ndim != 1 or not len(kappa) or float(kappa.max()) == 0:
        raise InputError(
            f"eigenvalues of shape {tuple(kappa.shape)} without a positive one",
            expected="eigenvalues of a kernel, (n,)",
            hint="check the kernel",
        )
    degrees = float(-torch.expm1(-time * kappa / len(kappa)).sum())
    # 1 − exp(−u) lies between u/(1 + u) and 2 u/(2 + u) for small u, and below 1: the root is within this range.
    low, high = math.log(EPS * float(kappa.max())), math.log(2 * len(kappa) / time + float(kappa.sum()))
    for _ in range(100):
        middle = (low + high) / 2
        if float((kappa / (kappa + math.exp(middle))).sum()) > degrees:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class ExpectedErrors:
    """Expected squared errors for one width, number of examples and ridge: clean, noisy, training, GCV."""

    clean: float
    noisy: float
    train: float
    gcv: float
    ridge: float


@dataclass(frozen=True, eq=False)
class UntrainedNetwork:
    """One network on the pool of N examples: NTK with eigendecomposition, and outputs before training; float64.

    Attributes:
        kernel: (N, N), or (N C, N C) with the outputs of an example adjacent.
        eigenvalues: (N,) or (N C,).
        eigenvectors: columns.
        clean: (N, C) targets one_hot − 1/C.
        initial: (N, C) outputs f_0, or zeros.
    """

    kernel: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    clean: Tensor
    initial: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        x: Batch,
        labels: Tensor,
        initial: bool,
        forward: Callable[..., Tensor] | None,
        memory: int | str,
        outputs: Literal["trace", "full"],
    ) -> "UntrainedNetwork":
        """Compute kernel, eigenvectors and initial outputs, in float64 on the CPU.

        Raises:
            InputError: labels that do not fit examples and outputs.
        """
        f0 = _outputs(model, x, forward)
        N, C = f0.shape
        if len(labels) != N or int(labels.max()) >= C:
            raise InputError(
                f"{len(labels)} labels up to {int(labels.max())} for outputs of shape {(N, C)}",
                expected=f"{N} labels 0..{C - 1}",
                hint="pair every example of the pool with its label, and give the network one output per class",
            )
        kernel = ntk(model, x, outputs=outputs, dtype=torch.float64, forward=forward, memory=memory).cpu()
        # full: (N, N, C, C) -> (N, C, N, C) -> (N C, N C)
        kernel = kernel / C if outputs == "trace" else kernel.permute(0, 2, 1, 3).reshape(N * C, N * C)
        eigenvalues, eigenvectors = torch.linalg.eigh(kernel)
        # With few parameters the rank is below N; the remaining eigenvalues are rounding errors.
        eigenvalues = torch.where(eigenvalues > len(eigenvalues) * EPS * eigenvalues[-1], eigenvalues, 0.0)
        clean = torch.nn.functional.one_hot(labels.cpu(), C).double() - 1 / C
        return cls(kernel, eigenvalues, eigenvectors, clean, f0 if initial else torch.zeros_like(f0))

    def expected_errors(
        self,
        n: int,
        ridge: float,
        time: float | None,
        flips: FlipNoise,
        train: tuple[Tensor, Tensor] | None,
        seed: int,
    ) -> ExpectedErrors:
        """Return the errors after training on n examples with a ridge, or for a time (``seed`` draws examples for it)."""
        N, C = self.clean.shape
        if time is not None:
            places = self._kernel_rows(torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n])
            eigenvalues = torch.linalg.eigvalsh(self.kernel[places][:, places])
            ridge = ridge_of_time(eigenvalues, time * self.block)
        # A full kernel treats each (example, output) pair as one example, so errors are scaled by C.
        block, size = self.block, len(self.eigenvalues)
        targets = self._spectral(flips.shrink * self.clean - self.initial)  # v = c Y − f_0
        clean = self._spectral(self.clean)
        task = SpectralTask(self.eigenvalues, targets.square().sum(1), size)
        curve = learning_curve(task, [n * block], ridge=ridge, noise=flips.variance / block)
        assert curve.train is not None
        L = learnabilities(task, [n * block], ridge=ridge)[0]
        cross = block * float(((1 - L) * (targets * clean).sum(1)).sum()) / (size - float(L.sum()))
        lost = 1 - flips.shrink
        noisy = block * float(curve.test[0])
        return ExpectedErrors(
            clean=noisy - flips.variance + lost**2 * (1 - 1 / C) + 2 * lost * cross,
            noisy=noisy,
            train=block * float(curve.train[0]),
            gcv=math.nan if train is None else self._gcv(train[0][:n], train[1][:n], ridge),
            ridge=ridge,
        )

    @property
    def block(self) -> int:
        """Number of rows of the kernel per example: 1, or C for a full kernel."""
        return len(self.eigenvalues) // len(self.clean)

    def _kernel_rows(self, examples: Tensor) -> Tensor:
        return (examples[:, None] * self.block + torch.arange(self.block)).flatten()

    def _spectral(self, targets: Tensor) -> Tensor:
        return self.eigenvectors.T @ targets.reshape(len(self.eigenvalues), -1)

    def _gcv(self, examples: Tensor, labels: Tensor, ridge: float) -> float:
        """(1/n) |(I − H) y|² / (tr(I − H) / n)², I − H = δ (K + δ)⁻¹ or its limit δ → 0."""
        C, rows = self.clean.shape[1], self._kernel_rows(examples)
        targets = torch.nn.functional.one_hot(labels, C).double() - 1 / C - self.initial[examples]
        values, vectors = torch.linalg.eigh(self.kernel[rows][:, rows])
        rounding = len(values) * EPS * float(values[-1])
        if ridge > 0:
            shrinkage = ridge / (values.clamp_min(0) + ridge)
        elif float(values[0]) > rounding:
            shrinkage = values[0] / values  # no null space: 1/values up to a factor that cancels
        else:
            shrinkage = (values <= rounding).double()
        residual = (shrinkage[:, None] * (vectors.T @ targets.reshape(len(values), -1))).square().sum()
        return self.block * float(residual * len(values) / shrinkage.sum() ** 2)


def _outputs(model: nn.Module, x: Batch, forward: Callable[..., Tensor] | None) -> Tensor:
    rows = as_rows(x, "x")
    prepared = prepare(model, rows, forward=forward, dtype=torch.float64, device=torch.device("cpu"))
    batch = rows.to(dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        return prepared.outputs(batch.slice(0, batch.n), batch.n).double()
