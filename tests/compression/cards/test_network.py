"""Exact network: whole numbers in any order of sums, equal to Python's integers, refused where they would be rounded."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.compression.cards.network import Architecture, Network, build
from tests.profiles import examples

ARCHITECTURES = st.builds(
    Architecture,
    n_inputs=st.integers(1, 6),
    width=st.integers(1, 5),
    n_classes=st.integers(2, 4),
    dimensions=st.integers(1, 8),
    seed=st.integers(0, 2**63 - 1),
)


@examples(1)
@given(ARCHITECTURES, st.integers(0, 2**32 - 1))
def test_outputs_are_those_of_integer_arithmetic_in_any_order(architecture, seed):
    rng = np.random.default_rng(seed)
    numbers = rng.integers(-15, 16, architecture.dimensions)
    network = build(architecture, numbers)
    assert network.is_exact
    z = rng.integers(-2048, 2049, (4, architecture.n_inputs)).astype(float)
    outputs = network.logits(z)
    for row, output in zip(z, outputs, strict=True):
        column = [*map(int, row), 256]
        hidden = [
            max(0, sum(a * int(b) for a, b in zip(column, weights, strict=True))) for weights in network.first.T
        ] + [1 << 18]
        # weights of the outputs are multiples of a power of two that output_bits accounts for
        expected = [sum(a * int(b) for a, b in zip(hidden, weights, strict=True)) for weights in network.second.T]
        assert expected == output.tolist()
    order = rng.permutation(architecture.width)
    reordered = Network(network.first[:, order], network.second[[*order, -1]], network.output_bits)
    assert np.array_equal(reordered.logits(z), outputs)


def test_large_weights_are_not_exact():
    network = build(Architecture(3, 4, 2, 5, 0), np.ones(5))
    assert network.is_exact
    assert not replace(network, second=network.second * 2.0**40).is_exact
    assert not replace(network, first=network.first * 2.0**40).is_exact


@pytest.mark.parametrize("place", [0, 1])
def test_the_largest_sums_of_an_exact_network_are_below_2_53(place):
    """One hidden unit, whose input or bias has the largest value: 2^11 for inputs, 2^8 for the bias."""
    first, second = np.zeros((2, 1)), np.array([[2.0**20], [0.0]])
    first[place] = 2.0**21
    network = Network(first, second, 0)
    assert replace(network, second=second * 2).is_exact is False  # 2^11 2^21 2^21
    assert place == 1 or float(network.logits(np.array([[2.0**11]]))[0, 0]) == 2.0**52
    assert network.is_exact


def test_random_numbers_are_balanced_and_depend_on_the_seed():
    architecture = Architecture(64, 64, 10, 20, 7)
    signs = architecture.signs().astype(float)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    n = signs.shape[1]
    gram = signs @ signs.T / n
    assert np.abs(gram - np.eye(20)).max() < 5 / np.sqrt(n)  # five standard deviations
    initial = architecture.initial() / 1024
    assert initial.std() == pytest.approx(np.sqrt(2 / 64), rel=0.05)
    assert abs(initial.mean()) < 5 * np.sqrt(2 / 64) / np.sqrt(initial.size)
    assert not np.array_equal(signs, replace(architecture, seed=8).signs())


def test_directions_that_do_not_fit_into_memory_are_refused():
    with pytest.raises(km.InputError, match="fewer dimensions"):
        Architecture(200_000, 64, 10, 150, 0)
