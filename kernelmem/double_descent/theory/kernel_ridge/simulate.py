"""Simulations of the eigenframework: Gaussian designs, and randomly rotated pools."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from kernelmem.core.checks import ArrayLike, as_count, as_number
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis
from kernelmem.double_descent.theory.curve import Simulation, least_squares, simulate
from kernelmem.double_descent.theory.kernel_ridge.curves import feature_curve, learning_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import SpectralTask


def simulate_learning(
    task: SpectralTask,
    samples: ArrayLike,
    *,
    ridge: float = 0.0,
    noise: float = 0.0,
    repetitions: int = 40,
    seed: int = 0,
) -> Simulation:
    """Draw training examples, fit kernel ridge regression and compare with :func:`learning_curve`.

    Population: examples have Gaussian eigenfunctions, x = Λ^½ g, and the test risk of a fit is computed without test
    examples. Pool: the kernel matrix is Q A Qᵀ and the targets are Q y with a random rotation Q; the examples that were not
    drawn are the test examples. The theory is a limit, but within one or two standard errors from some tens of examples.

    Cost: a decomposition (n, M) for each draw and n; for a pool also one of (N, N) for each draw.
    """
    theory = learning_curve(task, samples, ridge=ridge, noise=noise)
    settings = [(int(n), math.inf) for n in theory.axis]
    return simulate(theory, _make_draw(task, settings, ridge, noise), repetitions=repetitions, seed=seed)


def simulate_features(
    task: SpectralTask,
    features: ArrayLike,
    *,
    n: int,
    ridge: float = 0.0,
    noise: float = 0.0,
    repetitions: int = 40,
    seed: int = 0,
) -> Simulation:
    """Draw examples and k Gaussian random features, fit ridge regression and compare with :func:`feature_curve`.

    Data are those of :func:`simulate_learning`. The kernel is K = X G Gᵀ Xᵀ / k, where X (n, M) are the examples in the
    eigenbasis, scaled by √eigenvalue, and the entries of G (M, k) are standard normal.
    """
    theory = feature_curve(task, features, n=n, ridge=ridge, noise=noise)
    n = as_count(n, "n")
    settings = [(n, int(k)) for k in as_axis(features, "features", integer=True)]
    return simulate(theory, _make_draw(task, settings, ridge, noise), repetitions=repetitions, seed=seed)


def _make_draw(
    task: SpectralTask, settings: Sequence[tuple[int, float]], ridge: float, noise: float
) -> Callable[[np.random.Generator], list[float]]:
    """Return a function that maps a random generator to the test risks of one drawn data set, one per setting (n, k).

    n is the number of training examples and k the number of random features; infinity: the kernel itself.
    """
    sqrt_eigenvalues, target_magnitudes = np.sqrt(task.eigenvalues.numpy()), np.sqrt(task.power.numpy())
    ridge, sigma = as_number(ridge, "ridge"), math.sqrt(as_number(noise, "noise", maximum=MAX_VARIANCE))
    largest_n = max(n for n, _ in settings)

    def draw(rng: np.random.Generator) -> list[float]:
        """Return the test risks of fits to one random data set, one for each setting (n, k)."""
        beta = rng.choice([-1.0, 1.0], size=len(target_magnitudes)) * target_magnitudes
        is_population = task.pool is None
        Z = (
            rng.standard_normal((largest_n, len(sqrt_eigenvalues)))
            if is_population
            else _random_rotation(rng, len(sqrt_eigenvalues))
        )
        y = Z @ beta + sigma * rng.standard_normal(len(Z))
        risks = []
        for n, k in settings:
            G = (
                np.eye(len(sqrt_eigenvalues))
                if math.isinf(k)
                else rng.standard_normal((len(sqrt_eigenvalues), int(k))) / math.sqrt(k)
            )
            feature_map = sqrt_eigenvalues[:, None] * G  # maps eigendirections to features
            error = feature_map @ least_squares(Z[:n] @ feature_map, y[:n], ridge) - beta
            excess = (error**2).sum() if is_population else ((Z[n:] @ error) ** 2).mean()
            risks.append(excess + noise)
        return risks

    return draw


def _random_rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a random orthogonal matrix, (size, size), from the Haar measure.

    Its first n rows represent n random examples of a pool.
    """
    Q, R = np.linalg.qr(rng.standard_normal((size, size)))
    return Q * np.sign(np.diag(R))
