import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.training_sets import draw_for_seed

Y = torch.arange(60) % 5


@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from(["samples", "rates"]), st.integers(0, 100))
def test_exactly_the_share_and_always_wrong(n: int, rate: float, nested: str, seed: int) -> None:
    own = draw_for_seed(Y, seed, nested=nested).training_set(n, rate)
    assert int(own.flipped.sum()) == round(rate * n)
    assert torch.equal(own.labels != own.true_labels, own.flipped)
    assert torch.equal(own.true_labels, Y[own.indices])
    assert len(own.indices.unique()) == n


@given(st.integers(1, 59), st.integers(1, 59), st.floats(0, 1), st.integers(0, 20))
def test_fewer_rows_are_the_first_of_more(a: int, b: int, rate: float, seed: int) -> None:
    few, many = (draw_for_seed(Y, seed).training_set(n, rate) for n in sorted((a, b)))
    for name in ("indices", "labels", "flipped"):
        assert torch.equal(getattr(few, name), getattr(many, name)[: len(few.indices)])


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60), st.integers(0, 20))
def test_flips_of_a_lower_rate_are_flips_of_a_higher(a: float, b: float, n: int, seed: int) -> None:
    low, high = (draw_for_seed(Y, seed, nested="rates").training_set(n, rate) for rate in sorted((a, b)))
    assert bool((high.flipped | ~low.flipped).all())
    assert torch.equal(low.labels[low.flipped], high.labels[low.flipped])


def test_seeds_differ_and_are_the_same_again() -> None:
    one, again, other = draw_for_seed(Y, 0), draw_for_seed(Y, 0), draw_for_seed(Y, 1)
    assert torch.equal(one.order, again.order)
    assert not torch.equal(one.order, other.order)
    assert one.init_seed == again.init_seed != other.init_seed
    assert one.init_seed != one.order_seed
    # every row is flipped by some seed, and about as often as the others
    often = sum(
        torch.zeros(60).index_add(0, o.indices, o.flipped.float())
        for o in (draw_for_seed(Y, s).training_set(60, 0.3) for s in range(200))
    )
    assert 30 < float(often.min()) <= float(often.max()) < 95


@pytest.mark.parametrize(("n", "rate"), [(0, 0.1), (61, 0.1), (5, -0.1), (5, 1.5)])
def test_refused(n: int, rate: float) -> None:
    with pytest.raises(InputError):
        draw_for_seed(Y, 0).training_set(n, rate)
