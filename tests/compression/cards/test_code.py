"""Code in two parts: round trips for any numbers and labels, lengths of the parts, probabilities that are rounded alike."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.compression.cards import code as codes
from kernelmem.compression.cards.code import Choices, decode_labels, encode, powers_of_two, read_network
from kernelmem.compression.cards.network import Architecture
from tests.profiles import examples


def decoded(data, z):
    code, decoder = read_network(data)
    network = code.network(z.shape[1]) if code.has_network else None
    return code, decode_labels(code, decoder, network, z)


@examples(1)
@given(
    n=st.integers(1, 120), C=st.sampled_from([2, 3, 10, 31, 32, 200]), d=st.integers(1, 20), spread=st.integers(0, 15),
    agreement=st.floats(0, 1), seed=st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1)),
)  # fmt: skip
def test_labels_and_numbers_come_back(n, C, d, spread, agreement, seed):
    rng = np.random.default_rng(seed)
    architecture = Architecture(3, 4, C, d, seed)
    z, numbers = rng.integers(-300, 300, (n, 3)).astype(float), rng.integers(-spread, spread + 1, d)
    network = codes.build(architecture, numbers)
    labels = np.where(rng.random(n) < agreement, network.logits(z).argmax(1), rng.integers(0, C, n))
    code = encode(architecture, numbers, labels, z)
    again, back = decoded(code.data, z)
    assert np.array_equal(back, labels)
    assert again.bits == code.bits == 8 * len(code.data)
    assert code.bits <= math.ceil(n * math.log2(C) * 1.001) + 16 + 48  # what uniform probabilities need
    if code.has_network:
        assert np.array_equal(again.numbers, numbers)
        assert (again.seed, again.width, again.dimensions, again.n_classes) == (seed, 4, d, C)
        assert 0 < code.network_bits < code.bits - code.header_bits
    with pytest.raises(km.FileCorruptError):
        decoded(code.data[:-1], z)
    with pytest.raises(km.FileCorruptError):
        decoded(code.data + b"\0", z)


def test_a_network_that_predicts_pays_and_one_that_does_not_is_left_out():
    rng = np.random.default_rng(0)
    architecture, numbers = Architecture(3, 8, 4, 10, 1), rng.integers(-3, 4, 10)
    z = rng.integers(-300, 300, (800, 3)).astype(float)
    labels = codes.build(architecture, numbers).logits(z).argmax(1)
    assert encode(architecture, numbers, labels, z).has_network
    code = encode(architecture, numbers, rng.integers(0, 4, 800), z)
    assert not code.has_network
    assert 1600 <= code.bits <= 1600 + 16 + 40


def test_as_many_classes_as_the_header_can_name():
    architecture, z = Architecture(1, 2, 2048, 3, 0), np.arange(40.0)[:, None]
    labels = np.arange(40) * 51
    code = encode(architecture, np.array([1, -2, 3]), labels, z)
    assert code.n_classes == 2048
    assert np.array_equal(decoded(code.data, z)[1], labels)


@given(st.integers(0, 41 * 256))
def test_powers_of_two_are_rounded_down_exactly(t):
    value = int(powers_of_two(np.array([float(t)]))[0])
    table = Fraction(int(powers_of_two(np.array([float(t % 256)]))[0]))
    assert value == math.floor(table / 2 ** (t // 256))
    # value^256 <= 2^(40 * 256 - t) < (value + 1)^256, where nothing was shifted away
    if t < 256:
        assert value**256 <= 2 ** (40 * 256 - t) < (value + 1) ** 256


def test_the_choices_are_the_best_of_the_grid():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(60, 3)) * 2.0**20, rng.integers(0, 3, 60)
    logits = np.rint(logits)
    numbers = rng.integers(-4, 5, 30)
    best = codes.best_choices(numbers, logits, 20, labels)

    def length(choices):
        return -np.log2(codes.label_probabilities(logits, 20, choices)[np.arange(60), labels]).sum()

    lengths = [length(Choices(0, t, f)) for t in range(64) for f in range(64)]
    assert length(best) <= min(lengths) + 1e-3
    p = codes.label_probabilities(logits, 20, best)
    assert p.sum(1) == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()
