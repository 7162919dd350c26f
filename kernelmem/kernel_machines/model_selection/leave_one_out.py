"""Leave-one-out predictions of kernel ridge regression, in closed form."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_number, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.kernel_machines.solvers.factorization import EPS, CholeskyFactor, EigenFactor, decompose, factorize
from kernelmem.kernel_machines.solvers.linear_system import in_memory, require_square
from kernelmem.kernel_machines.solvers.panel_factor import PanelFactor, factorize_stored
from kernelmem.kernel_machines.targets import as_targets
from kernelmem.kernels import KernelStore

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut(Result):
    """The fit of kernel ridge regression on all n rows, and the n fits that leave out one row each.

    All tensors are float64 and on the device of the kernel K; C is the number of outputs.

    Attributes:
        ridge: number added to the diagonal, in units of the kernel.
        residual: |(K + ridge I) alpha − y| / |y|, for the reachable part of y (at ridge 0, its part in the range of K).
        targets: (n, C) fitted targets; labels are centered to one-hot − 1/C.
        labels: (n,) class indices, or None if the targets are real numbers.
        alpha: (n, C) dual coefficients; at ridge 0 those of least norm, K⁺ y.
        fitted: (n, C) predictions of the rows by the fit on all of them.
        predictions: (n, C) prediction of each row by the fit without it.
        errors: (n, C) leave-one-out residuals, targets − predictions.
        leverage: (n,) diagonal of the hat matrix K (K + ridge I)⁻¹; outside [0, 1] only if the kernel is indefinite, by
            less than the ridge.
    """

    ridge: float
    residual: float
    targets: Tensor
    labels: Tensor | None
    alpha: Tensor
    fitted: Tensor
    errors: Tensor
    leverage: Tensor
    _cholesky: CholeskyFactor | PanelFactor | None  # of K + ridge I; None at ridge 0
    _eigen: EigenFactor | None  # range and null space of K at ridge 0; None otherwise

    @property
    def predictions(self) -> Tensor:
        """The predictions (n, C) of each row i by the fit without it, f_{-i}(x_i)."""
        return self.targets - self.errors

    @property
    def memorization(self) -> Tensor:
        """The memorization (n,) of each label y: f_y(x_i) − f_{-i,y}(x_i), which is leverage times leave-one-out residual.

        Larger = more memorized. It is exact for this training set, not an average over training sets.

        Raises:
            InputError: the targets are real numbers, so that there is no label.
        """
        labels = self._require_labels("memorization")
        return self.leverage * self.errors.gather(1, labels[:, None])[:, 0]

    @property
    def margin(self) -> Tensor:
        """The leave-one-out margins (n,): the prediction of the label minus the largest prediction of another class.

        A margin is negative if the other rows contradict the label.

        Raises:
            InputError: the targets are real numbers, so that there is no label.
        """
        label_columns = self._require_labels("margin")[:, None]
        other_predictions = self.predictions.scatter(1, label_columns, -torch.inf)
        return self.predictions.gather(1, label_columns)[:, 0] - other_predictions.amax(1)

    @cached_property
    def condition(self) -> float:
        """The condition number of K + ridge I.

        At ridge 0 it is the ratio of the extreme eigenvalues above rounding. Otherwise it is an estimate from below by
        6 Lanczos steps on the Cholesky factor and 6 on its inverse, O(n²).
        """
        return self._factor.condition()

    def predict(self, K_test: ArrayLike) -> Tensor:
        """Return the predictions K_test alpha of the fit on all rows, (m, C), for m test rows.

        ``K_test`` is the kernel of test rows with training rows, (m, n). Cost O(m n C).

        Raises:
            InputError: ``K_test`` is not (m, n) or not finite.
        """
        return self._check_test_kernel(K_test) @ self.alpha

    def influence(self, K_test: ArrayLike) -> Tensor:
        """Return f(x*) − f_{-i}(x*) = (k*ᵀ A)_i alpha_i / A_ii, (m, n, C), with A = (K + ridge I)⁻¹.

        ``K_test`` is the kernel of test rows with training rows, (m, n). At ridge 0, A is K⁺ and alpha_i / A_ii the
        leave-one-out residual. Cost O(m n² + m n C), and 8 m n C bytes for the result: pass test rows in batches.

        Raises:
            InputError: ``K_test`` is not (m, n) or not finite.
        """
        return self._factor.solve(self._check_test_kernel(K_test))[:, :, None] * self.errors

    def block(self, indices: ArrayLike) -> Tensor:
        """Return f_{-B}(X_B) = y_B − (A_BB)⁻¹ alpha_B, (b, C): predictions of rows B without all rows in B.

        ``indices`` are b different row numbers, at most n − 1. Cost O(n² b + n b²).

        Raises:
            InputError: there are no indices, they are not whole numbers, repeat or are out of range, or select all rows.
        """
        rows = _check_block_indices(indices, len(self.targets)).to(self.targets.device)
        return self.targets[rows] - self._factor.block_residual(rows)

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per training row: its leverage and its squared leave-one-out error.

        For targets with labels it also holds the label, the predicted label, the memorization and the margin.
        """
        import pandas as pd

        columns = {"leverage": self.leverage, "squared_error": self.errors.square().sum(1)}
        if self.labels is not None:
            columns |= {"label": self.labels, "predicted": self.predictions.argmax(1)}
            columns |= {"memorization": self.memorization, "margin": self.margin}
        frame = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
        return frame.rename_axis("row")

    def __str__(self) -> str:
        n, C = self.targets.shape
        mean_squared_error = float(self.errors.square().mean())
        lines = [
            f"leave-one-out of {n:,} rows, {C} output{'s' * (C != 1)}: ridge {self.ridge:.4g} (units of the kernel),"
            f" condition {self.condition:.2g}, residual {self.residual:.1g}",
            f"mean squared leave-one-out error {mean_squared_error:.4g} (training error"
            f" {float((self.targets - self.fitted).square().mean()):.4g}), mean leverage {float(self.leverage.mean()):.3g}",
        ]
        if self.labels is not None:
            n_contradicted = int((self.margin <= 0).sum())
            most_memorized = self.memorization.argsort(descending=True)[:5].tolist()
            lines += [
                f"{n_contradicted:,} of {n:,} labels are contradicted by the other rows (margin <= 0)",
                f"mean memorization {float(self.memorization.mean()):.3g}, most memorized rows {most_memorized}",
            ]
        return "\n".join(lines)

    @property
    def _factor(self) -> CholeskyFactor | PanelFactor | EigenFactor:
        """The factor of K + ridge I: the Cholesky factor, or the eigendecomposition at ridge 0."""
        factor = self._cholesky or self._eigen
        assert factor is not None
        return factor

    def _check_test_kernel(self, K_test: ArrayLike) -> Tensor:
        """Check the kernel of m test rows with the n training rows and return it as (m, n) float64."""
        K = as_tensor(K_test, "K_test", dtype=torch.float64).to(self.alpha.device)
        if K.ndim != 2 or K.shape[1] != len(self.alpha):
            raise InputError(
                f"K_test of shape {tuple(K.shape)}",
                expected=f"(m, {len(self.alpha)}), the kernel of m test rows with the training rows",
                hint="put the test rows first, as km.ntk(model, x_test, x_train) does; for one row pass K_test[None]",
            )
        return K

    def _require_labels(self, name: str) -> Tensor:
        """Return the labels (n,) of the rows; ``name`` is the attribute that needs them, for the error message.

        Raises:
            InputError: the targets are real numbers, so that there are no labels.
        """
        if self.labels is None:
            raise InputError(
                f"{name} of targets that are real numbers, shape {tuple(self.targets.shape)}",
                expected="labels: integers (n,), or one-hot rows (n, C) up to one constant",
                hint="pass labels as integers, or use .errors, .leverage and .influence, which need no label",
            )
        return self.labels


