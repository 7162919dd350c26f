"""The interval of a log-determinant against the determinant itself."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.solvers.log_determinant import log_determinant
from kernelmem.testing.kernels import of_rows, of_spectrum

RNG = np.random.default_rng(0)
K = of_rows(RNG.standard_normal((60, 2)))


def exact(K, ridge):
    return float(np.linalg.slogdet(K + ridge * np.eye(len(K)))[1])


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("steps", [2, 5, 15, 60])
def test_the_quadratures_bracket_the_exact_trace(ridge, steps):
    found = log_determinant(K, ridge, probes=60, steps=steps, seed=0)
    assert found.se == 0
    assert found.low <= exact(K, ridge) <= found.high
    assert found.high - found.low == pytest.approx(found.quadrature_gap + 2 * found.rounding)
    assert found.rounding < 1e-7
    if steps < 5:
        assert found.quadrature_gap > 1e-2
    if steps == 60:
        assert found.value == pytest.approx(exact(K, ridge), rel=1e-9)
        assert found.quadrature_gap < 1e-6


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_interval_covers_as_often_as_it_says(ridge):
    found = [log_determinant(K, ridge, probes=20, seed=seed) for seed in range(40)]
    covered = sum(one.low <= exact(K, ridge) <= one.high for one in found)
    assert covered >= 33
    values = np.array([one.value for one in found])
    assert values.std(ddof=1) == pytest.approx(np.mean([one.se for one in found]), rel=0.4)
    assert abs(values.mean() - exact(K, ridge)) < 4 * values.std() / 40**0.5
    # Not by being wide: few steps widen it by the quadrature, more probes narrow it.
    assert log_determinant(K, ridge, probes=20, steps=3, seed=0).quadrature_gap > found[0].quadrature_gap


def test_products_are_enough_and_the_seed_decides():
    a = log_determinant(K, 0.1, seed=3)
    b = log_determinant(aslinearoperator(K), 0.1, seed=3)
    assert a.value == pytest.approx(b.value, rel=1e-12)
    assert log_determinant(K, 0.1, seed=3) == a
    assert log_determinant(K, 0.1, seed=4) != a


def test_few_distinct_eigenvalues_end_early():
    rng = np.random.default_rng(0)
    low = of_spectrum(np.repeat([0.0, 2.0], 10), rng)
    found = log_determinant(low, 0.5, probes=20, steps=15, seed=0)
    assert found.value == pytest.approx(10 * np.log(0.5) + 10 * np.log(2.5), rel=1e-9)
    zero = log_determinant(torch.zeros(5, 5), 0.5, probes=2, seed=0)
    assert zero.value == pytest.approx(5 * np.log(0.5))
    assert zero.se == pytest.approx(0, abs=1e-12)


def test_negative_eigenvalues_are_refused():
    with pytest.raises(NumericalError, match="positive semidefinite"):
        log_determinant(of_spectrum(np.linspace(-0.5, 1, 20), RNG), 1.0, seed=0)


@pytest.mark.parametrize("arguments", [{"ridge": 0.0}, {"ridge": np.nan}, {"probes": 1}, {"steps": 0}, {"seed": -1}])
def test_arguments_are_checked(arguments):
    given = {"ridge": 0.1, "seed": 0} | arguments
    with pytest.raises(InputError):
        log_determinant(K, given.pop("ridge"), **given)
