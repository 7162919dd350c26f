import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.peak import find_peak, mean_se, peak

HILL = 10 * np.exp(-(((np.arange(15) - 7) / 2.5) ** 2))
FALLING = np.linspace(4, 0, 15)


def simulated(mean: np.ndarray, *, seeds: int, runs: int, paired: float = 0.0, seed: int = 0) -> np.ndarray:
    """(runs, seeds, A): unit noise at each point, and noise that a seed has along its whole curve."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((runs, seeds, len(mean)))
    return mean + noise + paired * rng.standard_normal((runs, seeds, 1))


def naive(curves: np.ndarray) -> tuple[float, float]:
    left, top, _ = find_peak(curves.mean(0))
    differences = curves[:, top] - curves[:, left]
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(curves)))


def significant(values: list[tuple[float, float]], seeds: int) -> float:
    limit = t.ppf(0.95, seeds - 1)
    return float(np.mean([se > 0 and rise > limit * se for rise, se in values]))


@pytest.mark.parametrize("mean", [np.zeros(15), FALLING, FALLING / 4], ids=["flat", "falling", "nearly flat"])
@pytest.mark.parametrize("seeds", [4, 6, 9])
def test_no_rise_where_there_is_none(mean: np.ndarray, seeds: int) -> None:
    runs = 200
    curves = simulated(mean, seeds=seeds, runs=runs, paired=1.0)
    found = [peak(own) for own in curves]
    rises = np.array([own.rise for own in found])
    assert rises.mean() < 3 * rises.std() / math.sqrt(runs)  # not positive on average
    # 5 % are expected of an exact test; 0.05 + 3 binomial errors of 200 runs
    assert significant([(own.rise, own.rise_se) for own in found], seeds) < 0.1
    assert significant([naive(own) for own in curves], seeds) > 0.15  # what the same seeds pick is always a peak


CLEAR = np.where(np.arange(15) == 7, 10.0, 0.0) - np.eye(15)[2] * 8 - np.eye(15)[11] * 9


@pytest.mark.parametrize("paired", [0.0, 3.0])
@pytest.mark.parametrize("seeds", [4, 5, 8, 12])
def test_intervals_cover_a_clear_peak(seeds: int, paired: float) -> None:
    runs = 300
    found = [peak(own) for own in simulated(CLEAR, seeds=seeds, runs=runs, paired=paired)]
    for name, true in (("rise", 18.0), ("fall", 19.0)):
        values = np.array([(getattr(own, name), getattr(own, f"{name}_se")) for own in found])
        covered = np.mean([low <= true <= high for low, high in (getattr(own, f"{name}_interval") for own in found)])
        assert 0.9 < covered <= 0.99
        assert abs(values[:, 0].mean() - true) < 4 * values[:, 0].std() / math.sqrt(runs)
        # the standard error is the deviation over repetitions; pairing takes the seed's own level out of it
        assert values[:, 0].std() == pytest.approx(math.sqrt((values[:, 1] ** 2).mean()), rel=0.12)
        assert (values[:, 1] ** 2).mean() == pytest.approx(2 / seeds, rel=0.12)


@pytest.mark.soak
@pytest.mark.parametrize("seeds", [4, 5, 6, 8, 12])
def test_intervals_cover_in_many_runs(seeds: int) -> None:
    """At least 93 %; ± 2 standard errors covers 86 to 90 % at 4 to 6 seeds."""
    found = [peak(own) for own in simulated(CLEAR, seeds=seeds, runs=4000, seed=1)]
    for name, true in (("rise", 18.0), ("fall", 19.0)):
        covered = np.mean([low <= true <= high for low, high in (getattr(own, f"{name}_interval") for own in found)])
        assert 0.93 <= covered <= 0.98


def test_the_text_says_when_there_is_no_peak() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal((5, 15))
    for mean, verdict in ((CLEAR, "peak"), (FALLING, "no peak"), (FALLING[::-1], "no peak")):
        found = peak(mean + noise)
        assert found.verdict == verdict
        assert str(found).endswith(f"95 % intervals: {verdict}")
    unclear = peak(0.05 * CLEAR + 45 * noise)
    assert min(unclear.rise, unclear.fall) > 0
    assert unclear.verdict == "not distinguishable from no peak"
    low, high = unclear.rise_interval
    assert (low + high) / 2 == pytest.approx(unclear.rise)
    assert high - low == pytest.approx(2 * t.ppf(0.975, 4) * unclear.rise_se)
    frame = unclear.to_frame()
    assert (frame.rise_low.iloc[0], frame.fall_high.iloc[0]) == (low, unclear.fall_interval[1])


def test_a_broad_peak_is_found_and_its_rise_not_overstated() -> None:
    found = [peak(own, np.arange(15.0)) for own in simulated(HILL, seeds=6, runs=200)]
    assert abs(np.mean([own.axis_value for own in found]) - 7) < 0.2
    assert 9 < np.mean([own.rise for own in found]) <= 10.1
    assert all(own.picked[0] <= own.picked[1] for own in found)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12))
def test_prominence_by_its_definition(values: list[int]) -> None:
    mean = np.array(values, dtype=float)
    left, top, right = (int(own) for own in find_peak(mean))
    prominence = [min(mean[p] - mean[: p + 1].min(), mean[p] - mean[p:].min()) for p in range(len(mean))]
    best = max(prominence)
    assert prominence[top] == best
    assert mean[top] == max(m for m, own in zip(mean, prominence, strict=True) if own == best)
    assert left <= top <= right
    assert mean[left] == mean[: top + 1].min()
    assert mean[right] == mean[top:].min()


def test_a_start_above_the_peak_is_not_the_peak() -> None:
    curve = np.array([0.9, 0.2, 0.1, 0.4, 0.05])
    found = peak(np.stack([curve] * 4), [1, 2, 4, 8, 16])
    assert found.axis_value == 8
    assert (found.rise, found.fall) == (pytest.approx(0.3), pytest.approx(0.35))
    assert (found.height, found.height_se, found.seeds, found.picked) == (pytest.approx(0.4), 0, 4, (8, 8))


@given(st.integers(4, 11), st.integers(0, 1000))
def test_laws_of_shift_scale_and_order(seeds: int, seed: int) -> None:
    curves = np.random.default_rng(seed).standard_normal((seeds, 6)) + HILL[4:10]
    own = peak(curves)
    moved = peak(3 * curves + np.arange(seeds)[:, None])  # a level of each seed falls out of paired differences
    assert moved.index == own.index
    for name in ("rise", "rise_se", "fall", "fall_se"):
        assert getattr(moved, name) == pytest.approx(3 * getattr(own, name), rel=1e-9, abs=1e-12)
    mirrored = peak(curves[:, ::-1])
    if len({*own.picked}) == 1 and mirrored.index == 5 - own.index:
        assert (mirrored.rise, mirrored.fall) == (pytest.approx(own.fall), pytest.approx(own.rise))


@given(st.integers(4, 8).flatmap(lambda seeds: st.permutations(range(seeds))))
def test_the_order_of_few_seeds_does_not_matter(order: list[int]) -> None:
    curves = np.random.default_rng(1).standard_normal((len(order), 7))
    assert peak(curves[order]).rise == pytest.approx(peak(curves).rise, abs=1e-12)
    assert peak(curves[order]).fall_se == pytest.approx(peak(curves).fall_se, abs=1e-12)


def test_mean_and_standard_error() -> None:
    mean, se = mean_se([[1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_allclose(mean, [2, 2])
    np.testing.assert_allclose(se, [1, 0])  # s = √2, over √2
    assert np.isnan(mean_se([[1.0]])[1]).all()
    with pytest.raises(InputError, match="one curve per seed"):
        mean_se([1.0, 2.0])


@pytest.mark.parametrize(
    ("curves", "axis"),
    [(np.zeros((3, 5)), None), (np.zeros(5), None), (np.zeros((4, 0)), None), (np.zeros((4, 3)), [1])],
)
def test_refused(curves: np.ndarray, axis: list[int] | None) -> None:
    with pytest.raises(InputError):
        peak(curves, axis)
    with pytest.raises(InputError, match="NaN"):
        peak(np.full((4, 3), np.nan))
