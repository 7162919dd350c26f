r"""Effective parameters of a linear smoother: how much of the labels it uses, on training rows and on others.

A prediction f(x) = s(x)ᵀ y (+ a part without y) has

    p_eff(I) = (n / |I|) Σ_{j ∈ I} |s(x_j)|²,

which is n / k for k nearest neighbors, p for least squares with p features on its own training rows, n for every interpolator
on its own training rows; but on test rows an interpolator may have fewer. Against p_eff of test rows double descent is one U, or
an L. With C outputs |s|² is the squared Frobenius norm of the (C, n, C) map over C, so that C copies of a smoother count as it.

Source: Curth, Jeffares and van der Schaar 2023.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError

__all__ = ["EffectiveParameters", "effective_parameters", "feature_smoother", "kernel_smoother"]

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class EffectiveParameters:
    """p_eff of m rows. Exact for these rows; ``se`` is for rows that are a sample of more (NaN for a single one)."""

    value: float
    se: float
    rows: Tensor = field(repr=False)  # (m,): n |s(x_j)|², of which ``value`` is the mean

    def __str__(self) -> str:
        return f"{self.value:.5g} effective parameters (± {self.se:.2g} over {len(self.rows):,} rows)"


def effective_parameters(smoother: ArrayLike) -> EffectiveParameters:
    """Compute p_eff = (n / m) Σ_j |s(x_j)|² of m rows of a smoother, n = the number of training rows.

    Args:
        smoother: (m, n), or (m, C, n, C): what output c of row j takes from target c' of training row i.

    Returns:
        EffectiveParameters: float64.

    Raises:
        InputError: another shape, no rows, NaN.

    Source: Curth, Jeffares and van der Schaar 2023.

    >>> effective_parameters([[0.5, 0.5, 0.0, 0.0]]).value  # two nearest neighbors of four
    2.0
    """
    s = as_tensor(smoother, "smoother", dtype=torch.float64).cpu()
    if s.ndim not in (2, 4) or s.numel() == 0 or (s.ndim == 4 and s.shape[1] != s.shape[3]):
        raise InputError(
            f"a smoother of shape {tuple(s.shape)}",
            expected="(m, n), or (m, C, n, C)",
            hint="give one row for each prediction and one column for each training target",
        )
    n, C = (s.shape[1], 1) if s.ndim == 2 else (s.shape[2], s.shape[1])
    rows = s.square().flatten(1).sum(1) * n / C
    se = float(rows.std(correction=1)) / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
    return EffectiveParameters(float(rows.mean()), se, rows)


def kernel_smoother(kernel: ArrayLike, *, K_test: ArrayLike | None = None, ridge: float = 0.0) -> Tensor:
    """Compute S = K_rows (K + ridge I)⁻¹, the smoother of kernel ridge regression; ridge 0: the least-norm interpolant.

    Args:
        kernel: (n, n) of the training rows with themselves.
        rows: (m, n), of other rows with the training rows; None: the training rows.
        ridge: >= 0; K + ridge I, not n·ridge.

    Returns:
        (m, n) in float64. With ridge 0 eigenvalues below n·eps·λ_max count as none.

    Raises:
        InputError: shapes that do not fit, a negative ridge. NumericalError: an asymmetric kernel.

    Cost: one eigendecomposition, O(n³), and O(m n²).
    """
    K = as_square_kernel(kernel).cpu()
    _check_ridge(ridge)
    left = K if K_test is None else as_tensor(K_test, "K_test", dtype=torch.float64).cpu()
    if left.ndim != 2 or left.shape[1] != len(K):
        raise InputError(
            f"K_test of shape {tuple(left.shape)} for a kernel {tuple(K.shape)}",
            expected=f"(m, {len(K)})",
            hint="pass the kernel of the test examples with the training examples",
        )
    values, vectors = torch.linalg.eigh(K)
    some = values > len(K) * EPS * float(values.abs().max())
    inverse = torch.where(some, 1 / (torch.where(some, values, 1.0) + ridge), 0.0)
    return left @ (vectors * inverse) @ vectors.T


def feature_smoother(features: ArrayLike, *, test_features: ArrayLike | None = None, ridge: float = 0.0) -> Tensor:
    """Compute S = Φ_rows (ΦᵀΦ + ridge I)⁻¹ Φᵀ, of ridge regression on features; ridge 0: least squares of least norm.

    Args:
        features: (n, p) of the training rows.
        rows: (m, p), of other rows; None: the training rows.
        ridge: >= 0.

    Returns:
        (m, n) in float64. With ridge 0 singular values below max(n, p)·eps·σ_max count as none.

    Raises:
        InputError: shapes that do not fit, a negative ridge.

    Cost: one singular value decomposition, O(n p min(n, p)); no normal equations, which would square the condition.
    """
    phi = as_tensor(features, "features", dtype=torch.float64).cpu()
    _check_ridge(ridge)
    left = phi if test_features is None else as_tensor(test_features, "test_features", dtype=torch.float64).cpu()
    if phi.ndim != 2 or left.ndim != 2 or left.shape[1] != phi.shape[1] or phi.numel() == 0:
        raise InputError(
            f"features of shape {tuple(phi.shape)}, test_features of shape {tuple(left.shape)}",
            expected="(n, p) and (m, p)",
            hint="compute both with the same feature map",
        )
    U, sigma, Vt = torch.linalg.svd(phi, full_matrices=False)
    some = sigma > max(phi.shape) * EPS * float(sigma.max())
    shrink = torch.where(some, sigma / torch.where(some, sigma.square() + ridge, 1.0), 0.0)
    return left @ (Vt.T * shrink) @ U.T


def _check_ridge(ridge: object) -> None:
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < float("inf"):
        raise InputError(f"ridge={ridge!r}", expected="a number >= 0", hint="pass ridge=0.0 for no ridge")
