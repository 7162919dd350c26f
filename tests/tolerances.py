"""Tolerances of comparisons that hold on every processor: from the unit of rounding, the length of sums, the condition.

Two correct programs (or one, on two processors) differ by rounding. A test asks how much of it the problem admits, so
that it neither fails on another BLAS nor passes what is wrong. ``tests/README.md`` has the formulas and their use.
"""

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike

__all__ = ["EPS", "SAFETY", "backward_stable_residual", "condition", "solving", "summing", "symmetrized"]

EPS = torch.finfo(torch.float64).eps
SAFETY = 16
"""The formulas bound one operation; a method makes several of them. Measured: at most 2 of the 16 are used."""


def summing(*lengths: int, dtype: torch.dtype = torch.float64) -> float:
    """SAFETY · eps · (n₁ + n₂ + ...): sums or inner products of n₁, n₂, ... terms, one after the other.

    Relative to Σ|a_k b_k| (at most |a| |b|), not to the result: what cancels has no digits of its own
    (Higham 2002, eq. 3.5).

    >>> summing(100) / EPS
    1600.0
    """
    return SAFETY * torch.finfo(dtype).eps * sum(lengths)


def solving(*kernels: Tensor, ridge: float = 0.0, rank: float = 1e-12) -> float:
    """SAFETY · n · eps · cond(K + ridge I), of the worst of the kernels: solutions, predictions, left-out predictions.

    Relative to the largest of the solution. At ridge 0 the condition is that of the eigenvalues above ``rank`` times
    the largest (Higham 2002, theorem 7.2 with the backward error n · eps of a Cholesky or eigenvalue method).

    >>> round(solving(torch.diag(torch.tensor([1.0, 3.0])), ridge=1.0) / EPS)
    64
    """
    return max(SAFETY * len(K) * EPS * condition(K, ridge, rank) for K in kernels)


def backward_stable_residual(A: ArrayLike, x: ArrayLike, b: ArrayLike) -> float:
    """Bound n · eps · |A| |x| / |b| of the relative residual |A x - b| / |b| of a backward stable solver.

    The ratio of the two is what LAPACK's own tests hold below 30. Far below this bound a residual is rounding: its
    digits are those of one processor, and no iteration is sure to reach a tolerance there.
    """
    A, x, b = (torch.as_tensor(value, dtype=torch.float64) for value in (A, x, b))
    return len(A) * EPS * float(torch.linalg.matrix_norm(A, 2) * torch.linalg.norm(x) / torch.linalg.norm(b))


def condition(K: Tensor, ridge: float = 0.0, rank: float = 1e-12) -> float:
    """Condition number of K + ridge I; at ridge 0 that of the eigenvalues above ``rank`` times the largest."""
    values = torch.linalg.eigvalsh(symmetrized(K).double())
    values = values.clamp(min=0) + ridge if ridge > 0 else values[values > rank * values[-1]]
    return float(values[-1] / values[0]) if len(values) else 1.0


def symmetrized(K: Tensor) -> Tensor:
    """(K + Kᵀ) / 2: a product Φ Φᵀ is symmetric to the bit on some processors only.

    >>> symmetrized(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    return (K + K.mT) / 2
