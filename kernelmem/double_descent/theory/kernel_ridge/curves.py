"""Learning curves of kernel ridge regression from the kernel's spectrum, of a population or of a pool."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.theory.curve import Curve
from kernelmem.double_descent.theory.kernel_ridge.equations import risks, shrinkage
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, SpectralTask

__all__ = ["feature_curve", "learnabilities", "learning_curve", "ridge_curve"]

KERNEL = "Simon, Dickens, Karkada, DeWeese 2021; Canatar, Bordelon, Pehlevan 2021; Jacot et al. 2020"
FEATURES = "Simon, Karkada, Ghosh, Belkin 2023; Defilippis, Loureiro, Misiakiewicz 2024"


def learning_curve(
    task: SpectralTask,
    samples: Any,
    *,
    ridge: float = 0.0,
    noise: float | FlipNoise = 0.0,
    n_features: float = math.inf,
) -> Curve:
    """Predict the test risk of kernel ridge, f = k (K + ridge I)⁻¹ y, for each number of training rows n.

    In a population, with κ from n = Σ L_i + δ/κ and L_i = λ_i / (λ_i + κ)::

        test = n / (n - Σ L_i²) · (Σ (1 - L_i)² v_i² + σ²),     train = (δ / (n κ))² test

    Of a pool of N rows, from which the n are drawn without replacement (eigenvalues a_i of the pool's matrix, target
    coefficients y_i), with μ from (μ - δ) Σ 1/(a_i + μ) = N - n, L_i = a_i/(a_i + μ), T_j = Σ (a_i + μ)^-j and
    D = T_1 - (μ - δ) T_2, m = (μ - δ) Σ L_i² / D, h = δ² T_1 / D::

        all rows:       Σ y_i² (μ² + m)/(a_i + μ)² + σ² Σ (a_i² + m)/(a_i + μ)²
        training rows:  h Σ y_i²/(a_i + μ)² + σ² (n - 2 δ T_1 + h T_2)

    are the summed squared distances to the mean target, and test is (all - training) / (N - n) + σ²: the error on rows of
    the pool that were held out. As N grows it becomes the first formula. With ``n_features`` = k the kernel is that of k
    random features (:func:`feature_curve`).

    On 1,797 digits with 20 % wrong labels (infinite tangent kernel of depth 2, ridge 0 and 0.1, n = 150 to 1,400) the pool
    equations were within 1 % of held-out rows, the plain ones 3 to 56 % high. Clean labels, no ridge and a smooth
    kernel together remain hard: there both are low by tens of percents.

    Args:
        task: eigenvalues and target power, from :func:`population_task` or :func:`pool_task`.
        samples: increasing whole numbers n >= 1; of a pool n < N.
        ridge: δ >= 0, added to the diagonal of the n x n kernel, in units of the kernel.
        noise: variance σ² of the targets summed over outputs, or :func:`flip_noise`.
        n_features: k, or infinity.

    Raises:
        InputError: samples out of range or not increasing, negative ridge or noise.
        NumericalError: the equation has no root in float64.

    Cost: O(G M), some 10 ms for 20 places and 1,000 eigenvalues.

    Source: Simon et al. 2021; Canatar et al. 2021; Jacot et al. 2020; for the pool, free compression of a deterministic
    matrix by a random projector.

    >>> from kernelmem.double_descent.theory.kernel_ridge.spectral_task import population_task
    >>> task = population_task([1.0] * 100, [0.01] * 100)
    >>> learning_curve(task, [50, 100, 200], noise=0.25).test.round(decimals=6).tolist()
    [1.0, inf, 0.5]
    """
    n = as_axis(samples, "samples", whole=True)
    k = np.full_like(n, _as_features(n_features))
    delta = np.full_like(n, as_number(ridge, "ridge"))
    threshold = None if ridge > 0 else min(float(k[0]), _rank(task))
    return _curve(task, "training rows n", n, n, k, delta, noise, threshold)


def feature_curve(
    task: SpectralTask, features: Any, *, n: int, ridge: float = 0.0, noise: float | FlipNoise = 0.0
) -> Curve:
    """Predict the test risk of ridge on k random features, K = Φ Φᵀ / k, for each k: the model-wise curve.

    Features are i.i.d. draws whose mean kernel has the task's spectrum. With z = Σ L_i, q = Σ L_i², L_i = λ_i/(λ_i + γ)
    and z + δ/κ = n, z + k κ/γ = k, c = (k - z)/(k - q)::

        test = n / (n - c q - (1 - c) z) · (Σ (1 - L_i)(1 - c L_i) v_i² + σ²),    train = (δ / (n κ))² test

    Without a ridge the peak is at k = n, where it is infinite. Of a pool the random matrix A^½ W A^½ (W Wishart, k degrees
    of freedom, A the pool's matrix) takes the place of A in the pool equations of :func:`learning_curve`; then
    (N - n) = (1 - δ/μ) Σ γ/(a_i + γ), μ = γ (1 - z/k), and the resolvent sums are

        μ T_1 = Σ (1 - L_i),   μ² T_2 = Σ (1 - L_i)(1 - c L_i),   μ² Σ y_i²/(a_i + μ)² -> Σ (1 - L_i)(1 - c L_i) y_i².

    On digits (n = 300 of 1,797, 20 % wrong labels, random Fourier features cos(s w·x + b), k = 20 to 2,000) it was within 5 %
    of simulation at s = 0.6 without a ridge (plain equations 10 %) and with a ridge of 0.05 (8 %). At s = 0.3, a smoother
    kernel, it was 22 % low at worst without a ridge (24 %), 3 % off with it (8 %).

    Arguments, errors and cost are those of :func:`learning_curve`, with ``features`` the axis and ``n`` one number.

    Source: Simon et al. 2023; Defilippis et al. 2024; Atanasov et al. 2024.
    """
    k = as_axis(features, "features", whole=True)
    rows = np.full_like(k, as_count(n, "n"))
    delta = np.full_like(k, as_number(ridge, "ridge"))
    reachable = ridge == 0 and _rank(task) >= rows[0]
    return _curve(task, "random features k", k, rows, k, delta, noise, float(rows[0]) if reachable else None)


def ridge_curve(
    task: SpectralTask, ridges: Any, *, n: int, noise: float | FlipNoise = 0.0, n_features: float = math.inf
) -> Curve:
    """Predict the test risk for each ridge >= 0, increasing; see :func:`learning_curve` for the rest."""
    delta = as_axis(ridges, "ridges", exclusive=False)
    rows = np.full_like(delta, as_count(n, "n"))
    k = np.full_like(delta, _as_features(n_features))
    return _curve(task, "ridge", delta, rows, k, delta, noise, None)


def learnabilities(task: SpectralTask, samples: Any, *, ridge: float = 0.0, n_features: float = math.inf) -> Tensor:
    """Return L_i = λ_i / (λ_i + γ), (G, M): the share of each eigendirection that n rows learn, on average.

    Their sum is at most n, and n itself without a ridge while n is below k and the number of eigenvalues. Errors are
    those of :func:`learning_curve`.

    Source: Simon et al. 2021.
    """
    n = as_axis(samples, "samples", whole=True)
    _check_pool(task, n)
    k, delta = np.full_like(n, _as_features(n_features)), np.full_like(n, as_number(ridge, "ridge"))
    return torch.from_numpy(shrinkage(task, n, k, delta).learned)


def _curve(
    task: SpectralTask,
    axis_name: str,
    axis: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    ridge: np.ndarray,
    noise: float | FlipNoise,
    threshold: float | None,
) -> Curve:
    noise = noise if isinstance(noise, FlipNoise) else as_number(noise, "noise")
    _check_pool(task, n)
    found = risks(task, shrinkage(task, n, k, ridge), n, noise)
    wide = bool(np.isinf(k).all())
    where = "" if task.pool is None else f", rows of a pool of {task.pool}"
    return Curve(
        ("kernel ridge" if wide else "ridge on random features") + where,
        axis_name,
        torch.from_numpy(axis),
        torch.from_numpy(found.test),
        noise.variance if isinstance(noise, FlipNoise) else noise,
        False,
        KERNEL if wide else FEATURES,
        torch.from_numpy(found.train),
        torch.from_numpy(found.clean),
        threshold,
    )


def _check_pool(task: SpectralTask, n: np.ndarray) -> None:
    if task.pool is not None and n.max() >= task.pool:
        raise InputError(
            f"{n.max():g} training rows of a pool of {task.pool}",
            expected="fewer training rows than the pool has, so that some are held out",
            hint="take fewer rows, or the kernel of more rows as the pool",
        )


def _as_features(n_features: float) -> float:
    return n_features if n_features == math.inf else float(as_count(n_features, "n_features"))


def _rank(task: SpectralTask) -> float:
    return float((task.eigenvalues > 0).sum())