def leave_one_out(
    kernel: ArrayLike | KernelStore, y: ArrayLike, ridge: float, *, memory: int | str = MEMORY
) -> LeaveOneOut:
    """Compute the n leave-one-out fits of kernel ridge regression on n rows in closed form.

    With A = (K + ridge I)⁻¹ and alpha = A y, no intercept::

        y_i − f_{-i}(x_i) = alpha_i / A_ii            f(x_i) − f_{-i}(x_i) = alpha_i (1 / A_ii − ridge)

    At ridge 0 the fits are those of minimum norm. With N the projector on the null space of K, the leave-one-out residual
    is (N y)_i / N_ii where N_ii > 0, elsewhere alpha_i / A_ii with A = K⁺. Eigenvalues up to
    max(n eps λ_max, n eps(dtype of the kernel) max |K|, −2 λ_min) count as zero, and N_ii counts as zero where noise of
    that size could have caused it. If the spectrum decays without a gap, the result at ridge 0 depends on that cutoff, as
    that of every pseudo-inverse does: ``condition`` is then near 1e13.

    Args:
        kernel: (n, n) tensor or array, symmetric, positive semidefinite. Computed in float64 on its device. A symmetric
            KernelStore is read tile by tile, and its Cholesky factor takes half of a matrix, 4 n² bytes.
        y: integers (n,): labels 0..C-1, centered to one-hot − 1/C; real (n, C): used unchanged, with the argmax as label
            if every row is one-hot up to one constant of the array; real (n,): one output, never labels.
        ridge: added to the diagonal, in units of the kernel: K + ridge I, not n ridge.
        memory: bytes that the work with a KernelStore may allocate; it is exact, or refused.

    Raises:
        InputError: the ridge is not a finite number >= 0, y has a wrong length, n < 2, the labels have only one class, or
            the kernel or y has NaN.
        NumericalError: the kernel has a negative eigenvalue (at ridge 0, beyond n eps(float32) λ_max, since kernels often
            come from float32; otherwise, beyond the ridge), or the ridge is lost in rounding.

    Cost: ridge > 0, one Cholesky factorization and the diagonal of its inverse, n³/3 multiply-adds together, plus
    O(n² C); ridge 0, one eigendecomposition, about ten times that. The result keeps one n x n matrix.

    Source: Allen 1974 (PRESS); Rifkin and Lippert 2007; on tangent kernels, Bachmann, Hofmann, Lucchi 2022.

    >>> import torch
    >>> x = torch.tensor([0.0, 0.1, 1.0, 1.1])
    >>> kernel = torch.exp(-(x[:, None] - x) ** 2)
    >>> loo = leave_one_out(kernel, [0, 1, 1, 1], ridge=0.1)
    >>> loo.margin.argmin().item(), loo.memorization.argmax().item()
    (0, 0)
    >>> loo.block([0, 1]).shape, loo.influence(kernel[:2]).shape
    (torch.Size([2, 2]), torch.Size([2, 4, 2]))
    """
    max_bytes = as_bytes(memory)
    K = kernel if isinstance(kernel, KernelStore) and kernel.symmetric else as_square_kernel(kernel)
    n = K.shape[0]
    if n < 2:
        raise InputError("kernel of one row", expected="n >= 2 rows", hint="pass the kernel of at least two rows")
    ridge = as_number(ridge, "ridge")
    targets, labels = as_targets(y, n, torch.device("cpu") if isinstance(K, KernelStore) else K.device)
    if isinstance(K, KernelStore):
        require_square(K)
        if ridge == 0:
            K = as_square_kernel(in_memory(K, max_bytes, matrices=4, work="the fit of minimum norm, ridge=0"))
    if isinstance(K, KernelStore):
        factor = factorize_stored(K, targets, ridge, max_bytes)
    else:
        factor = factorize(K, targets, ridge) if ridge > 0 else decompose(K, targets, _machine_epsilon(kernel))
    alpha = factor.alpha()
    fitted = K @ alpha
    residual_norm = torch.linalg.norm(fitted + ridge * alpha - factor.reachable(targets))
    target_norm = torch.linalg.norm(targets)
    errors, leverage = factor.leave_one_out_residuals(alpha)
    return LeaveOneOut(
        ridge=ridge,
        residual=float(residual_norm / target_norm) if target_norm > 0 else float(residual_norm),
        targets=targets,
        labels=labels,
        alpha=alpha,
        fitted=fitted,
        errors=errors,
        leverage=leverage,
        _cholesky=None if isinstance(factor, EigenFactor) else factor,
        _eigen=factor if isinstance(factor, EigenFactor) else None,
    )


