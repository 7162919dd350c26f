"""Laws of the pass that compares a matrix with its transpose."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import symmetry as module
from kernelmem.core.symmetry import measure_asymmetry


def seen(A: torch.Tensor, into: torch.Tensor | None = None, read: int | None = None):
    return measure_asymmetry(lambda rows, columns: A[rows, columns], len(A), into, read_size=read)


def drawn(n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=[3, 256])
def tile(request, monkeypatch):
    monkeypatch.setattr(module, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("read", [None, 2, 5, 6, 99])
def test_gap_place_and_mean_are_those_of_the_definition(tile, n, dtype, read):
    A = drawn(n, n, dtype)
    mean = torch.full((n, n), torch.nan, dtype=torch.float64)
    found = seen(A, mean, read)
    wide = A.to(torch.float64)
    gap = (wide - wide.T).abs()
    assert found.gap == pytest.approx(float(gap.max()), rel=1e-14)
    assert gap[found.gap_index] == gap.max()
    assert found.gap_index[0] >= found.gap_index[1]
    torch.testing.assert_close(mean, (wide + wide.T) / 2, rtol=1e-15, atol=0)
    assert torch.equal(mean, mean.T)
    assert (
        float(wide.abs().max())
        <= found.largest * (1 + 1e-15)
        <= (float(wide.abs().max()) + found.gap / 2) * (1 + 1e-14)
    )
    assert found.not_finite is None


@given(n=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_symmetric_matrix_has_no_gap_and_may_be_its_own_mean(n, seed):
    A = drawn(n, seed)
    A = A + A.T
    before = A.clone()
    found = seen(A, A)
    assert found.gap == 0
    assert found.largest == float(before.abs().max())
    assert torch.equal(A, before)


@given(n=st.integers(1, 9), seed=st.integers(0, 99), read=st.sampled_from([None, 2, 5]))
def test_a_matrix_may_be_made_symmetric_in_place(n, seed, read):
    A = drawn(n, seed)
    want = (A + A.T) / 2
    seen(A, A, read)
    torch.testing.assert_close(A, want, rtol=1e-15, atol=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_entry_that_is_not_finite_is_found(tile, value):
    for row in range(5):
        for column in range(5):
            A = torch.eye(5, dtype=torch.float64)
            A[row, column] = value
            assert seen(A).not_finite == (row, column)


def test_a_pair_of_equal_infinities_is_found(tile):
    A = torch.eye(4, dtype=torch.float64)
    A[1, 3] = A[3, 1] = torch.inf
    assert seen(A).not_finite in ((1, 3), (3, 1))


def test_entries_near_the_largest_number_do_not_overflow(tile):
    A = torch.full((4, 4), 1.7e308, dtype=torch.float64)
    mean = torch.empty_like(A)
    found = seen(A, mean)
    assert (found.gap, found.largest, found.not_finite) == (0.0, 1.7e308, None)
    assert torch.equal(mean, A)
