"""Memorizing baselines in kernel space: k-nearest neighbors and Nadaraya-Watson regression."""

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_tensor
from kernelmem.core.errors import InputError


def kernel_distances(K_test: ArrayLike, K_test_diag: ArrayLike, K_train_diag: ArrayLike) -> Tensor:
    """Squared distances |φ(x*) - φ(x_i)|² = k(x*, x*) + k(x_i, x_i) - 2 k(x*, x_i): (m, n), float64, >= 0.

    With the linear kernel they are distances of inputs, with a tangent kernel distances of tangents. Values that rounding
    makes negative are set to 0.

    Raises:
        InputError: shapes that do not fit (m, n), (m,), (n,).

    >>> x = torch.tensor([[0.0], [3.0]])
    >>> kernel_distances(x @ x.T, x[:, 0] ** 2, x[:, 0] ** 2).tolist()
    [[0.0, 9.0], [9.0, 0.0]]
    """
    K = as_tensor(K_test, "K_test", dtype=torch.float64)
    test = as_tensor(K_test_diag, "K_test_diag", dtype=torch.float64).to(K.device)
    train = as_tensor(K_train_diag, "K_train_diag", dtype=torch.float64).to(K.device)
    if K.ndim != 2 or test.shape != (len(K),) or train.shape != K.shape[1:]:
        raise InputError(
            f"K_test {tuple(K.shape)}, diagonals {tuple(test.shape)} and {tuple(train.shape)}",
            expected="(m, n), (m,) and (n,)",
            hint="pass the kernel of test rows with training rows, and k(x, x) of each",
        )
    return (test[:, None] + train - 2 * K).clamp_min(0)


def nearest_neighbors(distances: ArrayLike, targets: ArrayLike, k: int) -> Tensor:
    """Mean target of the k nearest training rows, (m, C): with one-hot targets, shares of their labels.

    ``distances`` (m, n), ``targets`` (n,) or (n, C). Ties at the k-th distance are broken by row order.

    Raises:
        InputError: k not in 1..n; shapes.

    Cost: O(m n log n). Source: Cover and Hart 1967.

    >>> nearest_neighbors([[0.0, 1.0, 9.0]], [1.0, 3.0, 8.0], 2).tolist()
    [[2.0]]
    """
    D, y = _pair(distances, targets, "distances")
    k = as_count(k, "k", maximum=len(y))
    nearest = D.argsort(dim=1, stable=True)[:, :k]
    return y[nearest].mean(1)


def nadaraya_watson(K_test: ArrayLike, targets: ArrayLike) -> Tensor:
    """Weighted mean of targets, Σ_i k(x*, x_i) y_i / Σ_i k(x*, x_i): (m, C), for a nonnegative kernel.

    Raises:
        InputError: negative kernel values (a mean needs weights >= 0); a row whose kernel values are all 0.

    Cost: O(m n C). Source: Nadaraya 1964; Watson 1964.

    >>> nadaraya_watson([[1.0, 3.0]], [0.0, 1.0]).tolist()
    [[0.75]]
    """
    K, y = _pair(K_test, targets, "K_test")
    total = K.sum(1, keepdim=True)
    if bool((K < 0).any()) or bool((total <= 0).any()):
        raise InputError(
            f"K_test from {float(K.min()):.3g} with {int((total <= 0).sum())} rows that sum to 0",
            expected="kernel values >= 0, not all 0 in a row",
            hint="use a kernel of distances, such as exp(-kernel_distances / (2 width²)), with a larger width",
        )
    return K @ y / total


def _pair(matrix: ArrayLike, targets: ArrayLike, name: str) -> tuple[Tensor, Tensor]:
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
