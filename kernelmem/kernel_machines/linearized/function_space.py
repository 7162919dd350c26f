r"""Linearized training in function space: what is read (kernel, targets, where training starts) and what is found.

Weights that are trained by gradients never leave s w_0 + {J(X)ᵀ a}: s is 1 without weight decay, a one number for each
training row and output. With Θ = J Jᵀ the outputs of the linearized network at such weights are

    f(x) = f_0(x) + Θ(x, X) a + (s − 1) J(x) w_0,    J(x) w_0 = f_0(x) − origin(x),

where the origin is what the linearized network gives at zero weights.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result

if TYPE_CHECKING:
    import pandas

__all__ = ["FunctionSpace", "LinearizedTraining", "as_matrix", "as_moments", "function_space"]


@dataclass(frozen=True, eq=False, repr=False)
class LinearizedTraining(Result):
    """The linearized network at S moments of its training: float64.

    Attributes:
        moments: S numbers: steps taken, or time (learning rate times steps) of gradient flow; infinity is the limit.
        train: (S, n, C) outputs on the training rows.
        test: (S, m, C) outputs on the test rows; None where no k_test was given.
        coefficients: (S, n, C) a, so that f = f_0 + K a + (scale − 1)(f_0 − origin).
        scale: (S,) s, what weight decay left of the initial weights; 1 without.
        stability: learning rate times curvature: lr (κ_max / n + weight_decay), the curvature of cross-entropy taken as 1/2,
            which is its largest; 0 of gradient flow. At ``limit`` or above, descent on the squared error diverges.
        limit: of the stability: 2 of plain descent.
        largest: κ_max, the largest eigenvalue of the kernel.
        condition: κ_max over the smallest eigenvalue above rounding; infinite where it was not computed (recursions).
        residual: how far the last of the moments is from its own equation, evaluated with the kernel itself, relative to the
            first gradient: rounding.
    """

    moments: tuple[float, ...]
    train: Tensor = field(repr=False)
    test: Tensor | None = field(repr=False)
    coefficients: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    stability: float
    limit: float
    largest: float
    condition: float
    residual: float
    _full: bool = field(repr=False, default=False)

    def predict(self, k_test: Any, *, initial: Any = None, origin: Any = None) -> Tensor:
        """Outputs on other rows, (S, m, C), from their kernel with the training rows and their own initial outputs.

        Raises:
            InputError: shapes that do not fit; weight decay without ``origin``.
        """
        S, n, C = self.coefficients.shape
        K = _cross(k_test, n, C, self._full).to(self.coefficients.device)
        m = len(K) // C if self._full else len(K)
        start = _outputs(initial, m, C, "initial").to(K)
        if origin is None and bool((self.scale != 1).any()):
            raise _no_origin("rows to predict")
        pull = start - _outputs(origin, m, C, "origin").to(K) if origin is not None else torch.zeros_like(start)
        found = K @ self.coefficients.reshape(S, K.shape[1], -1)
        return start + found.reshape(S, m, C) + (self.scale - 1)[:, None, None] * pull

    def to_frame(self) -> "pandas.DataFrame":
        """One line for each moment, part ("train" or "test"), row and output: its value."""
        import pandas  # slow to import

        parts = {"train": self.train, "test": self.test}
        lines = []
        for part, values in parts.items():
            if values is not None:
                places = [self.moments, [part], range(values.shape[1]), range(values.shape[2])]
                index = pandas.MultiIndex.from_product(places, names=["moment", "part", "row", "output"])
                lines.append(pandas.DataFrame({"value": values.flatten().cpu().numpy()}, index=index).reset_index())
        return pandas.concat(lines, ignore_index=True)

    def __str__(self) -> str:
        _, n, C = self.train.shape
        rows = [
            f"linearized training of {n:,} rows, {C} output{'s' * (C != 1)}: learning rate times curvature"
            f" {self.stability:.3g} (limit {self.limit:.3g}), condition {self.condition:.2g}, residual {self.residual:.1g}",
            f"{'moment':>12}{'|coefficients|':>18}",
        ]
        sizes = self.coefficients.flatten(1).norm(dim=1).tolist()
        rows += [f"{t:>12g}{size:>18.4g}" for t, size in zip(self.moments, sizes, strict=True)]
        return "\n".join(rows)


@dataclass(frozen=True, eq=False)
class FunctionSpace:
    """Kernel, targets and starting point, the kernel as one matrix (N, N) that acts on N x k numbers.

    A kernel (n, n) acts on each of C outputs by itself: N = n, k = C. A full one has N = n C, k = 1. ``fold`` makes (N, k)
    of (n, C), ``unfold`` the reverse; both are views.
    """

    matrix: Tensor  # (N, N)
    targets: Tensor  # (n, C), or labels (n,) for a loss that takes them
    initial: Tensor  # (n, C)
    pull: Tensor  # (n, C): J w_0 = f_0 − origin; zeros where no origin was given
    cross: Tensor | None  # (M, N)
    initial_test: Tensor | None  # (m, C)
    pull_test: Tensor | None  # (m, C)
    full: bool

    @property
    def n(self) -> int:
        """Training rows."""
        return self.initial.shape[0]

    @property
    def n_outputs(self) -> int:
        """C."""
        return self.initial.shape[1]

    def fold(self, values: Tensor) -> Tensor:
        """(..., n, C) -> (..., N, k)."""
        return values.reshape(*values.shape[:-2], len(self.matrix), -1)

    def unfold(self, values: Tensor) -> Tensor:
        """(..., N, k) -> (..., n, C)."""
        return values.reshape(*values.shape[:-2], self.n, self.n_outputs)

    def columns(self, index: Tensor) -> Tensor:
        """Of training rows ``index`` (B,), the columns of the matrix."""
        if not self.full:
            return index
        C = self.n_outputs
        return (index[:, None] * C + torch.arange(C, device=index.device)).flatten()

    def outputs(self, coefficients: Tensor, shrunk: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs on training and test rows for coefficients (S, N, k) and s − 1 (S,)."""
        away = shrunk[:, None, None]
        train = self.initial + self.unfold(self.matrix @ coefficients) + away * self.pull
        if self.cross is None or self.initial_test is None or self.pull_test is None:
            return train, None
        found = (self.cross @ coefficients).reshape(len(shrunk), *self.initial_test.shape)
        return train, self.initial_test + found + away * self.pull_test


