"""Simulations of the eigenframework: Gaussian designs, and randomly rotated pools."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelmem.core.checks import as_count, as_number
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.theory.curve import Simulation, least_squares, simulate
from kernelmem.double_descent.theory.kernel_ridge.curves import feature_curve, learning_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import SpectralTask

__all__ = ["simulate_features", "simulate_learning"]


def simulate_learning(
    task: SpectralTask, samples: Any, *, ridge: float = 0.0, noise: float = 0.0, repetitions: int = 40, seed: int = 0
) -> Simulation:
    """Draw training rows, fit kernel ridge and compare with :func:`learning_curve`.

    A population has rows of Gaussian eigenfunctions, x = Λ^½ g, and the test risk of a fit is computed without test rows.
    A pool has the matrix Q A Qᵀ and the targets Q y with a random rotation Q; the rows that were not drawn are the test
    rows. The theory is a limit, in practice within a standard error or two for some tens of rows.

    Cost: a decomposition (n, M) a draw and place; of a pool also one of (N, N) a draw.
    """
    theory = learning_curve(task, samples, ridge=ridge, noise=noise)
    places = [(int(n), math.inf) for n in theory.axis]
    return simulate(theory, _draw(task, places, ridge, noise), repetitions=repetitions, seed=seed)


def simulate_features(
    task: SpectralTask,
    features: Any,
    *,
    n: int,
    ridge: float = 0.0,
    noise: float = 0.0,
    repetitions: int = 40,
    seed: int = 0,
) -> Simulation:
    """Draw rows and k Gaussian random features, fit ridge and compare with :func:`feature_curve`.

    As :func:`simulate_learning`, with K = X G Gᵀ Xᵀ / k, G a matrix (M, k) of standard normal numbers.
    """
    theory = feature_curve(task, features, n=n, ridge=ridge, noise=noise)
    n = as_count(n, "n")
    places = [(n, int(k)) for k in as_axis(features, "features", whole=True)]
    return simulate(theory, _draw(task, places, ridge, noise), repetitions=repetitions, seed=seed)


def _draw(task: SpectralTask, places: Sequence[tuple[int, float]], ridge: float, noise: float) -> Any:
    root, target = np.sqrt(task.eigenvalues.numpy()), np.sqrt(task.power.numpy())
    ridge, scale = as_number(ridge, "ridge"), math.sqrt(as_number(noise, "noise"))
    most = max(n for n, _ in places)

    def draw(rng: np.random.Generator) -> list[float]:
        signs = rng.choice([-1.0, 1.0], size=len(target))
        if task.pool is None:
            Z, held = rng.standard_normal((most, len(root))), np.zeros((0, len(root)))
        else:
            Z = _rotation(rng, task.pool)
            held = Z
        y = Z @ (signs * target) + scale * rng.standard_normal(len(Z))
        risks = []
        for n, k in places:
            mixing = np.eye(len(root)) if math.isinf(k) else rng.standard_normal((len(root), int(k))) / math.sqrt(k)
            F = root[:, None] * mixing  # eigendirections to features
            coefficients = F @ least_squares(Z[:n] @ F, y[:n], ridge)
            missed = coefficients - signs * target
            excess = (missed**2).sum() if task.pool is None else ((held[n:] @ missed) ** 2).mean()
            risks.append(excess + noise)
        return risks

    return draw


def _rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    """A rotation drawn from the Haar measure; its rows stand in random order, so that the first n are a random draw."""
    Q, R = np.linalg.qr(rng.standard_normal((size, size)))
    return Q * np.sign(np.diag(R))
