r"""Linearized network in function space: inputs, layout of the kernel, and results of training.

Gradient-based training keeps the weights in s w_0 + {J(X)ᵀ a}, where s is 1 without weight decay and a has one number for
each training row and output. With Θ = J Jᵀ the outputs of the linearized network at such weights are

    f(x) = f_0(x) + Θ(x, X) a + (s − 1) J(x) w_0,    J(x) w_0 = f_0(x) − origin(x),

where the origin is the output of the linearized network at zero weights.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernelmem.core.checks import (
    ArrayLike,
    as_labels,
    as_list,
    as_number,
    as_square_kernel,
    as_tensor,
    check_instance,
    describe,
)
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd

MAX_SHOWN_TIMES = 30  # largest number of times in the summary


@dataclass(frozen=True, eq=False)
class Linearization:
    """The network at the weights w_0 where it is linearized, on n training and m test rows.

    Attributes:
        initial: (n, C) outputs f_0 on the training rows; None: zeros.
        origin: (n, C) outputs f_0 − J w_0 of the linearized network at zero weights; needed with weight decay.
        K_test: kernel Θ(x_test, X), (m, n), (m, n, C, C) or (mC, nC); None: no outputs on test rows.
        initial_test: (m, C) outputs f_0 on the test rows; None: zeros.
        origin_test: (m, C) outputs f_0 − J w_0 on the test rows; needed with weight decay and ``K_test``.
    """

    initial: ArrayLike | None = None
    origin: ArrayLike | None = None
    K_test: ArrayLike | None = None
    initial_test: ArrayLike | None = None
    origin_test: ArrayLike | None = None


@dataclass(frozen=True, eq=False, repr=False)
class LinearizedTraining(Result):
    """The linearized network at S times of its training, in float64.

    Attributes:
        times: S numbers: steps taken, or time (learning rate times steps) of gradient flow; infinity is the limit.
        train: (S, n, C) outputs on the training rows.
        test: (S, m, C) outputs on the test rows; None without ``K_test``.
        coefficients: (S, n, C) a, so that f = f_0 + K a + (scale − 1)(f_0 − origin).
        scale: (S,) s, the factor of the initial weights that weight decay leaves; 1 without weight decay.
        stability: learning rate times curvature, lr (κ_max / n + weight_decay); the curvature of cross-entropy is taken as
            its maximum 1/2; 0 for gradient flow. SGD on the squared error diverges at ``limit`` or above.
        limit: stability limit; 2 without momentum.
        largest: largest eigenvalue κ_max of the kernel.
        condition: κ_max over the smallest eigenvalue above rounding; infinite for step-by-step training, where it is not
            computed.
        residual: error of the result at the last time in the equation that it solves, relative to the first gradient.
        full: True if the kernel couples outputs.
    """

    times: tuple[float, ...]
    train: Tensor
    test: Tensor | None
    coefficients: Tensor
    scale: Tensor
    stability: float
    limit: float
    largest: float
    condition: float
    residual: float
    full: bool = False

    def predict(
        self, K_test: ArrayLike, *, initial: ArrayLike | None = None, origin: ArrayLike | None = None
    ) -> Tensor:
        """Return the outputs on m other rows at all S times, (S, m, C), from their kernel with the training rows.

        Args:
            K_test: kernel of these rows with the training rows, as in :class:`Linearization`.
            initial: (m, C) outputs f_0 of these rows; None: zeros.
            origin: (m, C) outputs f_0 − J w_0 of these rows; needed with weight decay.

        Raises:
            InputError: shapes do not match, or ``origin`` is missing with weight decay.
        """
        S, n, C = self.coefficients.shape
        K = _check_test_kernel(K_test, n, C, self.full).to(self.coefficients.device)
        n_rows = len(K) // C if self.full else len(K)
        f0 = _check_outputs(initial, n_rows, C, "initial").to(K)
        if origin is None and bool((self.scale != 1).any()):
            raise _missing_origin_error("rows to predict")
        Jw0 = f0 - _check_outputs(origin, n_rows, C, "origin").to(K) if origin is not None else torch.zeros_like(f0)
        change = (K @ self.coefficients.reshape(S, K.shape[1], -1)).reshape(S, n_rows, C)
        return f0 + change + (self.scale - 1)[:, None, None] * Jw0

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row for each combination of time, part ("train" or "test"), row and output."""
        import pandas as pd

        tables = []
        for part, outputs in {"train": self.train, "test": self.test}.items():
            if outputs is not None:
                levels = [self.times, [part], range(outputs.shape[1]), range(outputs.shape[2])]
                index = pd.MultiIndex.from_product(levels, names=["time", "part", "row", "output"])
                tables.append(pd.DataFrame({"value": outputs.flatten().cpu().numpy()}, index=index).reset_index())
        return pd.concat(tables, ignore_index=True)

    def __str__(self) -> str:
        _, n, C = self.train.shape
        lines = [
            f"linearized training of {n:,} rows, {C} output{'s' * (C != 1)}: learning rate times curvature"
            f" {self.stability:.3g} (limit {self.limit:.3g}), condition {self.condition:.2g}, residual {self.residual:.1g}",
            f"{'time':>12}{'|coefficients|':>18}",
        ]
        norms = self.coefficients.flatten(1).norm(dim=1).tolist()
        table_lines = [f"{t:>12g}{norm:>18.4g}" for t, norm in zip(self.times, norms, strict=True)]
        if len(table_lines) > MAX_SHOWN_TIMES:
            table_lines = [*table_lines[: MAX_SHOWN_TIMES - 2], f"{'...':>12}", table_lines[-1]]
        return "\n".join(lines + table_lines)


