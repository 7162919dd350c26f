"""How alike two kernels of the same rows are: alignments, with a debiased one, and distances."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError, NumericalError

__all__ = [
    "AlignmentEstimate",
    "alignment",
    "centered_alignment",
    "centered_target_alignment",
    "debiased_alignment",
    "kernel_distance",
    "relative_distance",
    "target_alignment",
]

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class AlignmentEstimate:
    """An estimate of what other rows of the same kind would give, with its standard error."""

    value: float
    se: float


def alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Compute the alignment ⟨K, L⟩ / (|K| |L|), Frobenius: their cosine, in [0, 1] for kernels. Exact for these rows.

    Both are (n, n), of the same rows in the same order. Kernels with a common large constant are aligned whatever
    else they say: :func:`centered_alignment` removes it. Cost O(n²).

    Raises:
        InputError: shapes that differ, NaN. NumericalError: asymmetric, or a kernel of zeros, which has no direction.

    Source: Cristianini et al. 2001.

    >>> alignment([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    0.7071067811865475
    """
    return _cosine(*_as_pair(first, second))


def centered_alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Compute the centered alignment (CKA), ⟨HKH, HLH⟩ / (|HKH| |HLH|) with H = I − 11ᵀ/n. Exact for these rows.

    Unchanged when features are rotated, shifted or scaled by one number. As an estimate of the population's it is
    biased upwards, most where n is small beside the kernels' effective dimensions: see :func:`debiased_alignment`.

    Shapes, cost and errors are those of :func:`alignment`; a constant kernel has no direction either.

    Source: Cortes, Mohri, Rostamizadeh 2012; Kornblith et al. 2019.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(centered_alignment(x @ x.T, (2 * x + 5) @ (2 * x + 5).T), 12)
    1.0
    """
    K, L = _as_pair(first, second)
    return _cosine(_centered(K, "first kernel"), _centered(L, "second kernel"))


def debiased_alignment(first: ArrayLike, second: ArrayLike) -> AlignmentEstimate:
    """Estimate the population's centered alignment, HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), from unbiased HSIC.

    With the diagonals set to 0 (the rows' products with themselves carry the bias)::

        HSIC(K, L) = [tr KL + 1ᵀK1 1ᵀL1 / ((n−1)(n−2)) − 2 1ᵀKL1 / (n−2)] / (n (n−3))

    HSIC is unbiased, its ratio up to O(1/n): 0 on average for independent kernels, so it may be negative. The standard
    error is the delete-one jackknife over rows; it assumes that rows are independent draws, and it is too large, never
    too small, where the true value is 0. Cost O(n²), the jackknife included.

    Raises:
        InputError: shapes that differ, NaN, n < 5. NumericalError: asymmetric, or an HSIC of a kernel with itself that
            is not positive, on all rows or without one of them.

    Source: Song et al. 2012 (HSIC); Nguyen, Raghu, Kornblith 2021 (the ratio).

    >>> x = torch.arange(6.0)[:, None]
    >>> debiased_alignment(x @ x.T, x @ x.T)
    Estimate(value=1.0, se=0.0)
    """
    K, L = (_hollow(kernel) for kernel in _as_pair(first, second))
    n = len(K)
    if n < 5:
        raise InputError(f"kernels of {n} rows", expected="n >= 5", hint="use more rows, or centered_alignment")
    cross, one, two = _hsic(K, L), _hsic(K, K), _hsic(L, L)
    # A constant kernel leaves only rounding, of the size of eps times the mean square of its entries.
    noise = [n * EPS * float(kernel.square().mean()) for kernel in (K, L)]
    if not (bool((one > noise[0]).all()) and bool((two > noise[1]).all())):
        raise NumericalError(
            f"kernels whose unbiased HSIC with themselves falls to {min(float(one.min()), float(two.min())):.3g}",
            expected="positive values, on all rows and without any one of them",
            hint="use more rows; a constant kernel has no direction",
        )
    value, *left_out = (cross / (one * two).sqrt()).tolist()
    spread = np.asarray(left_out)
    return AlignmentEstimate(value, float(np.sqrt((n - 1) * spread.var())))


def target_alignment(kernel: ArrayLike, y: ArrayLike) -> float:
    """Compute the kernel-target alignment ⟨K, YYᵀ⟩ / (|K| |YYᵀ|), in [0, 1] for a kernel. Exact for these rows.

    ``kernel`` is (n, n). ``y`` is integers (n,): labels 0..C-1, Y = one-hot − 1/C; or real (n,) or (n, C), Y as it is.
    Cost O(n² C); YYᵀ is never formed.

    Raises:
        InputError: lengths that differ, NaN. NumericalError: asymmetric kernel, a kernel or targets of zeros.

    Source: Cristianini et al. 2001.

    >>> target_alignment(torch.eye(4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    0.5
    """
    K = as_square_kernel(kernel)
    return _target_cosine(K, _as_targets(y, len(K)).to(K.device))


def centered_target_alignment(kernel: ArrayLike, y: ArrayLike) -> float:
    """Compute the centered kernel-target alignment: ``centered_alignment(K, YYᵀ)``, YYᵀ never formed. Exact.

    Arguments, errors and cost are those of :func:`target_alignment`; with unequal classes it is the one to read.

    Source: Cortes, Mohri, Rostamizadeh 2012.

    >>> round(centered_target_alignment(torch.ones(4, 4) + torch.eye(4), [0, 1, 0, 1]), 6)  # 1/√(n − 1)
    0.57735
    """
    K = as_square_kernel(kernel)
    Y = _as_targets(y, len(K)).to(K.device)
    centered = Y - Y.mean(0)
    if bool(torch.linalg.vector_norm(centered) <= len(K) * EPS * torch.linalg.vector_norm(Y)):
        centered = torch.zeros_like(Y)
    return _target_cosine(_centered(K, "kernel"), centered)


def kernel_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Compute 1 − ⟨K, L⟩ / (|K| |L|), in [0, 1] for kernels: 0 where they are proportional. Exact for these rows.

    Computed as |K/|K| − L/|L||² / 2, which keeps its digits when the kernels are nearly equal. Shapes, cost and errors
    are those of :func:`alignment`.

    Source: Fort et al. 2020 (of the tangent kernel at two times of training).

    >>> kernel_distance(torch.eye(2), 3 * torch.eye(2))
    0.0
    """
    K, L = _as_pair(first, second)
    return float((_unit(K, "first kernel") - _unit(L, "second kernel")).square().sum()) / 2


def relative_distance(kernel: ArrayLike, reference: ArrayLike) -> float:
    """Compute |K − K₀| / |K₀|, Frobenius, which sees the scale too. Exact for these rows.

    Shapes, cost and errors are those of :func:`alignment`; only the reference must not be zero.

    >>> relative_distance(3 * torch.eye(2), torch.eye(2))
    2.0
    """
    K, reference = _as_pair(kernel, reference)
    _unit(reference, "reference kernel")
    return float(torch.linalg.vector_norm(K - reference) / torch.linalg.vector_norm(reference))


def _as_pair(first: ArrayLike, second: ArrayLike) -> tuple[Tensor, Tensor]:
    K, L = as_square_kernel(first, "first kernel"), as_square_kernel(second, "second kernel")
    if K.shape != L.shape:
        raise InputError(
            f"kernels of shape {tuple(K.shape)} and {tuple(L.shape)}",
            expected="two kernels of the same rows in the same order",
            hint="compute both on the same rows",
        )
    return K, L.to(K.device)


def _unit(kernel: Tensor, name: str) -> Tensor:
    # The largest entry first: squares of very small or very large entries would leave the range of float64.
    scale = kernel.abs().max()
    if scale == 0:
        raise NumericalError(f"{name} of zeros", expected="a kernel that is not 0", hint="check the rows it came from")
    kernel = kernel / scale
    return kernel / torch.linalg.vector_norm(kernel)


def _cosine(first: Tensor, second: Tensor) -> float:
    cosine = float((_unit(first, "first kernel") * _unit(second, "second kernel")).sum())
    return min(max(cosine, -1.0), 1.0)  # rounding may pass the ends by an eps


def _target_cosine(kernel: Tensor, targets: Tensor) -> float:
    scale = targets.abs().max()
    if scale == 0:
        raise NumericalError("targets y without variation", expected="targets that differ", hint="check the labels")
    Y = targets / scale
    inner = (Y * (_unit(kernel, "kernel") @ Y)).sum()
    return min(max(float(inner / torch.linalg.vector_norm(Y.T @ Y)), -1.0), 1.0)


def _centered(kernel: Tensor, name: str) -> Tensor:
    means = kernel.mean(0)
    centered = kernel - means - means[:, None] + means.mean()
    if bool(centered.abs().max() <= len(kernel) * EPS * kernel.abs().max()):
        raise NumericalError(
            f"{name} that is constant: its centering is 0",
            expected="a kernel that tells rows apart",
            hint="check the rows it came from, or use alignment, which does not center",
        )
    return centered


def _hollow(kernel: Tensor) -> Tensor:
    return kernel.clone().fill_diagonal_(0)


def _hsic(K: Tensor, L: Tensor) -> Tensor:
    """Unbiased HSIC of hollow kernels: (n + 1,), on all rows, then without each row in turn; O(n²) in all."""
    n = len(K)
    k, m = K.sum(1), L.sum(1)
    own = (K * L).sum(1)  # Σ_j K_ij L_ij
    trace = own.sum() - torch.cat([own.new_zeros(1), 2 * own])
    sum_K, sum_L = k.sum() - torch.cat([k.new_zeros(1), 2 * k]), m.sum() - torch.cat([m.new_zeros(1), 2 * m])
    path = k @ m - torch.cat([k.new_zeros(1), k * m + K @ m + L @ k - own])  # 1ᵀKL1
    size = torch.full_like(trace, n - 1)
    size[0] = n
    return (trace + sum_K * sum_L / ((size - 1) * (size - 2)) - 2 * path / (size - 2)) / (size * (size - 3))


def _as_targets(y: ArrayLike, n: int) -> Tensor:
    targets = as_tensor(y, "y")
    if targets.ndim not in (1, 2) or len(targets) != n or targets.is_complex() or targets.numel() == 0:
        raise InputError(
            f"y of shape {tuple(targets.shape)} and dtype {targets.dtype}".replace("torch.", ""),
            expected=f"one label for each of the {n} rows, or real targets ({n},) or ({n}, C)",
            hint="pair every row of the kernel with its label or targets",
        )
    if targets.ndim == 1 and not targets.is_floating_point():
        one_hot = torch.nn.functional.one_hot(as_labels(y, "y")).to(torch.float64)
        return one_hot - 1 / one_hot.shape[1]
    return targets.to(torch.float64).reshape(n, -1)
