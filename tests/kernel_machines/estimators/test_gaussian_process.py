"""Tests of the Gaussian process: noise variance by evidence, samples from the posterior."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process.kernels import RBF

from kernelmem.core import InputError, NumericalError
from kernelmem.kernel_machines import KernelMachineGP


def noisy_functions(n=60, noise=0.3, C=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (n, 1))
    K = RBF(1.0)(x) + 1e-10 * np.eye(n)
    return x, np.linalg.cholesky(K) @ rng.standard_normal((n, C)) + noise * rng.standard_normal((n, C))


@pytest.mark.parametrize("C", [1, 3])
def test_no_other_ridge_has_more_evidence(C):
    x, y = noisy_functions(C=C)
    best = KernelMachineGP(gamma=0.5, ridge="evidence").fit(x, y)
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = KernelMachineGP(gamma=0.5, ridge=best.ridge_ * factor).fit(x, y)
        assert other.ridge_ == best.ridge_ * factor
        assert other.log_evidence_ < best.log_evidence_
    assert clone(best).ridge == "evidence"


def test_the_noise_variance_is_found():
    """Average over data sets: the maximum of the evidence is near the variance that the data were drawn with."""
    found = [
        KernelMachineGP(gamma=0.5, ridge="evidence").fit(*noisy_functions(n=120, seed=seed)).ridge_ for seed in range(8)
    ]
    assert np.exp(np.mean(np.log(found))) == pytest.approx(0.09, rel=0.25)


def test_targets_without_noise_and_of_zero_take_the_smallest_ridge():
    x = np.linspace(-2, 2, 12)[:, None]
    assert KernelMachineGP(gamma=0.5, ridge="evidence").fit(x, np.sin(x)).ridge_ < 1e-6
    zero = KernelMachineGP(gamma=0.5, ridge="evidence").fit(x, np.zeros(12))
    assert np.isfinite(zero.predict(x)).all()


def test_other_names_and_faulty_kernels_are_refused():
    x, y = noisy_functions(n=10)
    with pytest.raises(InputError, match="ridge"):
        KernelMachineGP(ridge="loo").fit(x, y)
    K = RBF(1.0)(x)
    K[0, 1] = np.nan
    with pytest.raises((InputError, NumericalError, ValueError)):
        KernelMachineGP(kernel="precomputed", ridge="evidence").fit(K, y)


@pytest.mark.parametrize("C", [None, 2])
def test_samples_have_the_moments_of_the_posterior(C):
    x, y = noisy_functions(n=30, C=C or 1)
    process = KernelMachineGP(gamma=0.5, ridge=0.1).fit(x, y[:, 0] if C is None else y)
    rows, count = np.array([[-2.5], [0.0], [0.1], [8.0]]), 20_000
    mean, covariance = process.predict(rows, return_cov=True)
    samples = process.sample_y(rows, count, random_state=1)
    assert samples.shape == ((4, count) if C is None else (4, C, count))
    each = samples[:, None] if C is None else samples
    for c in range(each.shape[1]):
        error = 5 * np.sqrt(np.diag(covariance) / count)
        assert (np.abs(each[:, c].mean(1) - mean.reshape(4, -1)[:, c]) <= error).all()
        assert np.abs(np.cov(each[:, c]) - covariance).max() <= 5 * np.sqrt(2 / count)
    assert np.array_equal(samples, process.sample_y(rows, count, random_state=1))
    with pytest.raises(InputError, match="n_samples"):
        process.sample_y(rows, 0)
