"""Kernels to test solvers with: of chosen spectrum, of rows, and broken in a chosen way."""

import numpy as np

__all__ = [
    "INVALID_KINDS",
    "SOLVABLE_KINDS",
    "gaussian_kernel",
    "invalid_system",
    "kernel_with_spectrum",
    "random_rotation",
    "solvable_system",
]

INVALID_KINDS = ("asymmetric", "indefinite", "nan", "condition")
SOLVABLE_KINDS = ("conditioned", "duplicates")


def random_rotation(n: int, rng: np.random.Generator) -> np.ndarray:
    """An orthogonal matrix, (n, n)."""
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def kernel_with_spectrum(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A symmetric matrix with these eigenvalues."""
    Q = random_rotation(len(values), rng)
    K = (Q * values) @ Q.T
    return (K + K.T) / 2


def gaussian_kernel(x: np.ndarray, y: np.ndarray | None = None, gamma: float = 0.3) -> np.ndarray:
    """Gaussian kernel exp(-gamma |x - y|²) of rows."""
    y = x if y is None else y
    return np.exp(-gamma * ((x[:, None] - y) ** 2).sum(-1))


def invalid_system(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A kernel, targets and a ridge that do not make a system to be trusted, of one of the kinds ``BAD``."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    y = rng.standard_normal((n, 2))
    if kind == "condition":
        values = np.concatenate([[1.0], 10.0 ** rng.uniform(-20, 0, n - 2), [10.0 ** rng.uniform(-22, -17)]])
        return kernel_with_spectrum(values, rng) * 10.0 ** rng.uniform(-3, 3), y, 0.0
    K = kernel_with_spectrum(10.0 ** rng.uniform(-3, 0, n), rng)
    if kind == "asymmetric":
        K[0, n - 1] += 10.0 ** rng.uniform(-4, 0) * np.abs(K).max()
    elif kind == "nan":
        K[tuple(rng.integers(0, n, 2))] = rng.choice([np.nan, np.inf, -np.inf])
    else:
        values = 10.0 ** rng.uniform(-3, 0, n)
        values[:2] = -(10.0 ** rng.uniform(-2, 0, 2))  # two, so that one remains on zero-sum vectors
        K = kernel_with_spectrum(values, rng)
    return K, y, 10.0 ** rng.uniform(-9, -5)


def solvable_system(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """A kernel, targets and a ridge that are to be solved, of one of the kinds ``GOOD``.

    "conditioned": condition up to 1e12, no ridge. "duplicates": duplicated rows, with a ridge.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    y = rng.standard_normal((n, 2))
    if kind == "duplicates":
        x = rng.standard_normal((n, 3))
        x = x[rng.integers(0, max(2, n // 2), n)]
        return gaussian_kernel(x), y, 10.0 ** rng.uniform(-6, 0)
    lowest = rng.uniform(-12, 0)
    values = np.concatenate([[1.0, 10.0**lowest], 10.0 ** rng.uniform(lowest, 0, n - 2)])
    return kernel_with_spectrum(values, rng) * 10.0 ** rng.uniform(-3, 3), y, 0.0
