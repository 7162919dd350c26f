"""Learning curves of kernel ridge regression and random features from the spectrum of a kernel (eigenframework)."""

import math

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, check_instance
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import MAX_VARIANCE, as_axis
from kernelmem.double_descent.theory.curve import Curve
from kernelmem.double_descent.theory.kernel_ridge.equations import compute_risks, solve_shrinkage
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, SpectralTask

KERNEL_SOURCE = "Simon, Dickens, Karkada, DeWeese 2021; Canatar, Bordelon, Pehlevan 2021; Jacot et al. 2020"
FEATURES_SOURCE = "Simon, Karkada, Ghosh, Belkin 2023; Defilippis, Loureiro, Misiakiewicz 2024"


def learning_curve(
    task: SpectralTask,
    samples: ArrayLike,
    *,
    ridge: float = 0.0,
    noise: float | FlipNoise = 0.0,
    n_features: float = math.inf,
) -> Curve:
    """Predict the test risk of kernel ridge regression, f = k (K + ridge I)⁻¹ y, for each number of training examples n.

    For a population, with κ from n = Σ L_i + δ/κ and L_i = λ_i / (λ_i + κ)::

        test = n / (n - Σ L_i²) · (Σ (1 - L_i)² v_i² + σ²),     train = (δ / (n κ))² test

    For a pool of N examples, from which n are drawn without replacement (eigenvalues a_i of the pool's matrix, target
    coefficients y_i), with μ from (μ - δ) Σ 1/(a_i + μ) = N - n, L_i = a_i/(a_i + μ), T_j = Σ (a_i + μ)^-j and
    D = T_1 - (μ - δ) T_2, m = (μ - δ) Σ L_i² / D, h = δ² T_1 / D::

        all examples:       Σ y_i² (μ² + m)/(a_i + μ)² + σ² Σ (a_i² + m)/(a_i + μ)²
        training examples:  h Σ y_i²/(a_i + μ)² + σ² (n - 2 δ T_1 + h T_2)

    are the summed squared distances to the mean target, and test is (all - training) / (N - n) + σ², the error on the
    held-out examples of the pool. As N grows it tends to the first formula. With ``n_features`` = k the kernel is that of
    k random features (:func:`feature_curve`).

    Accuracy on 1,797 digits with 20 % wrong labels (infinite tangent kernel of depth 2, ridge 0 and 0.1, n = 150 to
    1,400): the pool equations were within 1 % of held-out examples, the population equations 3 to 56 % too high. With
    clean labels, no ridge and a smooth kernel both are too low by tens of percents.

    Args:
        task: eigenvalues and target power, from :func:`population_task` or :func:`pool_task`.
        samples: increasing whole numbers n >= 1; n < N for a pool.
        ridge: δ >= 0, added to the diagonal of the n x n kernel, in units of the kernel.
        noise: variance σ² of the targets summed over outputs, or :func:`flip_noise`.
        n_features: number of random features k; infinity: the kernel itself.

    Raises:
        InputError: samples are out of range or do not increase, or ridge or noise is negative.
        NumericalError: the equation has no root within the range of float64.

    Cost: O(G M), about 10 ms for 20 values and 1,000 eigenvalues.

    Source: Simon et al. 2021; Canatar et al. 2021; Jacot et al. 2020; pool: free compression of a deterministic matrix by a
    random projector, derived here.

    >>> from kernelmem.double_descent.theory import population_task
    >>> task = population_task([1.0] * 100, [0.01] * 100)
    >>> learning_curve(task, [50, 100, 200], noise=0.25).test.round(decimals=6).tolist()
    [1.0, inf, 0.5]
    """
    n = as_axis(samples, "samples", integer=True)
    k = np.full_like(n, _as_n_features(n_features))
    delta = np.full_like(n, as_number(ridge, "ridge"))
    threshold = None if ridge > 0 else min(float(k[0]), _kernel_rank(task))
    return _solve_curve(task, "training examples n", n, (n, k, delta), noise, threshold)


