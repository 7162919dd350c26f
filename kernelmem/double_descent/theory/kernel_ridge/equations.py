"""Self-consistent equations of ridge regression on k random features of a kernel: population and finite pool."""

import math
from dataclasses import dataclass

import numpy as np

from kernelmem.core.errors import NumericalError
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, SpectralTask

BISECTIONS = 90  # bisections of log γ: its range is below 2^10, so that the last step is below rounding
BRACKET_STEPS = 600  # largest number of steps that widen the bracket of log γ


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """Learned fraction of each eigendirection, at G settings (Simon et al. 2023).

    Attributes:
        L: (G, M) L_i = λ_i / (λ_i + γ).
        c: (G,) (k - z) / (k - q), z = Σ L_i, q = Σ L_i²; 1 for the kernel itself, 0 for k < n without a ridge.
        z: (G,) Σ L_i.
        slack: (G,) n - z, number of unused degrees of freedom; δ/κ in a population.
    """

    L: np.ndarray
    c: np.ndarray
    z: np.ndarray
    slack: np.ndarray


@dataclass(frozen=True, eq=False)
class Risks:
    """Mean squared errors at G settings, (G,) each: ``test`` and ``train`` to noisy targets, ``clean`` to noiseless ones."""

    test: np.ndarray
    train: np.ndarray
    clean: np.ndarray


def solve_shrinkage(task: SpectralTask, n: np.ndarray, k: np.ndarray, ridge: np.ndarray) -> Shrinkage:
    """Solve for γ at each of G settings (n, k, ridge); k = inf is the kernel itself.

    With z = Σ λ_i/(λ_i + γ) and κ = γ (1 - z/k) (for a pool κ = μ, and eigenvalues are those of the pool's matrix)::

        population: n = z + δ/κ          pool of N examples: n = z + (δ/κ) (N - z)

    Both right sides decrease in γ. At δ = 0: z = min(n, k), or γ = 0 if that exceeds the number of eigenvalues.

    Raises:
        NumericalError: no root within the range of float64.
    """
    lam = task.eigenvalues.numpy()
    rank = int((lam > 0).sum())
    capacity = np.minimum(n, k)
    gamma_is_zero = (ridge == 0) & (capacity >= rank)
    gamma = np.zeros_like(n)
    if not gamma_is_zero.all():
        needs_solution = ~gamma_is_zero
        gamma[needs_solution] = _solve_gamma(task, n[needs_solution], k[needs_solution], ridge[needs_solution])
    L = np.divide(lam, lam + gamma[:, None], out=np.zeros((len(n), len(lam))), where=lam > 0)
    z = np.where(ridge == 0, np.minimum(capacity, rank), L.sum(1))
    q = (L * L).sum(1)
    has_features = np.isfinite(k)
    finite_k = np.where(has_features, k, 0.0)
    c = np.ones_like(n)
    np.divide(finite_k - z, finite_k - q, out=c, where=has_features & (finite_k > q))
    c[has_features & ((finite_k <= z) | (finite_k <= q))] = 0.0
    slack = n - z
    # n - z cancels if the ridge is small and n < k; 1 - z/k does not.
    use_ridge_formula = (ridge > 0) & (k > n)
    if use_ridge_formula.any():
        factor = 1.0 if task.pool is None else task.pool - z[use_ridge_formula]
        slack[use_ridge_formula] = (
            factor
            * ridge[use_ridge_formula]
            / (gamma[use_ridge_formula] * (1 - z[use_ridge_formula] / k[use_ridge_formula]))
        )
    return Shrinkage(L, c, z, slack)


