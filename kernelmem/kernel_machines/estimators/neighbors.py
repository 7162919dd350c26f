"""Baselines that remember: k-nearest neighbors and Nadaraya-Watson, in the space of any kernel."""

from typing import Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import InputError

__all__ = ["kernel_distances", "nadaraya_watson", "nearest_neighbors"]


def kernel_distances(k_test: Any, test_diagonal: Any, train_diagonal: Any) -> Tensor:
    """Squared distances |φ(x*) - φ(x_i)|² = k(x*, x*) + k(x_i, x_i) - 2 k(x*, x_i): (m, n), float64, >= 0.

    With the linear kernel they are those of input space, with a tangent kernel those of tangents. What rounding makes
    negative is 0.

    Raises:
        InputError: shapes that do not fit (m, n), (m,), (n,).

    >>> x = torch.tensor([[0.0], [3.0]])
    >>> kernel_distances(x @ x.T, x[:, 0] ** 2, x[:, 0] ** 2).tolist()
    [[0.0, 9.0], [9.0, 0.0]]
    """
    K = as_tensor(k_test, "k_test", dtype=torch.float64)
    own = as_tensor(test_diagonal, "test_diagonal", dtype=torch.float64).to(K.device)
    train = as_tensor(train_diagonal, "train_diagonal", dtype=torch.float64).to(K.device)
    if K.ndim != 2 or own.shape != (len(K),) or train.shape != K.shape[1:]:
        raise InputError(
            f"k_test {tuple(K.shape)}, diagonals {tuple(own.shape)} and {tuple(train.shape)}",
            expected="(m, n), (m,) and (n,)",
            hint="pass the kernel of test rows with training rows, and k(x, x) of each",
        )
    return (own[:, None] + train - 2 * K).clamp_min(0)


def nearest_neighbors(distances: Any, targets: Any, k: int) -> Tensor:
    """Mean target of the k nearest training rows, (m, C): with one-hot targets, shares of their labels.

    ``distances`` (m, n), ``targets`` (n,) or (n, C). Of rows as near as the k-th, those that come first are taken.

    Raises:
        InputError: k not in 1..n; shapes.

    Cost: O(m n log n). Source: Cover and Hart 1967.

    >>> nearest_neighbors([[0.0, 1.0, 9.0]], [1.0, 3.0, 8.0], 2).tolist()
    [[2.0]]
    """
    D, y = _pair(distances, targets, "distances")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(y):
        raise InputError(f"k={k!r}", expected=f"a whole number in 1..{len(y)}", hint="pass k=5")
    nearest = D.argsort(dim=1, stable=True)[:, :k]
    return y[nearest].mean(1)


def nadaraya_watson(k_test: Any, targets: Any) -> Tensor:
    """Weighted mean of targets, Σ_i k(x*, x_i) y_i / Σ_i k(x*, x_i): (m, C), for a kernel that is nowhere negative.

    Raises:
        InputError: negative kernel values (a mean needs weights >= 0); a row whose kernel values are all 0.

    Cost: O(m n C). Source: Nadaraya 1964; Watson 1964.

    >>> nadaraya_watson([[1.0, 3.0]], [0.0, 1.0]).tolist()
    [[0.75]]
    """
    K, y = _pair(k_test, targets, "k_test")
    total = K.sum(1, keepdim=True)
    if bool((K < 0).any()) or bool((total <= 0).any()):
        raise InputError(
            f"k_test from {float(K.min()):.3g} with {int((total <= 0).sum())} rows that sum to 0",
            expected="kernel values >= 0, not all 0 in a row",
            hint="use a kernel of distances, such as exp(-kernel_distances / (2 width²)), with a larger width",
        )
    return K @ y / total


def _pair(matrix: Any, targets: Any, name: str) -> tuple[Tensor, Tensor]:
    K = as_tensor(matrix, name, dtype=torch.float64)
    y = as_tensor(targets, "targets", dtype=torch.float64).to(K.device)
    y = y[:, None] if y.ndim == 1 else y
    if K.ndim != 2 or y.ndim != 2 or len(y) != K.shape[1]:
        raise InputError(
            f"{name} {tuple(K.shape)} and targets {tuple(y.shape)}",
            expected="(m, n), and (n,) or (n, C)",
            hint="put the test rows first, and give each training row its target",
        )
    return K, y