def feature_curve(
    task: SpectralTask, features: ArrayLike, *, n: int, ridge: float = 0.0, noise: float | FlipNoise = 0.0
) -> Curve:
    """Predict the test risk of ridge regression on k random features, K = Φ Φᵀ / k, for each k (model-wise curve).

    Features are i.i.d. draws whose mean kernel has the spectrum of the task. With z = Σ L_i, q = Σ L_i²,
    L_i = λ_i/(λ_i + γ) and z + δ/κ = n, z + k κ/γ = k, c = (k - z)/(k - q)::

        test = n / (n - c q - (1 - c) z) · (Σ (1 - L_i)(1 - c L_i) v_i² + σ²),    train = (δ / (n κ))² test

    Without a ridge the peak is at k = n, where it is infinite. For a pool the random matrix A^½ W A^½ (W Wishart with k
    degrees of freedom, A the pool's matrix) replaces A in the pool equations of :func:`learning_curve`; then
    (N - n) = (1 - δ/μ) Σ γ/(a_i + γ), μ = γ (1 - z/k), and the resolvent sums are

        μ T_1 = Σ (1 - L_i),   μ² T_2 = Σ (1 - L_i)(1 - c L_i),   μ² Σ y_i²/(a_i + μ)² -> Σ (1 - L_i)(1 - c L_i) y_i².

    Accuracy on digits (n = 300 of 1,797, 20 % wrong labels, random Fourier features cos(s w·x + b), k = 20 to 2,000): within
    5 % of simulation at s = 0.6 without a ridge and with a ridge of 0.05 (population equations 10 % and 8 %); at s = 0.3,
    a smoother kernel, at worst 22 % too low without a ridge (24 %), 3 % off with it (8 %).

    Args:
        task: eigenvalues and target power.
        features: increasing whole numbers k >= 1.
        n: number of training examples; n < N for a pool.
        ridge: δ >= 0, added to the diagonal of the n x n kernel.
        noise: variance σ² of the targets summed over outputs, or :func:`flip_noise`.

    Raises:
        InputError, NumericalError: as :func:`learning_curve`.

    Cost: as :func:`learning_curve`.

    Source: Simon et al. 2023; Defilippis et al. 2024; Atanasov et al. 2024.
    """
    k = as_axis(features, "features", integer=True)
    samples = np.full_like(k, as_count(n, "n"))
    delta = np.full_like(k, as_number(ridge, "ridge"))
    threshold = float(samples[0]) if ridge == 0 and _kernel_rank(task) >= samples[0] else None
    return _solve_curve(task, "random features k", k, (samples, k, delta), noise, threshold)


def ridge_curve(
    task: SpectralTask, ridges: ArrayLike, *, n: int, noise: float | FlipNoise = 0.0, n_features: float = math.inf
) -> Curve:
    """Predict the test risk for each ridge >= 0, increasing; otherwise as :func:`learning_curve`."""
    delta = as_axis(ridges, "ridges", exclusive=False)
    samples = np.full_like(delta, as_count(n, "n"))
    k = np.full_like(delta, _as_n_features(n_features))
    return _solve_curve(task, "ridge", delta, (samples, k, delta), noise, None)


def learnabilities(
    task: SpectralTask, samples: ArrayLike, *, ridge: float = 0.0, n_features: float = math.inf
) -> Tensor:
    """Return L_i = λ_i / (λ_i + γ), (G, M): the mean fraction of each eigendirection learned from n examples.

    Their sum is at most n, and equal to n without a ridge if n is below k and the number of eigenvalues. Errors as
    :func:`learning_curve`.

    Source: Simon et al. 2021.
    """
    n = as_axis(samples, "samples", integer=True)
    _check_pool_size(task, n)
    k, delta = np.full_like(n, _as_n_features(n_features)), np.full_like(n, as_number(ridge, "ridge"))
    return torch.from_numpy(solve_shrinkage(task, n, k, delta).L)


def _solve_curve(
    task: SpectralTask,
    axis_name: str,
    axis: np.ndarray,
    settings: tuple[np.ndarray, np.ndarray, np.ndarray],
    noise: float | FlipNoise,
    threshold: float | None,
) -> Curve:
    """Return the predicted curve at G values of the axis, by solving for the risks at each of them.

    ``settings`` are three arrays (G,): numbers of training examples n, numbers of random features k (inf: the kernel
    itself) and ridges. ``threshold`` is the interpolation threshold that the curve stores.
    """
    noise = noise if isinstance(noise, FlipNoise) else as_number(noise, "noise", maximum=MAX_VARIANCE)
    n, k, ridge = settings
    _check_pool_size(task, n)
    risks = compute_risks(task, solve_shrinkage(task, n, k, ridge), n, noise)
    is_kernel = bool(np.isinf(k).all())
    name = "kernel ridge regression" if is_kernel else "ridge regression on random features"
    return Curve(
        name=name if task.pool is None else f"{name}, pool of {task.pool} examples",
        axis_name=axis_name,
        axis=torch.from_numpy(axis),
        test=torch.from_numpy(risks.test),
        noise=noise.variance if isinstance(noise, FlipNoise) else noise,
        exact=False,
        source=KERNEL_SOURCE if is_kernel else FEATURES_SOURCE,
        train=torch.from_numpy(risks.train),
        clean=torch.from_numpy(risks.clean),
        threshold=threshold,
    )


def _check_pool_size(task: SpectralTask, n: np.ndarray) -> None:
    """Check that the pool of the task, if it has one, has more examples than the numbers ``n`` of training examples.

    Raises:
        InputError: a number of training examples is at least the size of the pool.
    """
    check_instance(task, "task", SpectralTask, hint="pass population_task(...) or pool_task(...)")
    if task.pool is not None and n.max() >= task.pool:
        raise InputError(
            f"{n.max():g} training examples from a pool of {task.pool}",
            expected="fewer training examples than the pool has, so that some are held out",
            hint="use fewer training examples, or the kernel of a larger pool",
        )


def _as_n_features(n_features: float) -> float:
    return (
        math.inf
        if isinstance(n_features, float) and n_features == math.inf
        else float(as_count(n_features, "n_features", maximum=2**53))
    )


def _kernel_rank(task: SpectralTask) -> float:
    check_instance(task, "task", SpectralTask, hint="pass population_task(...) or pool_task(...)")
    return float((task.eigenvalues > 0).sum())
