"""Memorizing baselines in kernel space: k-nearest neighbors and Nadaraya-Watson regression."""

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_tensor
from kernelmem.core.errors import InputError


def kernel_distances(K_test: ArrayLike, K_test_diag: ArrayLike, K_train_diag: ArrayLike) -> Tensor:
    """Return the squared distances |φ(x*) - φ(x_i)|² = k(x*, x*) + k(x_i, x_i) - 2 k(x*, x_i): (m, n), float64, >= 0.

    With the linear kernel they are distances of inputs, with a tangent kernel distances of tangents. Values that rounding
    makes negative are set to 0.

    Raises:
        InputError: the shapes are not (m, n), (m,) and (n,).

    >>> x = torch.tensor([[0.0], [3.0]])
    >>> kernel_distances(x @ x.T, x[:, 0] ** 2, x[:, 0] ** 2).tolist()
    [[0.0, 9.0], [9.0, 0.0]]
    """
    K = as_tensor(K_test, "K_test", dtype=torch.float64)
    test_diagonal = as_tensor(K_test_diag, "K_test_diag", dtype=torch.float64).to(K.device)
    train_diagonal = as_tensor(K_train_diag, "K_train_diag", dtype=torch.float64).to(K.device)
    if K.ndim != 2 or test_diagonal.shape != (len(K),) or train_diagonal.shape != K.shape[1:]:
        raise InputError(
            f"K_test {tuple(K.shape)}, diagonals {tuple(test_diagonal.shape)} and {tuple(train_diagonal.shape)}",
            expected="shapes (m, n), (m,) and (n,)",
            hint="pass the kernel of test rows with training rows, and k(x, x) of each",
        )
    return (test_diagonal[:, None] + train_diagonal - 2 * K).clamp_min(0)


def nearest_neighbors(distances: ArrayLike, targets: ArrayLike, k: int) -> Tensor:
    """Return the mean target of the k nearest training rows of each test row, (m, C): with one-hot targets, label shares.

    ``distances`` is (m, n) for m test and n training rows, and ``targets`` is (n,) or (n, C). Ties at the k-th distance are
    broken by row order.

    Raises:
        InputError: k is not in 1..n, or the shapes do not match.

    Cost: O(m n log n). Source: Cover and Hart 1967.

    >>> nearest_neighbors([[0.0, 1.0, 9.0]], [1.0, 3.0, 8.0], 2).tolist()
    [[2.0]]
    """
    distance_matrix, y = _check_matrix_and_targets(distances, targets, "distances")
    k = as_count(k, "k", maximum=len(y))
    nearest_rows = distance_matrix.argsort(dim=1, stable=True)[:, :k]
    return y[nearest_rows].mean(1)


def nadaraya_watson(K_test: ArrayLike, targets: ArrayLike) -> Tensor:
    """Return the kernel-weighted mean of the targets, Σ_i k(x*, x_i) y_i / Σ_i k(x*, x_i), for each test row x*, (m, C).

    ``K_test`` (m, n) holds the nonnegative kernel values of m test rows with n training rows, and ``targets`` is (n,) or
    (n, C).

    Raises:
        InputError: negative kernel values (a mean needs weights >= 0); a row whose kernel values are all 0.

    Cost: O(m n C). Source: Nadaraya 1964; Watson 1964.

    >>> nadaraya_watson([[1.0, 3.0]], [0.0, 1.0]).tolist()
    [[0.75]]
    """
    K, y = _check_matrix_and_targets(K_test, targets, "K_test")
    kernel_sums = K.sum(1, keepdim=True)
    if bool((K < 0).any()) or bool((kernel_sums <= 0).any()):
        raise InputError(
            f"K_test with smallest value {float(K.min()):.3g} and {int((kernel_sums <= 0).sum())} rows that sum to 0",
            expected="kernel values >= 0, not all 0 in a row",
            hint="use a kernel of distances, such as exp(-kernel_distances / (2 width²)), with a larger width",
        )
    return K @ y / kernel_sums


def _check_matrix_and_targets(matrix: ArrayLike, targets: ArrayLike, name: str) -> tuple[Tensor, Tensor]:
    """Check a matrix of m test and n training rows and the training targets, and return them as (m, n) and (n, C) float64.

    ``name`` is the name of the matrix in error messages.

    Raises:
        InputError: the shapes do not match.
    """
    K = as_tensor(matrix, name, dtype=torch.float64)
    y = as_tensor(targets, "targets", dtype=torch.float64).to(K.device)
    y = y[:, None] if y.ndim == 1 else y
    if K.ndim != 2 or y.ndim != 2 or len(y) != K.shape[1]:
        raise InputError(
            f"{name} of shape {tuple(K.shape)} and targets of shape {tuple(y.shape)}",
            expected=f"{name} (m, n), and targets (n,) or (n, C)",
            hint="put the test rows first, and give each training row its target",
        )
    return K, y
