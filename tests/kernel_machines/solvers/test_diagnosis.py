"""Tests of the diagnosis: NaN, asymmetry, limits of the eigenvalue rule, duplicate rows."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import kernelmem.kernel_machines.solvers.diagnosis as module
from kernelmem.core.errors import NumericalError
from kernelmem.kernel_machines.solvers.diagnosis import diagnose, duplicate_rows, inspect_kernel, require_kernel
from kernelmem.kernel_machines.solvers.linear_system import as_system
from kernelmem.kernel_machines.solvers.solution import Code
from kernelmem.testing.kernels import gaussian_kernel, kernel_with_spectrum

EPS32 = np.finfo(np.float32).eps
RNG = np.random.default_rng(0)
K = gaussian_kernel(RNG.standard_normal((40, 3)))


def zero_sum(n: int, values: np.ndarray, along_ones: float) -> np.ndarray:
    """A kernel with these eigenvalues on zero-sum vectors, and one more along the ones."""
    Q = np.linalg.qr(np.column_stack([np.ones(n), RNG.standard_normal((n, n - 1))]))[0]
    K = (Q * np.concatenate([[along_ones], values])) @ Q.T
    return (K + K.T) / 2


@pytest.mark.parametrize("tile", [256, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 35), (35, 3), (39, 39)])
def test_values_that_are_not_finite_are_found_at_their_place(tile, value, place, monkeypatch):
    monkeypatch.setattr("kernelmem.core.symmetry.TILE", tile)
    bad = K.copy()
    bad[place] = value
    found = inspect_kernel(as_system(bad))
    assert found is not None
    assert found.code is Code.not_finite
    assert f"row {place[0]}, column {place[1]}" in found.detail


@pytest.mark.parametrize("tile", [256, 7])
def test_asymmetry_is_found_beyond_the_rounding_of_float32(tile, monkeypatch):
    monkeypatch.setattr("kernelmem.core.symmetry.TILE", tile)
    assert inspect_kernel(as_system(K)) is None
    assert inspect_kernel(as_system(K.astype(np.float32))) is None
    for place in [(3, 35), (35, 3)]:
        for share, bad in [(0.5e-6, False), (2e-6, True)]:
            near = 50 * K
            near[place] += share * np.abs(near).max()
            found = inspect_kernel(as_system(near))
            assert (found is not None) == bad
            if found is not None:
                assert found.code is Code.asymmetric
                assert "(35, 3)" in found.detail


def test_large_finite_values_are_no_fault():
    assert inspect_kernel(as_system(np.full((3, 3), 1e308))) is None
    assert inspect_kernel(as_system(torch.full((3, 3), 7, dtype=torch.int64))) is None


def test_operators_are_compared_with_their_transpose():
    assert inspect_kernel(as_system(aslinearoperator(K))) is None
    lopsided = K + np.triu(np.ones_like(K), 1)
    found = inspect_kernel(as_system(aslinearoperator(lopsided)))
    assert found is not None
    assert found.code is Code.asymmetric
    broken = LinearOperator((4, 4), matvec=lambda v: v * np.nan, matmat=lambda v: v * np.nan, dtype=np.float64)
    found = inspect_kernel(as_system(broken))
    assert found is not None
    assert found.code is Code.not_finite


@pytest.mark.parametrize("n", [10, 50])
def test_the_edge_of_the_rule_for_real_kernels(n):
    values = np.linspace(0.1, 1.0, n - 1)
    for factor, code in [(0.5, Code.singular), (2.0, Code.indefinite)]:
        values[0] = -factor * n * EPS32
        assert diagnose(as_system(zero_sum(n, values, 0.5))).code is code


@pytest.mark.parametrize("n", [10, 50])
def test_the_edge_of_the_rule_for_integers(n):
    for least, code in [(-0.8 * n, Code.singular), (-1.5 * n, Code.indefinite)]:
        values = np.linspace(10.0, 1e5, n - 1)
        values[0] = least
        assert diagnose(as_system(np.round(zero_sum(n, values, 5e4)).astype(np.int64))).code is code
        real = diagnose(as_system(np.round(zero_sum(n, values, 5e4)).astype(np.float64)))
        assert real.code is Code.indefinite


def test_positive_on_zero_sum_vectors_alone_is_its_own_code():
    values = np.linspace(0.1, 1.0, 19)
    for along, code in [(-1.0, "conditionally_positive"), (-1e-7, "singular"), (1.0, "singular")]:
        found = diagnose(as_system(zero_sum(20, values, along)))
        assert found.code == code
        assert found.smallest_eigenvalue == pytest.approx(min(along, 0.1), rel=1e-6)
    # The figure that the rounding is measured by is that of zero-sum vectors: a large constant hides no negative one.
    values[0] = -1e-3
    assert diagnose(as_system(zero_sum(20, values, 1e6))).code is Code.indefinite


def test_duplicate_rows_are_named_in_groups():
    rows = RNG.standard_normal((12, 3))
    rows[7], rows[9], rows[11] = rows[2], rows[2], rows[0]
    for dtype in (np.float64, np.float32):
        kernel = gaussian_kernel(rows).astype(dtype)
        assert duplicate_rows(as_system(kernel)) == [(0, 11), (2, 7, 9)]
    assert "duplicate rows (0, 11), (2, 7, 9)" in diagnose(as_system(gaussian_kernel(rows))).detail
    assert duplicate_rows(as_system(K)) == []
    near = rows.copy()
    near[11] += 1e-4
    assert duplicate_rows(as_system(gaussian_kernel(near))) == [(2, 7, 9)]
    many = module.describe_duplicates([(i, i + 1) for i in range(0, 10, 2)])
    assert "(4, 5) and 2 more groups" in many
    assert "0, 1, 2, 3, 4, ...)" in module.describe_duplicates([tuple(range(9))])


def test_kernels_of_low_rank_pass_and_indefinite_ones_do_not():
    phi = RNG.standard_normal((30, 4))
    require_kernel(phi @ phi.T)
    require_kernel(phi @ phi.T - 100.0)  # positive on zero-sum vectors
    require_kernel(np.zeros((3, 3)))
    with pytest.raises(NumericalError, match="negative"):
        require_kernel(kernel_with_spectrum(np.concatenate([np.ones(20), [-0.1, -0.1]]), RNG))
    with pytest.raises(NumericalError, match="symmetric"):
        require_kernel(np.triu(np.ones((3, 3))))
