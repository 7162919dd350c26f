import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.threshold import crossing
from kernelmem.double_descent.sweeps.threshold_search import bisect

GRID = [4.0, 6, 8, 12, 16, 24, 32, 48, 64, 96]


def line(place: float, grid: list[float] = GRID) -> np.ndarray:
    """Training error that is 0.1 at ``place``, linear over the grid."""
    return np.clip(0.1 + (place - np.array(grid)) * 0.02, -5, 5)


@given(st.floats(4.01, 95.9), st.floats(0.001, 0.1))
def test_where_a_line_crosses(place: float, spread: float) -> None:
    errors = line(place) + spread * np.array([[-1.0], [0.0], [1.0]])
    found = crossing(GRID, errors, epsilon=0.1)
    assert found.value == pytest.approx(place, rel=1e-9)
    assert found.found
    reach = 4.302652729696142 * spread / math.sqrt(3) / 0.02  # Student's t of 2 degrees of freedom, over the slope
    assert found.low == pytest.approx(place - reach) or (found.low == -math.inf and place - reach <= 4.001)
    assert found.high == pytest.approx(place + reach) or (found.high == math.inf and place + reach >= 95.999)


@given(st.floats(4.01, 95.9))
def test_rising_is_falling_mirrored(place: float) -> None:
    errors = line(place) + 0.01 * np.array([[-1.0], [1.0], [0.5]])
    falling = crossing(GRID, errors)
    rising = crossing([-own for own in GRID[::-1]], errors[:, ::-1], direction="rising")
    assert (rising.value, rising.low, rising.high) == pytest.approx((-falling.value, -falling.high, -falling.low))
    assert rising.direction == "rising"


@pytest.mark.parametrize("direction", ["falling", "rising"])
def test_outside(direction: str) -> None:
    fits, fails = np.zeros((2, 3)), np.ones((2, 3))
    sides = ("below", "above") if direction == "falling" else ("above", "below")
    for errors, side in zip((fits, fails), sides, strict=True):
        found = crossing([1, 2, 3], errors, direction=direction)
        assert (found.outside, found.found) == (side, False)
        assert math.isnan(found.value)
    one = crossing([1, 2, 3], [[0.5, 0.2, 0.0]])
    assert (one.low, one.high) == (-math.inf, math.inf)  # one seed says nothing of the others
    assert one.value == 2.5


def test_the_last_crossing_counts() -> None:
    assert crossing([1, 2, 3, 4], [[0.5, 0.05, 0.3, 0.0]]).value == pytest.approx(3 + 0.2 / 0.3)


@given(st.floats(3.0, 110), st.booleans())
def test_bisection_finds_the_neighbors(place: float, rising: bool) -> None:
    asked: list[int] = []
    curve = line(place) if not rising else line(place)[::-1]
    grid = GRID if not rising else [100 - own for own in GRID[::-1]]

    def errors(index: int) -> list[float]:
        asked.append(index)
        return [curve[index] - 0.01, curve[index] + 0.01]

    found = bisect(errors, grid, direction="rising" if rising else "falling")
    whole = crossing(grid, [curve - 0.01, curve + 0.01], direction="rising" if rising else "falling")
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(len(grid) + 1))
    assert found.outside == whole.outside
    if found.found:
        assert found.value == pytest.approx(whole.value)


@pytest.mark.parametrize(
    ("axis", "errors", "epsilon"),
    [([2, 1], [[0, 1]], 0.1), ([1, 2], [[0, 1, 2]], 0.1), ([1, 2], [[0, math.nan]], 0.1), ([1, 2], [[0, 1]], 0.0)],
)
def test_refused(axis: list[float], errors: list[list[float]], epsilon: float) -> None:
    with pytest.raises(InputError):
        crossing(axis, errors, epsilon=epsilon)
