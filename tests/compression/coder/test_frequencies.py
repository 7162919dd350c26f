"""Frequencies: positive integers of one sum, near the probabilities; the margin bounds what rounding may change."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kernelmem.compression.coder import frequencies, ideal_bits, margin, precision
from kernelmem.core import InputError
from tests.profiles import examples

SHIFTS = [0.0, 1 / 256, 0.5, 255 / 256]


@st.composite
def distributions(draw):
    n_classes = draw(st.sampled_from([1, 2, 3, 10, 200, 4096, 5000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p = rng.dirichlet(np.full(n_classes, draw(st.sampled_from([1e-4, 0.1, 1.0, 1e4]))), size=4)
    p[0] = 1 / n_classes
    p[1] = np.eye(n_classes)[rng.integers(n_classes)]
    return p.astype(draw(st.sampled_from([np.float32, np.float64])))


@examples(1)
@given(distributions(), st.sampled_from(SHIFTS))
def test_frequencies_are_positive_and_sum_to_a_power_of_two(p, shift):
    n_classes = p.shape[1]
    total = 2 ** precision(n_classes)
    table = frequencies(p, shift)
    assert table.dtype == np.int64
    assert (table >= 1).all()
    assert (table.sum(1) == total).all()
    bits = ideal_bits(p.argmax(1), table)
    with np.errstate(divide="ignore"):
        assert (bits <= -np.log2(p.max(1).astype(np.float64)) + 4 * n_classes / total + 1e-4).all()
    others = np.sort(table, 1)[:, :-1]  # without the largest, which takes the rest
    expected = np.sort(p.astype(np.float64) * (total - 2 * n_classes), 1)[:, :-1]
    np.testing.assert_allclose(others, expected + shift, atol=1 + 1e-9 * total)


@examples(1)
@given(distributions(), st.sampled_from(SHIFTS), st.integers(0, 2**32))
def test_probabilities_within_the_margin_have_the_same_frequencies(p, shift, seed):
    p = p.astype(np.float64)
    n_classes = p.shape[1]
    assume(n_classes > 1)
    scale = 2 ** precision(n_classes) - 2 * n_classes
    allowed = margin(p, shift) / scale
    moved = np.clip(p + 0.9 * allowed * np.random.default_rng(seed).uniform(-1, 1, p.shape), 0, None)
    assume(bool(np.abs(moved.sum(1) - 1).max() < 1e-6))
    np.testing.assert_array_equal(frequencies(moved, shift), frequencies(p, shift))


def test_margin_is_the_distance_to_an_integer_and_a_shift_moves_it():
    p = np.array([[0.25, 0.75]])
    assert margin(p) == 0.0
    assert margin(p, 0.25) == 0.25
    scale = 2**16 - 4
    assert margin(np.array([[100.1 / scale, 1 - 100.1 / scale]])) == pytest.approx(0.1, abs=1e-9)
    assert margin(np.ones((3, 1))) == np.inf


def test_the_rest_goes_to_the_smallest_index_of_equal_frequencies():
    assert frequencies(np.full((1, 3), 1 / 3)).tolist() == [[21848, 21844, 21844]]
    almost = np.array([[0.375 - 1e-12, 0.375 + 1e-12, 0.25]])  # integers decide, not which float is larger
    assert frequencies(almost).tolist() == frequencies(almost[:, [1, 0, 2]]).tolist()


@pytest.mark.parametrize(
    "p",
    [
        [[0.5, 0.6]],
        [[1.5, -0.5]],
        [[np.nan, 1.0]],
        [[np.inf, 0.0]],
        [[0.0, 0.0]],
        [0.5, 0.5],
        np.zeros((2, 0)),
        [["a", "b"]],
        [[0.5 + 0j, 0.5]],
        None,
    ],
)
def test_what_is_not_a_distribution_is_refused(p):
    for function in (frequencies, margin):
        with pytest.raises(InputError):
            function(p)


def test_shifts_outside_are_refused_and_tensors_and_float32_are_taken():
    for shift in (-0.1, 1.0, np.nan, "a"):
        with pytest.raises(InputError):
            frequencies([[0.5, 0.5]], shift)
    p = torch.softmax(torch.randn(100, 50, generator=torch.Generator().manual_seed(0)), 1)
    assert (frequencies(p).sum(1) == 2**16).all()
