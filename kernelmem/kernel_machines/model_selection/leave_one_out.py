"""Exact leave-one-out of kernel ridge: what the machine would have said of each row, had it never seen it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_square_kernel, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.solvers.factorization import EPS, CholeskyFactor, EigenFactor, decompose, factorize
from kernelmem.kernel_machines.targets import as_targets

if TYPE_CHECKING:
    import pandas

__all__ = ["LeaveOneOut", "leave_one_out"]


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The fit on all n rows, and what each left-out fit says; tensors are float64, on the kernel's device.

    Attributes:
        ridge: the ridge, in units of the kernel.
        targets: (n, C) what was fitted; labels are centered to one-hot - 1/C.
        labels: (n,) class indices, or None if the targets are real numbers.
        alpha: (n, C) dual coefficients; at ridge 0 those of least norm, K⁺ y.
        fitted: (n, C) predictions of the rows by the fit on all of them.
        predictions: (n, C) prediction of each row by the fit without it.
        errors: (n, C) left-out residuals, targets - predictions.
        leverage: (n,) diagonal of the hat matrix K (K + ridge I)⁻¹; it leaves [0, 1] only if the kernel
            is indefinite, by less than the ridge.
        residual: |(K + ridge I) alpha - y| / |y|, of the y that can be reached (at ridge 0, its part in the
            range of K).
    """

    ridge: float
    residual: float
    targets: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    alpha: Tensor = field(repr=False)
    fitted: Tensor = field(repr=False)
    errors: Tensor = field(repr=False)
    leverage: Tensor = field(repr=False)
    _system: CholeskyFactor | EigenFactor = field(repr=False)

    @property
    def predictions(self) -> Tensor:
        """(n, C): prediction of each row by the fit without it, f_{-i}(x_i)."""
        return self.targets - self.errors

    @property
    def memorization(self) -> Tensor:
        """(n,): f(x_i) - f_{-i}(x_i) in the label's column, = leverage x left-out residual.

        Larger = more memorized. It speaks of this one set of rows, exactly, not of an average over sets.

        Raises:
            InputError: the targets are real numbers, so that no column is the label's.
        """
        labels = self._require_labels("memorization")
        return self.leverage * self.errors.gather(1, labels[:, None])[:, 0]

    @property
    def margin(self) -> Tensor:
        """(n,): f_{-i,y} - max_{k != y} f_{-i,k}, negative where the other rows contradict the label.

        Raises:
            InputError: the targets are real numbers, so that no column is the label's.
        """
        labels = self._require_labels("margin")[:, None]
        others = self.predictions.scatter(1, labels, -torch.inf)
        return self.predictions.gather(1, labels)[:, 0] - others.amax(1)

    @cached_property
    def condition(self) -> float:
        """Condition number of K + ridge I.

        At ridge 0 it is the ratio of the extreme eigenvalues that were kept. Otherwise it is an estimate from
        below: 10 power steps on the Cholesky factor and 10 on its inverse, O(n²).
        """
        return self._system.condition()

    def predict(self, k_test: Any) -> Tensor:
        """Return f(x*) = k_test alpha, shape (m, C), of the fit on all rows.

        ``k_test`` is the kernel of test rows with training rows, (m, n). Cost O(m n C).

        Raises:
            InputError: ``k_test`` is not (m, n) or not finite.
        """
        return self._rows(k_test) @ self.alpha

    def influence(self, k_test: Any) -> Tensor:
        """Return f(x*) - f_{-i}(x*) = (k*ᵀ A)_i alpha_i / A_ii, shape (m, n, C), with A = (K + ridge I)⁻¹.

        ``k_test`` is the kernel of test rows with training rows, (m, n). At ridge 0, A is K⁺ and alpha_i /
        A_ii the left-out residual. Cost O(m n² + m n C), and 8 m n C bytes for the result: pass test rows in
        parts.

        Raises:
            InputError: ``k_test`` is not (m, n) or not finite.
        """
        return self._system.solve(self._rows(k_test))[:, :, None] * self.errors

    def block(self, indices: Any) -> Tensor:
        """Return f_{-B}(X_B) = y_B - (A_BB)⁻¹ alpha_B, shape (b, C): rows B predicted with all of B left out.

        ``indices`` are b different row numbers, at most n - 1. Cost O(n² b + n b²).

        Raises:
            InputError: no index, one that repeats or is out of range, all rows, or not whole numbers.
        """
        rows = _as_indices(indices, len(self.targets)).to(self.targets.device)
        return self.targets[rows] - self._system.left_out(rows)

    def to_frame(self) -> "pandas.DataFrame":
        """One line a row: leverage, squared left-out error over outputs, and of labels memorization, margin, prediction."""
        import pandas  # slow to import

        columns = {"leverage": self.leverage, "squared_error": self.errors.square().sum(1)}
        if self.labels is not None:
            columns |= {"label": self.labels, "predicted": self.predictions.argmax(1)}
            columns |= {"memorization": self.memorization, "margin": self.margin}
        frame = pandas.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
        return frame.rename_axis("row")

    def _rows(self, k_test: Any) -> Tensor:
        rows = as_tensor(k_test, "k_test", dtype=torch.float64).to(self.alpha.device)
        if rows.ndim != 2 or rows.shape[1] != len(self.alpha):
            raise InputError(
                f"k_test of shape {tuple(rows.shape)}",
                expected=f"(m, {len(self.alpha)}), the kernel of m test rows with the training rows",
                hint="put the test rows first, as km.ntk(model, x_test, x_train) does; one row is k_test[None]",
            )
        return rows

    def _require_labels(self, what: str) -> Tensor:
        if self.labels is None:
            raise InputError(
                f"{what} of targets that are real numbers, shape {tuple(self.targets.shape)}",
                expected="labels: integers (n,), or one-hot rows (n, C) up to one constant",
                hint="pass labels as integers, or read .errors, .leverage and .influence, which need no label",
            )
        return self.labels