def function_space(
    kernel: Any,
    y: Any,
    *,
    initial: Any,
    origin: Any,
    k_test: Any,
    initial_test: Any,
    origin_test: Any,
    decay: bool,
    one_hot: bool = True,
) -> FunctionSpace:
    """Check what was given and lay it out; ``one_hot``: labels become one-hot rows (squared error).

    Raises:
        InputError: shapes that do not fit, NaN; weight decay without the outputs at zero weights.
        NumericalError: an asymmetric kernel.
    """
    start = None if initial is None else _two_dimensional(initial, "initial")
    targets = _targets(y, None if start is None else start.shape[1])
    C = start.shape[1] if start is not None else _width(targets)
    n = len(targets)
    matrix = as_matrix(kernel, n, C)
    full = len(matrix) != n
    device = matrix.device
    if one_hot and targets.ndim == 1:
        targets = torch.nn.functional.one_hot(targets, C).double()
    start = _outputs(start, n, C, "initial").to(device)
    if decay and origin is None:
        raise _no_origin("the training rows")
    pull = start - _outputs(origin, n, C, "origin").to(device) if origin is not None else torch.zeros_like(start)
    cross = first = pull_test = None
    if k_test is not None:
        cross = _cross(k_test, n, C, full).to(device)
        m = len(cross) // C if full else len(cross)
        first = _outputs(initial_test, m, C, "initial_test").to(device)
        if decay and origin_test is None:
            raise _no_origin("the test rows")
        pull_test = torch.zeros_like(first)
        if origin_test is not None:
            pull_test = first - _outputs(origin_test, m, C, "origin_test").to(device)
    return FunctionSpace(matrix, targets.to(device), start, pull, cross, first, pull_test, full)


