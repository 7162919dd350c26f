"""Laws of adjusted p-values: definitions, order, error rates under the null hypothesis."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.statistics import benjamini_hochberg, holm
from tests.profiles import examples

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def steps_down(p, alpha):
    """Holm's procedure as it is stated: reject the smallest while p_(i) <= alpha / (k - i + 1)."""
    rejected = np.zeros(len(p), dtype=bool)
    for i, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - i) > alpha:
            break
        rejected[index] = True
    return rejected


def steps_up(p, alpha):
    """The procedure of Benjamini and Hochberg: reject up to the largest i with p_(i) <= i alpha / k."""
    ordered = np.sort(p)
    passing = np.flatnonzero(ordered * (len(p) / np.arange(1, len(p) + 1)) <= alpha)
    return p <= ordered[passing[-1]] if len(passing) else np.zeros(len(p), dtype=bool)


@examples(2)
@given(P_VALUES, st.floats(0.001, 0.999))
def test_adjusted_values_are_the_procedures(values, alpha):
    p = np.array(values)
    adjusted = np.concatenate([holm(p), benjamini_hochberg(p)])
    assume(np.abs(adjusted - alpha).min() > 1e-12)  # at equality rounding decides
    assert np.array_equal(holm(p).numpy() <= alpha, steps_down(p, alpha))
    assert np.array_equal(benjamini_hochberg(p).numpy() <= alpha, steps_up(p, alpha))


@examples(1)
@given(P_VALUES, st.randoms())
def test_order_and_bounds(values, random):
    p = torch.tensor(values, dtype=torch.float64)
    order = random.sample(range(len(p)), len(p))
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        assert bool((adjusted >= p - 1e-15).all())
        assert float(adjusted.max()) <= 1
        assert torch.equal(adjust(p[order]), adjusted[order])
    assert bool((holm(p) >= benjamini_hochberg(p) - 1e-15).all())


def test_family_wise_error_is_at_most_nominal():
    p = np.random.default_rng(0).random((2000, 20))
    false = np.mean([float(holm(row).min()) <= 0.05 for row in p])
    assert false == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / len(p)))


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [float("nan")], [[0.1]], "0.1", None])
def test_bad_arguments_are_refused(adjust, values):
    with pytest.raises(InputError, match="p_values"):
        adjust(values)