@dataclass(frozen=True, eq=False)
class FunctionSpace:
    """Kernel, targets and initial outputs of n training rows and C outputs, with the kernel as one matrix (N, N).

    The matrix is multiplied by coefficients (N, k). A kernel (n, n) acts on each output separately, so that N = n and k = C;
    a full kernel, which couples outputs, has N = n C and k = 1. There are m test rows, and M = m or m C.
    """

    matrix: Tensor  # (N, N)
    targets: Tensor  # (n, C), or labels (n,) for a loss that takes them
    initial: Tensor  # (n, C), f_0
    Jw0: Tensor  # (n, C), J w_0 = f_0 − origin; zeros without an origin
    K_test: Tensor | None  # (M, N)
    initial_test: Tensor | None  # (m, C)
    Jw0_test: Tensor | None  # (m, C)
    full: bool

    @property
    def n(self) -> int:
        """The number n of training rows."""
        return self.initial.shape[0]

    @property
    def n_outputs(self) -> int:
        """The number C of outputs."""
        return self.initial.shape[1]

    def fold(self, values: Tensor) -> Tensor:
        """Reshape values (..., n, C) of n training rows and C outputs to (..., N, k), as the kernel matrix needs them."""
        return values.reshape(*values.shape[:-2], len(self.matrix), -1)

    def unfold(self, values: Tensor) -> Tensor:
        """Reshape coefficients (..., N, k) of the kernel matrix to (..., n, C), one for each training row and output."""
        return values.reshape(*values.shape[:-2], self.n, self.n_outputs)

    def columns(self, row_index: Tensor) -> Tensor:
        """Return the column numbers of the kernel matrix that belong to the B training rows ``row_index``.

        The shape is (B,), or (B C,) if the kernel couples the C outputs.
        """
        if not self.full:
            return row_index
        C = self.n_outputs
        return (row_index[:, None] * C + torch.arange(C, device=row_index.device)).flatten()

    def outputs(self, coefficients: Tensor, s_minus_1: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs on training rows, (S, n, C), and on test rows, (S, m, C), at S times; None without test rows.

        ``coefficients`` is (S, N, k), and ``s_minus_1`` (S,) is s − 1, where s is the factor of the initial weights.
        """
        shrinkage = s_minus_1[:, None, None]
        train = self.initial + self.unfold(self.matrix @ coefficients) + shrinkage * self.Jw0
        if self.K_test is None or self.initial_test is None or self.Jw0_test is None:
            return train, None
        change = (self.K_test @ coefficients).reshape(len(s_minus_1), *self.initial_test.shape)
        return train, self.initial_test + change + shrinkage * self.Jw0_test


def function_space(
    kernel: ArrayLike, y: ArrayLike, linearization: Linearization | None, *, with_decay: bool, one_hot: bool = True
) -> FunctionSpace:
    """Check the kernel, the targets y and the linearization of n training rows with C outputs, and combine them.

    Args:
        kernel: (n, n), (n, n, C, C) or (nC, nC).
        y: targets (n, C) or (n,), or integer labels (n,).
        linearization: outputs at w_0 and the kernel of the test rows; None: f_0 = 0, no test rows.
        with_decay: True if the weights decay, so that the origin is needed.
        one_hot: True turns labels into one-hot rows, for the squared error.

    Raises:
        InputError: shapes do not match, there is NaN, or the outputs at zero weights are missing with weight decay.
        NumericalError: the kernel is asymmetric.
    """
    linearization = Linearization() if linearization is None else linearization
    check_instance(linearization, "linearization", Linearization)
    initial = None if linearization.initial is None else _as_two_dimensional(linearization.initial, "initial")
    targets = _check_targets(y, None if initial is None else initial.shape[1])
    C = initial.shape[1] if initial is not None else _count_outputs(targets)
    n = len(targets)
    matrix = as_matrix(kernel, n, C)
    full = len(matrix) != n
    device = matrix.device
    if one_hot and targets.ndim == 1:
        targets = torch.nn.functional.one_hot(targets, C).double()
    f0 = _check_outputs(initial, n, C, "initial").to(device)
    if with_decay and linearization.origin is None:
        raise _missing_origin_error("the training rows")
    Jw0 = (
        torch.zeros_like(f0)
        if linearization.origin is None
        else f0 - _check_outputs(linearization.origin, n, C, "origin").to(device)
    )
    K_test = f0_test = Jw0_test = None
    if linearization.K_test is not None:
        K_test = _check_test_kernel(linearization.K_test, n, C, full).to(device)
        n_test = len(K_test) // C if full else len(K_test)
        f0_test = _check_outputs(linearization.initial_test, n_test, C, "initial_test").to(device)
        if with_decay and linearization.origin_test is None:
            raise _missing_origin_error("the test rows")
        Jw0_test = torch.zeros_like(f0_test)
        if linearization.origin_test is not None:
            Jw0_test = f0_test - _check_outputs(linearization.origin_test, n_test, C, "origin_test").to(device)
    return FunctionSpace(matrix, targets.to(device), f0, Jw0, K_test, f0_test, Jw0_test, full)


def as_matrix(kernel: ArrayLike, n: int, C: int) -> Tensor:
    """Return the kernel of n rows and C outputs as a symmetric float64 matrix, (n, n) or (nC, nC).

    A kernel (n, n, C, C) becomes (nC, nC), where row i C + c belongs to output c of row i; other shapes are unchanged.

    Raises:
        InputError: the kernel has another shape. NumericalError: the kernel is asymmetric.
    """
    K = as_tensor(kernel, "kernel", dtype=torch.float64)
    if K.shape == (n, n, C, C):
        K = K.transpose(1, 2).reshape(n * C, n * C)  # axes (i, j, c, d) -> (i, c, j, d)
    if tuple(K.shape) not in {(n, n), (n * C, n * C)}:
        raise InputError(
            f"kernel of shape {tuple(K.shape)} for {n} rows and {C} outputs",
            expected=f"({n}, {n}), which acts on each output by itself, ({n}, {n}, {C}, {C}), or ({n * C}, {n * C})",
            hint='pass km.ntk(model, x, outputs="full"); reshape a kernel (n, C, n, C) with kernel.reshape(n * C, n * C)',
        )
    return as_square_kernel(K)


def as_times(values: float | Iterable[float] | None, name: str, *, whole: bool) -> tuple[float, ...]:
    """Return training times or numbers of steps as a tuple of numbers >= 0, where infinity means the limit.

    ``name`` is the name of the argument in error messages, and ``whole`` requires whole numbers.

    Raises:
        InputError: the times are empty, negative, NaN, or fractions of steps.
    """
    elements = [values] if isinstance(values, int | float) else as_list(values, name)
    try:
        times = tuple(math.inf if t == math.inf else as_number(t, name) for t in elements)
    except (InputError, TypeError, ValueError, RuntimeError):  # an element that is not a number, or an array
        times = ()
    are_valid = all(not whole or t == math.inf or t == int(t) for t in times)
    if not times or not are_valid:
        raise InputError(
            f"{name}={describe(values)}",
            expected=f"one or more {'whole ' if whole else ''}numbers >= 0",
            hint=f"pass {name}=100, or {name}=[1, 10, 100]",
        )
    return times


def _check_targets(y: ArrayLike, C: int | None) -> Tensor:
    """Check the targets y and return integer labels (n,) or real targets (n, C).

    C is the required number of outputs, or None if any number is allowed.

    Raises:
        InputError: the number of outputs differs from C.
    """
    tensor = as_tensor(y, "y", squared=True)
    if tensor.ndim == 1 and tensor.numel() and not tensor.is_floating_point():
        return as_labels(tensor, "y", n_classes=C)
    targets = _as_two_dimensional(tensor, "y")
    if C is not None and targets.shape[1] != C:
        raise InputError(
            f"y of shape {tuple(tensor.shape)} and initial outputs with {C} columns",
            expected="the same number of outputs in both",
            hint="pass targets (n, C), or integer labels (n,)",
        )
    return targets


def _count_outputs(targets: Tensor) -> int:
    """Return the number of outputs: the columns of targets (n, C), or the number of classes (at least 2) of labels (n,)."""
    return targets.shape[1] if targets.ndim == 2 else max(2, int(targets.max()) + 1)


def _as_two_dimensional(values: ArrayLike, name: str) -> Tensor:
    """Check real numbers, (n, C) or (n,), and return them as (n, C) float64, with C = 1 for (n,).

    ``name`` is the name of the argument in error messages.

    Raises:
        InputError: the shape is different, or the values are complex or empty.
    """
    tensor = as_tensor(values, name, squared=True)
    if tensor.ndim not in (1, 2) or tensor.is_complex() or tensor.numel() == 0:
        raise InputError(
            f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}".replace("torch.", ""),
            expected="real numbers (n, C), or (n,) for one output",
            hint="give one row for each training row",
        )
    return tensor.to(torch.float64).reshape(len(tensor), -1)


def _check_outputs(values: ArrayLike | None, n: int, C: int, name: str) -> Tensor:
    """Check the outputs of n rows and return them as (n, C) float64; None gives zeros.

    ``name`` is the name of the argument in error messages.

    Raises:
        InputError: the shape differs.
    """
    if values is None:
        return torch.zeros(n, C, dtype=torch.float64)
    outputs = _as_two_dimensional(values, name)
    if tuple(outputs.shape) != (n, C):
        raise InputError(
            f"{name} of shape {tuple(outputs.shape)}",
            expected=f"({n}, {C}): outputs of the same rows",
            hint="compute it on the rows of the kernel, in their order",
        )
    return outputs


def _check_test_kernel(K_test: ArrayLike, n: int, C: int, full: bool) -> Tensor:
    """Return the kernel of m test rows with n training rows as a float64 matrix, (m, n), or (mC, nC) for a full kernel.

    Raises:
        InputError: the shape of ``K_test`` differs from that of the training kernel.
    """
    K = as_tensor(K_test, "K_test", dtype=torch.float64)
    if K.ndim == 4 and full and K.shape[1:] == (n, C, C):
        K = K.transpose(1, 2).reshape(-1, n * C)  # axes (i, j, c, d) -> (i, c, j, d)
    n_columns = n * C if full else n
    if K.ndim != 2 or K.shape[1] != n_columns or len(K) == 0 or (full and len(K) % C):
        raise InputError(
            f"K_test of shape {tuple(K.shape)}",
            expected=f"(m, {n}, {C}, {C}) or (m·{C}, {n * C})" if full else f"(m, {n}): test rows first",
            hint="compute it like the kernel, e.g. km.ntk(model, x_test, x_train, outputs=...)",
        )
    return K


def _missing_origin_error(rows: str) -> InputError:
    """Return the error for weight decay without outputs at zero weights; ``rows`` names the rows that lack them."""
    return InputError(
        f"weight decay without the outputs at zero weights of {rows}",
        expected="origin= and, with K_test, origin_test=: f_0(x) − J(x) w_0, the linearized network at w = 0",
        hint="compute J(x) w_0 by a Jacobian-vector product along the decayed weights (zeros for the others)",
    )