def as_matrix(kernel: Any, n: int, C: int) -> Tensor:
    """A kernel of n rows as a symmetric float64 matrix: (n, n) as it is; (n, n, C, C) as (nC, nC), row i C + c.

    Raises:
        InputError: another shape. NumericalError: asymmetric.
    """
    found = as_tensor(kernel, "kernel", dtype=torch.float64)
    if found.shape == (n, n, C, C):
        found = found.transpose(1, 2).reshape(n * C, n * C)
    if tuple(found.shape) not in {(n, n), (n * C, n * C)}:
        raise InputError(
            f"kernel of shape {tuple(found.shape)} for {n} rows and {C} outputs",
            expected=f"({n}, {n}), which acts on each output by itself, ({n}, {n}, {C}, {C}), or ({n * C}, {n * C})",
            hint='pass km.ntk(model, x, outputs="full"); of a kernel (n, C, n, C) pass kernel.reshape(n * C, n * C)',
        )
    return as_square_kernel(found)


def as_moments(values: Any, name: str, *, whole: bool) -> tuple[float, ...]:
    """Read moments of training: one number or several, >= 0; infinity is taken where a limit exists.

    Raises:
        InputError: none, negative, NaN, or fractions of steps.
    """
    try:
        found = tuple(float(value) for value in ([values] if isinstance(values, int | float) else values))
    except (TypeError, ValueError):
        found = ()
    good = all(t >= 0 and (not whole or t == math.inf or t == int(t)) for t in found)
    if not found or not good:
        raise InputError(
            f"{name}={values!r}",
            expected=f"one or more {'whole ' if whole else ''}numbers >= 0",
            hint=f"pass {name}=100, or {name}=[1, 10, 100]",
        )
    return found


def _targets(y: Any, C: int | None) -> Tensor:
    found = as_tensor(y, "y")
    if found.ndim == 1 and not found.is_floating_point():
        return as_labels(found, "y", n_classes=C)
    targets = _two_dimensional(found, "y")
    if C is not None and targets.shape[1] != C:
        raise InputError(
            f"y of shape {tuple(found.shape)} beside initial outputs with {C} columns",
            expected="as many outputs in both",
            hint="pass targets (n, C), or integer labels (n,)",
        )
    return targets


def _width(targets: Tensor) -> int:
    return targets.shape[1] if targets.ndim == 2 else max(2, int(targets.max()) + 1)


def _two_dimensional(values: Any, name: str) -> Tensor:
    found = as_tensor(values, name)
    if found.ndim not in (1, 2) or found.is_complex() or found.numel() == 0:
        raise InputError(
            f"{name} of shape {tuple(found.shape)} and dtype {found.dtype}".replace("torch.", ""),
            expected="real numbers (n, C), or (n,) for one output",
            hint="give one row for each training row",
        )
    return found.to(torch.float64).reshape(len(found), -1)


def _outputs(values: Any, n: int, C: int, name: str) -> Tensor:
    """(n, C); zeros where none were given."""
    if values is None:
        return torch.zeros(n, C, dtype=torch.float64)
    found = _two_dimensional(values, name)
    if tuple(found.shape) != (n, C):
        raise InputError(
            f"{name} of shape {tuple(found.shape)}",
            expected=f"({n}, {C}): outputs of the same rows",
            hint="compute it on the rows of the kernel, in their order",
        )
    return found


def _cross(k_test: Any, n: int, C: int, full: bool) -> Tensor:
    found = as_tensor(k_test, "k_test", dtype=torch.float64)
    if found.ndim == 4 and full and found.shape[1:] == (n, C, C):
        found = found.transpose(1, 2).reshape(-1, n * C)
    wide = n * C if full else n
    if found.ndim != 2 or found.shape[1] != wide or len(found) == 0 or (full and len(found) % C):
        raise InputError(
            f"k_test of shape {tuple(found.shape)}",
            expected=f"(m, {n}, {C}, {C}) or (m·{C}, {n * C})" if full else f"(m, {n}): test rows first",
            hint="compute it as the kernel was, e.g. km.ntk(model, x_test, x_train, outputs=...)",
        )
    return found


def _no_origin(where: str) -> InputError:
    return InputError(
        f"weight decay without the outputs at zero weights of {where}",
        expected="origin= and, with k_test, origin_test=: f_0(x) − J(x) w_0, what the linearized network gives at w = 0",
        hint="compute J(x) w_0 by a Jacobian-vector product along the decayed weights (zeros for the others)",
    )