def _machine_epsilon(kernel: ArrayLike | KernelStore) -> float:
    """Return the machine epsilon of the kernel's dtype; that of float64 for integers."""
    if isinstance(kernel, KernelStore):
        return torch.finfo(kernel.dtype).eps
    if isinstance(kernel, Tensor):
        return torch.finfo(kernel.dtype).eps if kernel.is_floating_point() else EPS
    dtype = np.asarray(kernel).dtype
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else EPS


def _check_block_indices(indices: ArrayLike, n: int) -> Tensor:
    """Check the b row numbers of a block that is left out of n rows, and return them as (b,) int64.

    Raises:
        InputError: they are not different whole numbers in 0..n − 1, or select no row or all rows.
    """
    rows = as_tensor(indices, "indices")
    are_whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    are_valid = are_whole and rows.ndim == 1 and 0 < len(rows) < n and bool(((rows >= 0) & (rows < n)).all())
    if not are_valid or len(rows.unique()) != len(rows):
        raise InputError(
            f"indices {str(rows.tolist())[:80]} of dtype {rows.dtype}".replace("torch.", ""),
            expected=f"1 to {n - 1} different whole numbers in 0..{n - 1}, so that at least one row remains",
            hint="pass a list of row numbers; for a mask pass mask.nonzero()[:, 0]",
        )
    return rows.to(torch.int64)
