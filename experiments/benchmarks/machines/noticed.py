"""Count how many invalid systems each library reports, and how many solvable ones it solves.

Reported: it raises, warns, or returns an error code. Solved: no error, no warning, and a backward error
|A a - y| / (|A| |a| + |y|) of at most n times the rounding of float64.
"""

import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
from sklearn.kernel_ridge import KernelRidge

from experiments.benchmarks.machines.configs import SYSTEMS
from kernelmem.kernel_machines import KernelMachineRegressor
from kernelmem.testing import INVALID_KINDS, SOLVABLE_KINDS, invalid_system, solvable_system

__all__ = ["LIBRARIES", "count"]

Solve = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _shifted(K: np.ndarray, ridge: float) -> np.ndarray:
    return K + ridge * np.eye(len(K))


LIBRARIES: dict[str, Solve] = {
    "kernelmem KernelMachineRegressor": lambda K, y, r: (
        KernelMachineRegressor("precomputed", ridge=r).fit(K, y).dual_coef_
    ),
    "scikit-learn KernelRidge": lambda K, y, r: KernelRidge(alpha=r, kernel="precomputed").fit(K, y).dual_coef_,
    'scipy.linalg.solve(assume_a="pos")': lambda K, y, r: scipy.linalg.solve(_shifted(K, r), y, assume_a="pos"),
    "scipy.linalg.solve": lambda K, y, r: scipy.linalg.solve(_shifted(K, r), y),
    "numpy.linalg.solve": lambda K, y, r: np.linalg.solve(_shifted(K, r), y),
}


def count(library: str) -> dict[str, int]:
    """Return the number of reported systems of each invalid kind, and of solved systems of each solvable kind."""
    solve = LIBRARIES[library]
    noticed = {
        kind: sum(_attempt(solve, *invalid_system(kind, seed)) is None for seed in range(SYSTEMS))
        for kind in INVALID_KINDS
    }
    solved = {
        kind: sum(_solved(solve, *solvable_system(kind, seed)) for seed in range(SYSTEMS)) for kind in SOLVABLE_KINDS
    }
    return noticed | solved


def _attempt(solve: Solve, K: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return solve(K, y, ridge)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError, Warning, RuntimeError):
            return None


def _solved(solve: Solve, K: np.ndarray, y: np.ndarray, ridge: float) -> bool:
    a = _attempt(solve, K, y, ridge)
    if a is None:
        return False
    A = _shifted(K, ridge)
    gap = np.linalg.norm(A @ a - y)
    return bool(gap <= len(K) * np.finfo(float).eps * (np.linalg.norm(A, 2) * np.linalg.norm(a) + np.linalg.norm(y)))
