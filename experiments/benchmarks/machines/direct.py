"""Run one engine several times in this process: seconds per call, and peak memory in addition to the kernel."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from sklearn.kernel_ridge import KernelRidge

from experiments.benchmarks.audit.child import peak_bytes
from experiments.benchmarks.machines.configs import OUTPUTS, RIDGE
from kernelmem.kernel_machines import KernelMachineRegressor, leave_one_out, solve

__all__ = ["ENGINES", "kernel_of_rows"]

Engine = Callable[[np.ndarray, np.ndarray, np.ndarray], object]  # kernel, kernel + ridge I, targets

ENGINES: dict[str, Engine] = {
    "scipy.linalg.cholesky": lambda _, A, y: scipy.linalg.cholesky(A, lower=True, check_finite=False),
    "scipy.linalg.cho_solve": lambda _, A, y: scipy.linalg.cho_solve(scipy.linalg.cho_factor(A, lower=True), y),
    "torch.linalg.cholesky": lambda _, A, y: torch.linalg.cholesky(torch.from_numpy(A)),
    "scikit-learn KernelRidge": lambda K, _, y: KernelRidge(alpha=RIDGE, kernel="precomputed").fit(K, y),
    "kernelmem solve": lambda K, _, y: solve(K, y, RIDGE),
    "kernelmem KernelMachineRegressor": lambda K, _, y: KernelMachineRegressor("precomputed", ridge=RIDGE).fit(K, y),
    "kernelmem leave_one_out": lambda K, _, y: leave_one_out(K, y, RIDGE),
    "leave-one-out by scipy.linalg.inv": lambda _, A, y: _by_inverse(A, y),
}


def kernel_of_rows(n: int, *, columns: slice = slice(None), dtype: type = np.float64) -> np.ndarray:
    """Return the Gaussian kernel of standard normal rows in 20 dimensions, bandwidth √20, or some of its rows."""
    x = np.random.default_rng(0).standard_normal((n, 20)).astype(dtype)
    rows = x[columns]
    K = rows @ (x.T / dtype(10))
    K -= (rows * rows).sum(1)[:, None] / dtype(20)
    K -= (x * x).sum(1) / dtype(20)
    np.exp(K, out=K)
    return K


def _by_inverse(A: np.ndarray, y: np.ndarray) -> np.ndarray:
    inverse = scipy.linalg.inv(A)
    return y - (inverse @ y) / inverse.diagonal()[:, None]


def measure(name: str, n: int, calls: int) -> dict:
    """Time one engine."""
    K = kernel_of_rows(n)
    K = (K + K.T) / 2
    y = np.random.default_rng(1).standard_normal((n, OUTPUTS))
    A = K + RIDGE * np.eye(n)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on (Linux)
    before, seconds = peak_bytes(), []
    for _ in range(calls):
        began = time.perf_counter()
        ENGINES[name](K, A, y)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "peak_above_kernel": peak_bytes() - before}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