def leave_one_out(kernel: Any, y: Any, ridge: float) -> LeaveOneOut:
    """Compute all n leave-one-out fits of kernel ridge in closed form.

    With A = (K + ridge I)⁻¹ and alpha = A y, no intercept::

        y_i - f_{-i}(x_i) = alpha_i / A_ii            f(x_i) - f_{-i}(x_i) = alpha_i (1 / A_ii - ridge)

    At ridge 0 the fits are those of minimum norm. With N the projector on the null space of K, the left-out
    residual is (N y)_i / N_ii where N_ii > 0, elsewhere alpha_i / A_ii with A = K⁺. Eigenvalues up to
    max(n eps λ_max, n eps(dtype of the kernel) max |K|, -2 λ_min) count as zero, and N_ii counts as zero
    where noise of that size could have made it. If the spectrum fades without a gap, the answer at ridge 0
    depends on that cut, as that of every pseudo-inverse does: ``condition`` near 1e13 says so.

    Args:
        kernel: (n, n) tensor or array, symmetric, positive semidefinite. Computed in float64 on its device.
        y: integers (n,): labels 0..C-1, centered to one-hot - 1/C; real (n, C): taken as it is, with the
            argmax as label if every row is one-hot up to one constant of the array; real (n,): one output,
            never labels.
        ridge: what is added to the diagonal, in units of the kernel: K + ridge I, not n ridge.

    Raises:
        InputError: ridge not a finite number >= 0; wrong length of y; n < 2; labels of only one class; NaN.
        NumericalError: the kernel has a negative eigenvalue (at ridge 0, beyond n eps(float32) λ_max, since
            kernels often come from float32; otherwise, beyond the ridge), or the ridge is lost in rounding.

    Cost: ridge > 0, one Cholesky factorization and the diagonal of its inverse, n³/3 multiply-adds together,
    plus O(n² C); ridge 0, one eigendecomposition, about ten times that. The result keeps one n x n matrix.

    Source: Allen 1974 (PRESS); Rifkin and Lippert 2007; on tangent kernels, Bachmann, Hofmann, Lucchi 2022.

    >>> import torch
    >>> x = torch.tensor([0.0, 0.1, 1.0, 1.1])
    >>> kernel = torch.exp(-(x[:, None] - x) ** 2)
    >>> left_out = leave_one_out(kernel, [0, 1, 1, 1], ridge=0.1)
    >>> left_out.margin.argmin().item(), left_out.memorization.argmax().item()
    (0, 0)
    >>> left_out.block([0, 1]).shape, left_out.influence(kernel[:2]).shape
    (torch.Size([2, 2]), torch.Size([2, 4, 2]))
    """
    K = as_square_kernel(kernel)
    n = len(K)
    if n < 2:
        raise InputError("kernel of one row", expected="n >= 2 rows", hint="leave one out of at least two rows")
    ridge = _as_ridge(ridge)
    targets, labels = as_targets(y, n, K.device)
    system = factorize(K, targets, ridge) if ridge > 0 else decompose(K, targets, _rounding(kernel))
    alpha = system.alpha()
    fitted = K @ alpha
    gap = torch.linalg.norm(fitted + ridge * alpha - system.reachable(targets))
    scale = torch.linalg.norm(targets)
    errors, leverage = system.left_out_each(alpha)
    return LeaveOneOut(
        ridge=ridge,
        residual=float(gap / scale) if scale > 0 else float(gap),
        targets=targets,
        labels=labels,
        alpha=alpha,
        fitted=fitted,
        errors=errors,
        leverage=leverage,
        _system=system,
    )


def _rounding(kernel: Any) -> float:
    if isinstance(kernel, Tensor):
        return torch.finfo(kernel.dtype).eps if kernel.is_floating_point() else EPS
    dtype = np.asarray(kernel).dtype
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else EPS


def _as_ridge(ridge: Any) -> float:
    value = ridge.item() if getattr(ridge, "ndim", None) == 0 else ridge
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < torch.inf:
        raise InputError(
            f"ridge {ridge!r}",
            expected="one finite number >= 0, in units of the kernel",
            hint="pass ridge=1e-3, or choose_ridge(kernel, y).ridge",
        )
    return float(value)


def _as_indices(indices: Any, n: int) -> Tensor:
    rows = as_tensor(indices, "indices")
    whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    inside = whole and rows.ndim == 1 and 0 < len(rows) < n and bool(((rows >= 0) & (rows < n)).all())
    if not inside or len(rows.unique()) != len(rows):
        raise InputError(
            f"indices {str(rows.tolist())[:80]} of dtype {rows.dtype}".replace("torch.", ""),
            expected=f"1 to {n - 1} different whole numbers in 0..{n - 1}, so that at least one row remains",
            hint="pass a list of row numbers; a mask is indices = mask.nonzero()[:, 0]",
        )
    return rows.to(torch.int64)
