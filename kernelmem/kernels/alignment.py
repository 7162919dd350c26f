"""Similarity of two kernels of the same examples: alignment, centered and debiased alignment, distances."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_square_kernel, as_tensor
from kernelmem.core.checks.arrays import MAX_ENTRY, MIN_ENTRY
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.files.result_files import Result

EPS64 = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False, repr=False)
class AlignmentEstimate(Result):
    """Estimate of the alignment in the population that the examples were drawn from, with its standard error.

    Attributes:
        value: estimated alignment; it can be negative.
        se: jackknife standard error of ``value``.
    """

    value: float
    se: float

    def __str__(self) -> str:
        return f"debiased alignment {self.value:.4g} ± {self.se:.2g} (jackknife standard error)"


def alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Compute the alignment ⟨K, L⟩ / (|K| |L|) (cosine in the Frobenius inner product), in [0, 1] for kernels.

    Both are (n, n), of the same examples in the same order; the value is exact for these examples. A large constant
    that both kernels share makes them aligned whatever else they contain: :func:`centered_alignment` removes it.
    Cost O(n²).

    Raises:
        InputError: shapes that differ, NaN. NumericalError: asymmetric, or a kernel of zeros.

    Source: Cristianini et al. 2001.

    >>> alignment([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    0.7071067811865475
    """
    return _frobenius_cosine(*_validated_pair(first, second))