def compute_risks(task: SpectralTask, shrinkage: Shrinkage, n: np.ndarray, noise: float | FlipNoise) -> Risks:
    """Compute the risks at G settings from the shrinkage; n (G,) are the numbers of training examples.

    The risks are infinite without a ridge if n equals the number of random features or the rank of the kernel.

    The formulas are in :func:`~kernelmem.double_descent.theory.kernel_ridge.curves.learning_curve` and
    :func:`~kernelmem.double_descent.theory.kernel_ridge.curves.feature_curve`.
    """
    flip_moments = noise if isinstance(noise, FlipNoise) else FlipNoise(1.0, noise)
    L, c, z, slack = shrinkage.L, shrinkage.c, shrinkage.z, shrinkage.slack
    v2 = task.power.numpy()
    bias = ((1 - L) * (1 - c[:, None] * L)) @ v2 * flip_moments.shrink**2
    cross_term = (1 - L) @ v2  # inner product of the residual with the clean target
    c_z_q = c * (L * (1 - L)).sum(1)  # c (z - q)
    variance = flip_moments.variance
    if task.pool is None:
        test = _ratio((bias + variance) * n, slack + c_z_q)
        train = _product((slack / n) ** 2, test)
    else:
        N = task.pool
        tau = N - z
        rho = slack / tau  # δ/μ
        denominator = slack + (1 - rho) * c_z_q
        df2 = z - c_z_q  # c q + (1 - c) z
        gain, slope = _ratio((1 - rho) * df2, denominator), _ratio(tau, denominator)
        tau2 = tau - c_z_q
        train_factor = _product(rho**2, slope)
        # Summed squared error on the held-out examples: contribution of the bias, then of the variance.
        held_out_sum = bias + _product(bias, gain) - _product(bias, train_factor)
        held_out_sum = held_out_sum + variance * (df2 - n + 2 * slack)
        held_out_sum = held_out_sum + _product(variance * tau2, gain - _product(train_factor, 1.0))
        test = held_out_sum / (N - n) + variance
        train = _product(train_factor, bias + variance * tau2) / n
        cross_term = cross_term * (1 - rho) / (N - n)
        v2 = v2 / N
    label_shrinkage = 1 - flip_moments.shrink
    clean = test - variance + label_shrinkage**2 * v2.sum() + 2 * label_shrinkage * flip_moments.shrink * cross_term
    return Risks(test, train, clean)


def _solve_gamma(task: SpectralTask, n: np.ndarray, k: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Return the root γ of the equation in :func:`solve_shrinkage`, (G,) float64, by bracketing and bisection of log γ.

    The G settings are numbers of examples n, of random features k (inf: the kernel itself) and ridges, (G,) each.

    Raises:
        NumericalError: there is no root within the range of float64.
    """
    lam = task.eigenvalues.numpy()
    lam = lam[lam > 0]
    capacity = np.minimum(n, k)

    def equation_excess(log_gamma: np.ndarray) -> np.ndarray:
        """Return z + ridge term − n at log γ, (G,), or z − min(n, k) without a ridge; both decrease in γ."""
        gamma = np.exp(log_gamma)
        z = (lam / (lam + gamma[:, None])).sum(1)
        z_below_k = z < k
        kappa = gamma * np.where(z_below_k, 1 - z / k, 1.0)
        factor = 1.0 if task.pool is None else task.pool - z
        return np.where(ridge == 0, z - capacity, np.where(z_below_k, z + factor * ridge / kappa - n, np.inf))

    initial_gamma = lam.sum() / capacity + ridge + (lam.max(initial=0.0) if len(lam) else 0.0)
    log_low = log_high = np.log(initial_gamma)
    step = math.log(4.0)
    for _ in range(BRACKET_STEPS):
        raise_high, lower_low = equation_excess(log_high) > 0, equation_excess(log_low) < 0
        if not raise_high.any() and not lower_low.any():
            break
        log_high, log_low, step = log_high + step * raise_high, log_low - step * lower_low, min(1.3 * step, 8.0)
    else:
        raise NumericalError(
            f"eigenvalues from {lam.min():.3g} to {lam.max():.3g} with ridge {ridge.min():.3g}",
            expected="a ridge and eigenvalues within the range of float64",
            hint="scale the kernel so that its largest eigenvalue is near 1, and the ridge with it",
        )
    for _ in range(BISECTIONS):
        log_middle = (log_low + log_high) / 2
        root_is_higher = equation_excess(log_middle) > 0
        log_low, log_high = (
            np.where(root_is_higher, log_middle, log_low),
            np.where(root_is_higher, log_high, log_middle),
        )
    return np.exp((log_low + log_high) / 2)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return numerator / denominator, elementwise; x / 0 is infinite for x > 0, and 0 / 0 is 0."""
    return np.divide(numerator, denominator, out=np.where(numerator > 0, np.inf, 0.0), where=denominator > 0)


def _product(left: np.ndarray | float, right: np.ndarray | float) -> np.ndarray:
    """Return left · right, elementwise with broadcasting; 0 times infinity is 0."""
    left, right = np.broadcast_arrays(np.asarray(left, float), np.asarray(right, float))
    return np.multiply(left, right, out=np.zeros(left.shape), where=(left != 0) & (right != 0))
