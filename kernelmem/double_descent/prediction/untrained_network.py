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
        InputError: the time is not positive, or no eigenvalue is positive.

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
    degrees_of_freedom = float(-torch.expm1(-time * kappa / len(kappa)).sum())
    # 1 − exp(−u) lies between u/(1 + u) and 2 u/(2 + u) for small u, and below 1: the root is within this range.
    log_low, log_high = math.log(EPS * float(kappa.max())), math.log(2 * len(kappa) / time + float(kappa.sum()))
    for _ in range(100):
        log_middle = (log_low + log_high) / 2
        if float((kappa / (kappa + math.exp(log_middle))).sum()) > degrees_of_freedom:
            log_low = log_middle
        else:
            log_high = log_middle
    return math.exp((log_low + log_high) / 2)


@dataclass(frozen=True)
class ExpectedErrors:
    """Expected squared errors for one width, number of training examples and ridge.

    Attributes:
        clean: error on held-out examples with respect to clean labels.
        noisy: error on held-out examples with respect to noisy labels.
        train: error on the training examples with respect to their noisy labels.
        gcv: estimate of ``noisy`` by generalized cross-validation; NaN without training labels.
        ridge: ridge that the errors were computed with.
    """

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
        eigenvalues: (N,) or (N C,), increasing; rounding errors are set to zero.
        eigenvectors: eigenvectors of the kernel, one per column.
        centered_one_hot: (N, C) clean targets, one_hot − 1/C.
        initial_outputs: (N, C) outputs f_0 before training, or zeros.
    """

    kernel: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    centered_one_hot: Tensor
    initial_outputs: Tensor

    @classmethod
    def compute(
        cls,
        model: nn.Module,
        x: Batch,
        labels: Tensor,
        start_from_outputs: bool,
        forward: Callable[..., Tensor] | None,
        memory: int | str,
        outputs: Literal["trace", "full"],
    ) -> "UntrainedNetwork":
        """Compute the NTK of the model on the pool ``x``, its eigendecomposition and the initial outputs; float64, CPU.

        If ``start_from_outputs`` is false, the initial outputs are replaced by zeros.

        Raises:
            InputError: the number of labels differs from that of the examples, or a label exceeds the number of outputs.
        """
        initial_outputs = _initial_outputs(model, x, forward)
        N, C = initial_outputs.shape
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
        centered_one_hot = torch.nn.functional.one_hot(labels.cpu(), C).double() - 1 / C
        return cls(
            kernel,
            eigenvalues,
            eigenvectors,
            centered_one_hot,
            initial_outputs if start_from_outputs else torch.zeros_like(initial_outputs),
        )

    def expected_errors(
        self,
        n: int,
        ridge: float,
        time: float | None,
        flip_moments: FlipNoise,
        training_labels: tuple[Tensor, Tensor] | None,
        seed: int,
    ) -> ExpectedErrors:
        """Predict the errors after training on n examples with the given ridge, or by gradient flow for the given time.

        A time is converted to a ridge with the kernel of n random examples, which ``seed`` determines. ``training_labels``
        are (indices, labels) of examples for generalized cross-validation; None: it is NaN.
        """
        N, C = self.centered_one_hot.shape
        if time is not None:
            kernel_rows = self._kernel_rows(torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n])
            eigenvalues = torch.linalg.eigvalsh(self.kernel[kernel_rows][:, kernel_rows])
            ridge = ridge_of_time(eigenvalues, time * self.rows_per_example)
        # A full kernel treats each (example, output) pair as one example, so errors are scaled by C.
        rows_per_example, n_rows = self.rows_per_example, len(self.eigenvalues)
        v = flip_moments.shrink * self.centered_one_hot - self.initial_outputs
        targets = self._to_eigenbasis(v)
        clean_targets = self._to_eigenbasis(self.centered_one_hot)
        task = SpectralTask(self.eigenvalues, targets.square().sum(1), n_rows)
        curve = learning_curve(
            task, [n * rows_per_example], ridge=ridge, noise=flip_moments.variance / rows_per_example
        )
        assert curve.train is not None
        L = learnabilities(task, [n * rows_per_example], ridge=ridge)[0]
        cross_term = (
            rows_per_example * float(((1 - L) * (targets * clean_targets).sum(1)).sum()) / (n_rows - float(L.sum()))
        )
        label_shrinkage = 1 - flip_moments.shrink
        noisy = rows_per_example * float(curve.test[0])
        return ExpectedErrors(
            clean=noisy - flip_moments.variance + label_shrinkage**2 * (1 - 1 / C) + 2 * label_shrinkage * cross_term,
            noisy=noisy,
            train=rows_per_example * float(curve.train[0]),
            gcv=math.nan
            if training_labels is None
            else self._generalized_cross_validation(training_labels[0][:n], training_labels[1][:n], ridge),
            ridge=ridge,
        )

    @property
    def rows_per_example(self) -> int:
        """Number of rows of the kernel per example: 1, or C for a full kernel."""
        return len(self.eigenvalues) // len(self.centered_one_hot)

    def _kernel_rows(self, examples: Tensor) -> Tensor:
        """Return the indices of the kernel rows of the pool examples with indices ``examples``, (rows,) int64."""
        return (examples[:, None] * self.rows_per_example + torch.arange(self.rows_per_example)).flatten()

    def _to_eigenbasis(self, targets: Tensor) -> Tensor:
        """Return the coefficients of targets (N examples, C outputs) in the kernel's eigenbasis.

        Their shape is (N, C), or (N C, 1) for a kernel that has one row for each example and output.
        """
        return self.eigenvectors.T @ targets.reshape(len(self.eigenvalues), -1)

    def _generalized_cross_validation(self, examples: Tensor, labels: Tensor, ridge: float) -> float:
        """Return the generalized cross-validation estimate of the test error of kernel ridge regression on n examples.

        It is (1/n) |(I − H) y|² / (mean diagonal of I − H)². K is the kernel of the examples with indices ``examples`` (n,),
        H = K (K + δ I)⁻¹ with ridge δ (its limit if δ = 0), and y the centered one-hot ``labels`` minus initial outputs.
        """
        C, kernel_rows = self.centered_one_hot.shape[1], self._kernel_rows(examples)
        targets = torch.nn.functional.one_hot(labels, C).double() - 1 / C - self.initial_outputs[examples]
        eigenvalues, eigenvectors = torch.linalg.eigh(self.kernel[kernel_rows][:, kernel_rows])
        rounding = len(eigenvalues) * EPS * float(eigenvalues[-1])
        if ridge > 0:
            shrinkage = ridge / (eigenvalues.clamp_min(0) + ridge)
        elif float(eigenvalues[0]) > rounding:
            shrinkage = eigenvalues[0] / eigenvalues  # no null space: 1/values up to a factor that cancels
        else:
            shrinkage = (eigenvalues <= rounding).double()
        residual = (shrinkage[:, None] * (eigenvectors.T @ targets.reshape(len(eigenvalues), -1))).square().sum()
        return self.rows_per_example * float(residual * len(eigenvalues) / shrinkage.sum() ** 2)


def _initial_outputs(model: nn.Module, x: Batch, forward: Callable[..., Tensor] | None) -> Tensor:
    """Return the outputs of the untrained model on the N examples ``x``: (N, C) for C outputs, float64 on the CPU."""
    examples = as_rows(x, "x")
    prepared = prepare(model, examples, forward=forward, dtype=torch.float64, device=torch.device("cpu"))
    batch = examples.to(dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        return prepared.outputs(batch.slice(0, batch.n), batch.n).double()
