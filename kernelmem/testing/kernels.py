"""Kernel matrices for tests of solvers: well-conditioned ones, and ones with a known defect."""

import numpy as np

INVALID_KINDS = ("asymmetric", "indefinite", "nan", "condition")
SOLVABLE_KINDS = ("conditioned", "duplicates")


def random_rotation(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random orthogonal matrix, (n, n)."""
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def kernel_with_spectrum(eigenvalues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a symmetric matrix (n, n) with the n given eigenvalues and random eigenvectors."""
    Q = random_rotation(len(eigenvalues), rng)
    K = (Q * eigenvalues) @ Q.T
    return (K + K.T) / 2


def gaussian_kernel(x: np.ndarray, y: np.ndarray | None = None, gamma: float = 0.3) -> np.ndarray:
    """Return exp(-gamma |x - y|²) for the rows of x (n, d) and y (m, d), (n, m); y None: x.

    >>> gaussian_kernel(np.zeros((1, 2)), np.ones((1, 2)), gamma=0.5).round(4)
    array([[0.3679]])
    """
    y = x if y is None else y
    return np.exp(-gamma * ((x[:, None] - y) ** 2).sum(-1))


def invalid_system(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (kernel (n, n), targets (n, 2), ridge) of a linear system for which no solution can be trusted.

    n is the number of examples.

    Args:
        kind: one of ``INVALID_KINDS``: asymmetric, indefinite, with NaN or infinities, condition number above 1/eps.
        seed: seed of all random draws.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    y = rng.standard_normal((n, 2))
    if kind == "condition":
        eigenvalues = np.concatenate([[1.0], 10.0 ** rng.uniform(-20, 0, n - 2), [10.0 ** rng.uniform(-22, -17)]])
        return kernel_with_spectrum(eigenvalues, rng) * 10.0 ** rng.uniform(-3, 3), y, 0.0
    K = kernel_with_spectrum(10.0 ** rng.uniform(-3, 0, n), rng)
    if kind == "asymmetric":
        K[0, n - 1] += 10.0 ** rng.uniform(-4, 0) * np.abs(K).max()
    elif kind == "nan":
        K[tuple(rng.integers(0, n, 2))] = rng.choice([np.nan, np.inf, -np.inf])
    else:
        eigenvalues = 10.0 ** rng.uniform(-3, 0, n)
        eigenvalues[:2] = -(10.0 ** rng.uniform(-2, 0, 2))  # two, so that one is left on vectors that sum to zero
        K = kernel_with_spectrum(eigenvalues, rng)
    return K, y, 10.0 ** rng.uniform(-9, -5)


def solvable_system(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (kernel (n, n), targets (n, 2), ridge) of a linear system that a solver must solve.

    n is the number of examples.

    Args:
        kind: one of ``SOLVABLE_KINDS``: "conditioned" (condition number up to 1e12, no ridge) or "duplicates" (repeated
            examples, with a ridge).
        seed: seed of all random draws.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    y = rng.standard_normal((n, 2))
    if kind == "duplicates":
        x = rng.standard_normal((n, 3))
        x = x[rng.integers(0, max(2, n // 2), n)]
        return gaussian_kernel(x), y, 10.0 ** rng.uniform(-6, 0)
    log_smallest = rng.uniform(-12, 0)
    eigenvalues = np.concatenate([[1.0, 10.0**log_smallest], 10.0 ** rng.uniform(log_smallest, 0, n - 2)])
    return kernel_with_spectrum(eigenvalues, rng) * 10.0 ** rng.uniform(-3, 3), y, 0.0
