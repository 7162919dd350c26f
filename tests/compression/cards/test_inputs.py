"""Inputs on a grid: the same for rows in any order and of any scale, and exact where inputs are on it already."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernelmem.compression.cards.inputs import FRACTION_BITS, InputGrid, input_grid, input_sha256

ROWS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 30), st.integers(1, 4)),
    elements=st.floats(-1e140, 1e140, allow_subnormal=True),
)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_grid_does_not_depend_on_the_order_of_rows(x, source):
    order = source.sample(range(len(x)), len(x))
    grid, shuffled = input_grid(x), input_grid(x[order])
    assert np.array_equal(grid.exponents, shuffled.exponents)
    assert np.array_equal(grid.centers, shuffled.centers)
    z = grid.apply(x)
    assert np.array_equal(z[order], shuffled.apply(x[order]))
    assert np.array_equal(z, np.rint(z))
    assert np.abs(z).max() <= 8 << FRACTION_BITS
    assert grid.bits > 0


@given(hnp.arrays(np.float64, (20, 3), elements=st.floats(-8, 8, width=16)), st.integers(-100, 100))
def test_powers_of_two_change_the_scale_only(x, exponent):
    """All features scaled alike; a constant feature alone has no scale."""
    if x.max() > x.min():
        assert np.array_equal(input_grid(x).apply(x), input_grid(x * 2.0**exponent).apply(x * 2.0**exponent))


def test_pixels_share_one_scale_and_measurements_do_not():
    pixels = np.arange(160).reshape(10, 16) * 7 % 17 / 16
    grid = input_grid(pixels)
    assert grid.exponents.shape == (1,)
    scaled = np.ldexp(grid.apply(pixels), grid.exponents[0] - FRACTION_BITS)
    assert np.array_equal(scaled - scaled[0, 0], pixels - pixels[0, 0])  # nothing is rounded
    measurements = pixels * np.array([1.0, 1e3] + [1.0] * 14)
    assert input_grid(measurements).exponents.shape == (16,)
    assert np.abs(np.diff(np.ptp(input_grid(measurements).apply(measurements), axis=0)[:2])) < 1 << FRACTION_BITS + 1


def test_outliers_are_clipped_and_constants_are_zero():
    x = np.zeros((40, 2))
    x[:, 0] = np.arange(40)
    x[0, 0] = 1e12
    assert input_grid(x).apply(x)[0, 0] == 8 << FRACTION_BITS
    assert not input_grid(np.full((5, 2), 7.0)).apply(np.full((5, 2), 7.0)).any()


def test_the_code_of_a_grid_is_a_prefix_code_and_pays_for_every_feature():
    values = np.arange(-3000, 3001)
    grids = [InputGrid(np.array([0]), np.array([value])) for value in values]
    assert sum(2.0**-grid.bits for grid in grids) <= 2.0**-13  # a bit for the kind, 12 for the exponent
    one, two = InputGrid(np.array([3]), np.array([-5])), InputGrid(np.array([3, 3]), np.array([-5, -5]))
    assert two.bits - 1 == 2 * (one.bits - 1)


def test_hash_of_rows():
    x = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert input_sha256(x) == input_sha256(np.array([[-0.0, 1.0], [2.0, 3.0]])) == input_sha256(x.astype(np.float32))
    assert input_sha256(x) != input_sha256(x[::-1])
    assert input_sha256(x) != input_sha256(x.reshape(1, 4))


@pytest.mark.parametrize("value", [0.0, 1e-320, 3.25, -1e15])
def test_one_row_is_near_its_center(value):
    assert abs(input_grid(np.array([[value]])).apply(np.array([[value]]))) <= 1 << FRACTION_BITS - 4
