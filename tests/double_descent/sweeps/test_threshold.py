import math

import numpy as np
import pytest
from hypothesis import assume, given
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
    below = [own for own in GRID if own < place - reach - 1e-6]
    above = [own for own in GRID if own > place + reach + 1e-6]
    assume(min(abs(own - end) for own in GRID for end in (place - reach, place + reach)) > 1e-5)
    assert found.low == (below[-1] if below else -math.inf)
    assert found.high == (above[0] if above else math.inf)


def coverage(grid: list[float], deviation: float, seeds: int, draws: int, seed: int) -> float:
    """Share of intervals with the true threshold of an error that falls from .9 to 0, on networks of every width."""
    rng = np.random.default_rng(seed)
    widths = np.array(grid)
    mean = 0.9 * np.exp(-math.log(9) * (widths / 22) ** 1.5)  # 0.1 at width 22
    errors = mean + deviation * rng.standard_normal((draws, seeds, len(grid)))
    found = [crossing(grid, own) for own in errors]
    return float(np.mean([own.low <= 22 <= own.high for own in found]))


OCTAVES = [4.0, 8.0, 16.0, 32.0, 64.0]
DENSE = [float(width) for width in range(4, 65)]


@pytest.mark.parametrize("deviation", [0.001, 0.1])
@pytest.mark.parametrize("grid", [OCTAVES, DENSE], ids=["octaves", "dense"])
def test_the_interval_covers_the_threshold_on_any_grid(grid: list[float], deviation: float) -> None:
    """Crossings of mean ± t se, interpolated, cover 0 to 11 % on octaves, and too few on a dense grid with noise."""
    assert coverage(grid, deviation, seeds=4, draws=200, seed=0) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)


@pytest.mark.soak
@pytest.mark.parametrize("seeds", [2, 4, 6])
@pytest.mark.parametrize("deviation", [0.001, 0.03, 0.1])
@pytest.mark.parametrize("grid", [OCTAVES, DENSE], ids=["octaves", "dense"])
def test_the_interval_covers_the_threshold_in_many_draws(grid: list[float], deviation: float, seeds: int) -> None:
    assert coverage(grid, deviation, seeds, draws=4000, seed=1) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4000)


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
        assert (found.low, found.high) == ((-math.inf, 1) if side == "below" else (3, math.inf))
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