def centered_alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Compute the centered alignment (CKA), ⟨HKH, HLH⟩ / (|HKH| |HLH|) with H = I − 11ᵀ/n, exactly.

    Invariant to rotation, translation and scaling of the features. As an estimate of the population value it is biased
    upwards, most when n is small compared with the effective dimensions of the kernels: see :func:`debiased_alignment`.

    Shapes, cost and errors are those of :func:`alignment`; a constant kernel is refused too.

    Source: Cortes, Mohri, Rostamizadeh 2012; Kornblith et al. 2019.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(centered_alignment(x @ x.T, (2 * x + 5) @ (2 * x + 5).T), 12)
    1.0
    """
    K, L = _validated_pair(first, second)
    return _frobenius_cosine(_centered(K, "first kernel"), _centered(L, "second kernel"))


def debiased_alignment(first: ArrayLike, second: ArrayLike) -> AlignmentEstimate:
    """Estimate the centered alignment of the population, HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), from unbiased HSIC.

    With the diagonals set to 0 (they carry the bias)::

        HSIC(K, L) = [tr KL + 1ᵀK1 1ᵀL1 / ((n−1)(n−2)) − 2 1ᵀKL1 / (n−2)] / (n (n−3))

    HSIC is unbiased, its ratio up to O(1/n): 0 on average for independent kernels, so it can be negative. The standard
    error is the delete-one jackknife over examples; it assumes that the examples are independent draws, and it is
    conservative where the true value is 0. Cost O(n²), including the jackknife.

    Raises:
        InputError: shapes that differ, NaN, n < 5. NumericalError: asymmetric, or an HSIC of a kernel with itself that
            is not positive, on all examples or without one of them.

    Source: Song et al. 2012 (HSIC); Nguyen, Raghu, Kornblith 2021 (the ratio).

    >>> x = torch.arange(6.0)[:, None]
    >>> debiased_alignment(x @ x.T, x @ x.T)
    debiased alignment 1 ± 0 (jackknife standard error)
    """
    K, L = (kernel.clone().fill_diagonal_(0) for kernel in _validated_pair(first, second))
    n = len(K)
    if n < 5:
        raise InputError(f"kernels of {n} examples", expected="n >= 5", hint="use more examples, or centered_alignment")
    hsic_KL, hsic_KK, hsic_LL = _hsic(K, L), _hsic(K, K), _hsic(L, L)
    # For a constant kernel only rounding is left, about eps times the mean square of its entries.
    rounding_errors = [n * EPS64 * float(kernel.square().mean()) for kernel in (K, L)]
    if not (bool((hsic_KK > rounding_errors[0]).all()) and bool((hsic_LL > rounding_errors[1]).all())):
        raise NumericalError(
            f"kernels whose unbiased HSIC with themselves falls to {min(float(hsic_KK.min()), float(hsic_LL.min())):.3g}",
            expected="positive values, on all examples and without any one of them",
            hint="use more examples, and check that no kernel is constant",
        )
    value, *leave_one_out = (hsic_KL / (hsic_KK * hsic_LL).sqrt()).tolist()
    return AlignmentEstimate(value, float(np.sqrt((n - 1) * np.var(leave_one_out))))


def target_alignment(kernel: ArrayLike, y: ArrayLike) -> float:
    """Compute the kernel-target alignment ⟨K, YYᵀ⟩ / (|K| |YYᵀ|), in [0, 1] for a kernel, exactly.

    ``kernel`` is (n, n). ``y`` is integers (n,), labels 0..C-1, with Y = one-hot − 1/C; or real targets Y, (n,) or
    (n, C). Cost O(n² C); YYᵀ is never formed.

    Raises:
        InputError: lengths that differ, NaN. NumericalError: asymmetric kernel, a kernel or targets of zeros.

    Source: Cristianini et al. 2001.

    >>> target_alignment(torch.eye(4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    0.5
    """
    K = _rescaled(as_square_kernel(kernel, any_scale=True))
    return _target_cosine(K, _as_targets(y, len(K)).to(K.device))


def centered_target_alignment(kernel: ArrayLike, y: ArrayLike) -> float:
    """Compute the centered kernel-target alignment: ``centered_alignment(K, YYᵀ)``, exactly.

    Arguments, errors and cost are those of :func:`target_alignment`; prefer it when class sizes differ.

    Source: Cortes, Mohri, Rostamizadeh 2012.

    >>> round(centered_target_alignment(torch.ones(4, 4) + torch.eye(4), [0, 1, 0, 1]), 6)  # 1/√(n − 1)
    0.57735
    """
    K = _rescaled(as_square_kernel(kernel, any_scale=True))
    Y = _as_targets(y, len(K)).to(K.device)
    centered = Y - Y.mean(0)
    if bool(torch.linalg.vector_norm(centered) <= len(K) * EPS64 * torch.linalg.vector_norm(Y)):
        centered = torch.zeros_like(Y)
    return _target_cosine(_centered(K, "kernel"), centered)


def kernel_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Compute 1 − ⟨K, L⟩ / (|K| |L|), in [0, 1] for kernels, 0 if they are proportional, exactly.

    Computed as |K/|K| − L/|L||² / 2, which is accurate for nearly equal kernels. Shapes, cost and errors are those of
    :func:`alignment`.

    Source: Fort et al. 2020 (the tangent kernel at two times of training).

    >>> kernel_distance(torch.eye(2), 3 * torch.eye(2))
    0.0
    """
    K, L = _validated_pair(first, second)
    return float((_normalized(K, "first kernel") - _normalized(L, "second kernel")).square().sum()) / 2


def relative_distance(kernel: ArrayLike, reference: ArrayLike) -> float:
    """Compute |K − K₀| / |K₀| in the Frobenius norm, which depends on the scale too, exactly.

    Shapes, cost and errors are those of :func:`alignment`; K may be zero, the reference K₀ may not.

    >>> relative_distance(3 * torch.eye(2), torch.eye(2))
    2.0
    """
    K, reference = _validated_pair(kernel, reference, any_scale=False)
    _normalized(reference, "reference kernel")
    return float(torch.linalg.vector_norm(K - reference) / torch.linalg.vector_norm(reference))


def _validated_pair(first: ArrayLike, second: ArrayLike, *, any_scale: bool = True) -> tuple[Tensor, Tensor]:
    """Validate two kernels of the same examples and move them to the same device; ``any_scale`` rescales each of them."""
    K = as_square_kernel(first, "first kernel", any_scale=any_scale)
    L = as_square_kernel(second, "second kernel", any_scale=any_scale)
    if K.shape != L.shape:
        raise InputError(
            f"kernels of shape {tuple(K.shape)} and {tuple(L.shape)}",
            expected="two kernels of the same examples in the same order",
            hint="compute both kernels on the same examples",
        )
    return _rescaled(K), _rescaled(L.to(K.device))


def _rescaled(values: Tensor) -> Tensor:
    """Multiply by a power of two, which is exact, so that squares of very small or large entries stay in float64."""
    largest = float(values.abs().max())
    if MIN_ENTRY <= largest <= MAX_ENTRY or largest == 0:
        return values
    exponent = math.frexp(largest)[1] // 2
    return values * 2.0**-exponent * 2.0**-exponent  # in two factors, each of which is in float64


def _normalized(kernel: Tensor, name: str) -> Tensor:
    """Return a kernel divided by its Frobenius norm; ``name`` is used in the error for a kernel of zeros."""
    # Divide by the largest entry first: squares of very small or large entries would underflow or overflow.
    scale = kernel.abs().max()
    if scale == 0:
        raise NumericalError(
            f"{name} that contains only zeros",
            expected="a nonzero kernel",
            hint="check the examples it was computed from",
        )
    kernel = kernel / scale
    return kernel / torch.linalg.vector_norm(kernel)


def _frobenius_cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine of two kernels in the Frobenius inner product, from their normalized entries."""
    cosine = float((_normalized(first, "first kernel") * _normalized(second, "second kernel")).sum())
    return min(max(cosine, -1.0), 1.0)  # rounding can move the cosine outside [-1, 1]


def _target_cosine(kernel: Tensor, targets: Tensor) -> float:
    """Compute ⟨K, YYᵀ⟩ / (|K| |YYᵀ|) for targets Y (n, C), without forming YYᵀ."""
    scale = targets.abs().max()
    if scale == 0:
        raise NumericalError(
            "targets y without variation", expected="targets that differ between examples", hint="check the labels"
        )
    Y = targets / scale
    inner_product = (Y * (_normalized(kernel, "kernel") @ Y)).sum()
    return min(max(float(inner_product / torch.linalg.vector_norm(Y.T @ Y)), -1.0), 1.0)


def _centered(kernel: Tensor, name: str) -> Tensor:
    """Compute the centered kernel HKH with H = I − 11ᵀ/n, (n, n); ``name`` is used in the error for a constant kernel."""
    means = kernel.mean(0)
    centered = kernel - means - means[:, None] + means.mean()
    if bool(centered.abs().max() <= len(kernel) * EPS64 * kernel.abs().max()):
        raise NumericalError(
            f"{name} that is constant, so that centering leaves 0",
            expected="a kernel that differs between examples",
            hint="check the examples it was computed from, or use alignment, which does not center",
        )
    return centered


def _hsic(K: Tensor, L: Tensor) -> Tensor:
    """Compute the unbiased HSIC of two kernels (n, n) with zero diagonal, at a cost of O(n²).

    Returns (n + 1,): the value on all n examples, then the values without each example in turn.
    """
    n = len(K)
    row_sums_K, row_sums_L = K.sum(1), L.sum(1)  # K1 and L1
    product_sums = (K * L).sum(1)  # Σ_j K_ij L_ij
    zero = row_sums_K.new_zeros(1)
    # Entry 0 is the sum over all examples; entry i + 1 subtracts the row and the column of example i.
    trace = product_sums.sum() - torch.cat([zero, 2 * product_sums])
    total_K = row_sums_K.sum() - torch.cat([zero, 2 * row_sums_K])
    total_L = row_sums_L.sum() - torch.cat([zero, 2 * row_sums_L])
    removed_KL = row_sums_K * row_sums_L + K @ row_sums_L + L @ row_sums_K - product_sums
    total_KL = row_sums_K @ row_sums_L - torch.cat([zero, removed_KL])  # 1ᵀKL1
    count = torch.full_like(trace, n - 1)
    count[0] = n
    sums = trace + total_K * total_L / ((count - 1) * (count - 2)) - 2 * total_KL / (count - 2)
    return sums / (count * (count - 3))


def _as_targets(y: ArrayLike, n: int) -> Tensor:
    """Convert integer labels, (n,) or (n, 1), or real targets, (n,) or (n, C), to targets Y (n, C) in float64 for C outputs."""
    targets = as_tensor(y, "y")
    if targets.ndim not in (1, 2) or len(targets) != n or targets.is_complex() or targets.numel() == 0:
        raise InputError(
            f"y of shape {tuple(targets.shape)} and dtype {targets.dtype}".replace("torch.", ""),
            expected=f"labels ({n},), or real targets ({n},) or ({n}, C)",
            hint="pass one label or target per example of the kernel",
        )
    if (targets.ndim == 1 or targets.shape[1] == 1) and not targets.is_floating_point():
        one_hot = torch.nn.functional.one_hot(as_labels(y, "y")).to(torch.float64)
        return one_hot - 1 / one_hot.shape[1]
    return _rescaled(targets.to(torch.float64).reshape(n, -1))
