"""The equations of ridge regression on k random features of a kernel with n rows: population and pool, one solver."""

import math
from dataclasses import dataclass

import numpy as np

from kernelmem.core.errors import NumericalError
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import FlipNoise, SpectralTask

__all__ = ["Risks", "Shrinkage", "risks", "shrinkage"]

STEPS = 90  # bisections of a logarithm: its range is below 2^10, so that the last step is below rounding


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """How much of each eigendirection is learned, at G settings.

    Attributes:
        learned: (G, M) L_i = λ_i / (λ_i + γ).
        mix: (G,) c = (k - z) / (k - q), z = Σ L_i, q = Σ L_i²; 1 for the kernel itself, 0 for k < n without a ridge.
        z: (G,) sum of the L_i.
        slack: (G,) n - z: rows that are not used up. It is δ/κ in a population.
    """

    learned: np.ndarray
    mix: np.ndarray
    z: np.ndarray
    slack: np.ndarray


@dataclass(frozen=True, eq=False)
class Risks:
    """Test (noisy targets), train (noisy targets) and clean mean squared error, each (G,)."""

    test: np.ndarray
    train: np.ndarray
    clean: np.ndarray


def shrinkage(task: SpectralTask, n: np.ndarray, k: np.ndarray, ridge: np.ndarray) -> Shrinkage:
    """Solve for γ at each of G settings (n, k, ridge), k = inf for the kernel itself.

    With z = Σ λ_i/(λ_i + γ) and κ = γ (1 - z/k) (in a pool κ = μ, eigenvalues are those of the pool's matrix)::

        population: n = z + δ/κ          pool of N rows: n = z + (δ/κ) (N - z)

    Both right sides fall as γ grows. At δ = 0: z = min(n, k), or γ = 0 where that exceeds the number of eigenvalues.

    Raises:
        NumericalError: no root within the range of float64.
    """
    lam = task.eigenvalues.numpy()
    rank = int((lam > 0).sum())
    least = np.minimum(n, k)
    easy = (ridge == 0) & (least >= rank)
    gamma = np.zeros_like(n)
    if not easy.all():
        gamma[~easy] = _root(task, n[~easy], k[~easy], ridge[~easy])
    L = np.divide(lam, lam + gamma[:, None], out=np.zeros((len(n), len(lam))), where=lam > 0)
    z = np.where(ridge == 0, np.minimum(least, rank), L.sum(1))
    q = (L * L).sum(1)
    finite = np.isfinite(k)
    wide = np.where(finite, k, 0.0)
    mix = np.ones_like(n)
    np.divide(wide - z, wide - q, out=mix, where=finite & (wide > q))
    mix[finite & ((wide <= z) | (wide <= q))] = 0.0
    slack = n - z
    # n - z cancels where the ridge is small and n < k; there 1 - z/k does not.
    steady = (ridge > 0) & (k > n)
    if steady.any():
        weight = 1.0 if task.pool is None else task.pool - z[steady]
        slack[steady] = weight * ridge[steady] / (gamma[steady] * (1 - z[steady] / k[steady]))
    return Shrinkage(L, mix, z, slack)


def risks(task: SpectralTask, found: Shrinkage, n: np.ndarray, noise: float | FlipNoise) -> Risks:
    """Compute the risks from the shrinkage; infinite where n = k (or n = rank) without a ridge."""
    flips = noise if isinstance(noise, FlipNoise) else FlipNoise(1.0, noise)
    L, c, rest = found.learned, found.mix, 1 - found.learned
    y2 = task.power.numpy()
    bias = (rest * (1 - c[:, None] * L)) @ y2 * flips.shrink**2
    cross = rest @ y2
    turning = c * (L * rest).sum(1)  # c (z - q)
    freedom = found.z - turning  # c q + (1 - c) z
    variance, slack = flips.variance, found.slack
    if task.pool is None:
        own = slack + turning
        test = _ratio((bias + variance) * n, own)
        train = _times((slack / n) ** 2, test)
    else:
        N = task.pool
        tau = N - found.z
        rho = slack / tau
        den = slack + (1 - rho) * turning
        gain, slope = _ratio((1 - rho) * freedom, den), _ratio(tau, den)
        tau2 = tau - turning
        share = _times(rho**2, slope)
        held = bias + _times(bias, gain) - _times(bias, share)
        held = held + variance * (freedom - n + 2 * slack) + _times(variance * tau2, gain - _times(share, 1.0))
        test = held / (N - n) + variance
        train = _times(share, bias + variance * tau2) / n
        cross = cross * (1 - rho) / (N - n)
        y2 = y2 / N
    lost = 1 - flips.shrink
    clean = test - variance + lost**2 * y2.sum() + 2 * lost * flips.shrink * cross
    return Risks(test, train, clean)


def _root(task: SpectralTask, n: np.ndarray, k: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    lam = task.eigenvalues.numpy()
    lam = lam[lam > 0]
    least = np.minimum(n, k)

    def surplus(log_gamma: np.ndarray) -> np.ndarray:
        gamma = np.exp(log_gamma)
        z = (lam / (lam + gamma[:, None])).sum(1)
        inside = z < k
        kappa = gamma * np.where(inside, 1 - z / k, 1.0)
        weight = 1.0 if task.pool is None else task.pool - z
        return np.where(ridge == 0, z - least, np.where(inside, z + weight * ridge / kappa - n, np.inf))

    top = lam.sum() / least + ridge + (lam.max(initial=0.0) if len(lam) else 0.0)
    low = high = np.log(top)
    step = math.log(4.0)
    for _ in range(600):
        above, below = surplus(high) > 0, surplus(low) < 0
        if not above.any() and not below.any():
            break
        high, low, step = high + step * above, low - step * below, min(1.3 * step, 8.0)
    else:
        raise NumericalError(
            f"eigenvalues from {lam.min():.3g} to {lam.max():.3g} with ridge {ridge.min():.3g}",
            expected="a ridge and eigenvalues within the range of float64",
            hint="scale the kernel so that its largest eigenvalue is near 1, and the ridge with it",
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        up = surplus(middle) > 0
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    return np.exp((low + high) / 2)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Top / bottom, infinite where only the bottom is 0, and 0 where both are."""
    return np.divide(top, bottom, out=np.where(top > 0, np.inf, 0.0), where=bottom > 0)


def _times(left: np.ndarray | float, right: np.ndarray | float) -> np.ndarray:
    """Left x right, 0 where either is 0: what a factor removes does not come back because the other is infinite."""
    left, right = np.broadcast_arrays(np.asarray(left, float), np.asarray(right, float))
    return np.multiply(left, right, out=np.zeros(left.shape), where=(left != 0) & (right != 0))
