r"""Effective number of parameters of a linear smoother, on training examples and on test examples.

A smoother predicts f(x) = s(x)ᵀ y (+ a part without y). On a set I of examples

    p_eff(I) = (n / |I|) Σ_{j ∈ I} |s(x_j)|²,

which is n / k for k nearest neighbors, p for least squares with p features on its training examples, and n for every
interpolator on its training examples; on test examples an interpolator can have fewer. Plotted against p_eff of the test
examples, a double descent curve becomes a single U or an L. With C outputs |s|² is the squared Frobenius norm of the
(C, n, C) map divided by C, so that C copies of a smoother have the same p_eff as one.

Source: Curth, Jeffares and van der Schaar 2023.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_number, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False, repr=False)
class EffectiveParameters(Result):
    """Effective number of parameters on m examples.

    Attributes:
        value: effective number of parameters p_eff, exact for these examples.
        se: standard error of ``value`` if the examples are a sample of a population; NaN for a single example.
        per_example: (m,) n |s(x_j)|², whose mean is ``value``.
    """

    value: float
    se: float
    per_example: Tensor

    def __str__(self) -> str:
        return f"{self.value:.5g} effective parameters (± {self.se:.2g} over {len(self.per_example):,} examples)"


def effective_parameters(smoother: ArrayLike) -> EffectiveParameters:
    """Compute p_eff = (n / m) Σ_j |s(x_j)|² of m examples of a smoother with n training examples.

    Args:
        smoother: (m, n), or (m, C, n, C): weight of target c' of training example i in output c of example j.

    Returns:
        EffectiveParameters: float64.

    Raises:
        InputError: the shape is not supported, there are no examples, or a weight is NaN.

    Source: Curth, Jeffares and van der Schaar 2023.

    >>> effective_parameters([[0.5, 0.5, 0.0, 0.0]]).value  # two nearest neighbors of four
    2.0
    """
    weights = as_tensor(smoother, "smoother", dtype=torch.float64, squared=True).cpu()
    if (
        weights.ndim not in (2, 4)
        or weights.numel() == 0
        or (weights.ndim == 4 and weights.shape[1] != weights.shape[3])
    ):
        raise InputError(
            f"smoother of shape {tuple(weights.shape)}",
            expected="(m, n), or (m, C, n, C)",
            hint="pass one row for each prediction and one column for each training target",
        )
    n, C = (weights.shape[1], 1) if weights.ndim == 2 else (weights.shape[2], weights.shape[1])
    per_example = weights.square().flatten(1).sum(1) * n / C
    m = len(per_example)
    se = float(per_example.std(correction=1)) / m**0.5 if m > 1 else float("nan")
    return EffectiveParameters(float(per_example.mean()), se, per_example)


def kernel_smoother(kernel: ArrayLike, *, K_test: ArrayLike | None = None, ridge: float = 0.0) -> Tensor:
    """Compute the smoother of kernel ridge regression, S = K_test (K + ridge I)⁻¹; ridge 0: least-norm interpolation.

    Args:
        kernel: (n, n) kernel of the training examples.
        K_test: (m, n) kernel between test and training examples; None: predictions are for the training examples.
        ridge: number >= 0 added to the diagonal of the kernel (not multiplied by n).

    Returns:
        (m, n) float64. With ridge 0 eigenvalues below n·eps·λ_max are set to zero.

    Raises:
        InputError: the shapes do not match, or the ridge is negative.
        NumericalError: the kernel is not symmetric.

    Cost: one eigendecomposition, O(n³), and O(m n²).
    """
    K = as_square_kernel(kernel).cpu()
    ridge = as_number(ridge, "ridge")
    K_left = K if K_test is None else as_tensor(K_test, "K_test", dtype=torch.float64).cpu()
    if K_left.ndim != 2 or K_left.shape[1] != len(K):
        raise InputError(
            f"K_test of shape {tuple(K_left.shape)} for a kernel of shape {tuple(K.shape)}",
            expected=f"(m, {len(K)})",
            hint="pass the kernel of the test examples with the training examples",
        )
    eigenvalues, eigenvectors = torch.linalg.eigh(K)
    above_rounding = eigenvalues > len(K) * EPS * float(eigenvalues.abs().max())
    inverse_eigenvalues = torch.where(above_rounding, 1 / (torch.where(above_rounding, eigenvalues, 1.0) + ridge), 0.0)
    return K_left @ (eigenvectors * inverse_eigenvalues) @ eigenvectors.T


def feature_smoother(features: ArrayLike, *, test_features: ArrayLike | None = None, ridge: float = 0.0) -> Tensor:
    """Compute the smoother of ridge regression, S = Φ_test (ΦᵀΦ + ridge I)⁻¹ Φᵀ; ridge 0: least-norm least squares.

    Args:
        features: (n, p) features Φ of the training examples.
        test_features: (m, p) features of the test examples; None: predictions are for the training examples.
        ridge: number >= 0 added to the diagonal of ΦᵀΦ.

    Returns:
        (m, n) float64. With ridge 0 singular values below max(n, p)·eps·σ_max are set to zero.

    Raises:
        InputError: the shapes do not match, or the ridge is negative.

    Cost: one singular value decomposition, O(n p min(n, p)); normal equations would square the condition number.
    """
    phi = as_tensor(features, "features", dtype=torch.float64).cpu()
    ridge = as_number(ridge, "ridge")
    phi_test = phi if test_features is None else as_tensor(test_features, "test_features", dtype=torch.float64).cpu()
    if phi.ndim != 2 or phi_test.ndim != 2 or phi_test.shape[1] != phi.shape[1] or phi.numel() == 0:
        raise InputError(
            f"features of shape {tuple(phi.shape)}, test_features of shape {tuple(phi_test.shape)}",
            expected="(n, p) and (m, p)",
            hint="compute both with the same feature map",
        )
    U, sigma, Vt = torch.linalg.svd(phi, full_matrices=False)
    above_rounding = sigma > max(phi.shape) * EPS * float(sigma.max())
    filter_factors = torch.where(above_rounding, sigma / torch.where(above_rounding, sigma.square() + ridge, 1.0), 0.0)
    return phi_test @ (Vt.T * filter_factors) @ U.T
