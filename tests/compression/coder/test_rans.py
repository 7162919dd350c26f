"""Streams decode, are at most 40 bits longer than the ideal length and never shorter; damaged ones are refused or differ."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.compression.coder import (
    SymbolDecoder,
    decode_symbols,
    encode_symbols,
    frequencies,
    ideal_bits,
    stream_bits,
)
from kernelmem.core import FileCorruptError, InputError
from tests.damaged_files import damaged_bytes
from tests.profiles import examples


@st.composite
def coded(draw, max_length=60):
    """Symbols (n,) and frequencies (n, C) of probabilities that are smooth, equal, zero or one, or denormal."""
    n, n_classes = draw(st.integers(0, max_length)), draw(st.sampled_from([1, 2, 3, 10, 300, 5000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p = rng.dirichlet(np.full(n_classes, draw(st.sampled_from([1e-3, 0.1, 1.0, 100.0]))), size=n)
    kind = draw(st.sampled_from(["smooth", "equal", "one-hot", "denormal"]))
    if kind == "equal":
        p = np.full((n, n_classes), 1 / n_classes)
    elif kind != "smooth":
        p = np.full((n, n_classes), 0.0 if kind == "one-hot" else 5e-324)
        p[np.arange(n), rng.integers(0, n_classes, n)] = 1.0
    symbols = draw(st.sampled_from(["random", "likely", "first", "last"]))
    if symbols == "random":
        y = rng.integers(0, n_classes, n)
    else:
        y = p.argmax(1) if symbols == "likely" else np.full(n, 0 if symbols == "first" else n_classes - 1)
    return y, frequencies(p, draw(st.sampled_from([0.0, 0.3, 255 / 256])))


@examples(2)
@given(coded())
def test_streams_decode_and_their_length_is_the_ideal_one_and_at_most_40_bits(case):
    y, table = case
    data = encode_symbols(y, table)
    np.testing.assert_array_equal(decode_symbols(data, table), y)
    overhead = stream_bits(len(data), len(y)) - ideal_bits(y, table).sum()
    assert -1e-9 <= overhead <= 40
    if len(y) and 1 < table.shape[1] <= 4096:
        assert 23 < overhead < 33
    decoder = SymbolDecoder(data)
    assert [decoder.decode(row) for row in table] == y.tolist()
    decoder.close()


@pytest.mark.parametrize(("table", "symbol"), [([32769, 32767], 0), ([20000, 45536], 1), ([65535, 1], 0)])
def test_deviations_cancel_in_long_streams_of_one_symbol(table, symbol):
    n = 50_000
    rows, y = np.tile(table, (n, 1)), np.full(n, symbol)
    overhead = 8 * len(encode_symbols(y, rows)) - ideal_bits(y, rows).sum()
    assert 24 - 1e-5 * 16 * n < overhead < 32 + 1e-5 * 16 * n


def test_no_stream_is_the_beginning_of_another():
    table = np.tile([20000, 40000, 5536], (5, 1))
    streams = [encode_symbols(y, table) for y in np.ndindex(3, 3, 3, 3, 3)]
    assert len(set(streams)) == 3**5
    for data in streams:
        assert sum(data.startswith(other) for other in streams) == 1
    kraft = sum(2.0 ** -stream_bits(len(data), 5) for data in streams)
    assert kraft <= 2.0**-20  # every stream costs at least 24 bits more than it has to


@examples(2)
@given(st.data())
def test_damaged_streams_are_refused_or_decode_to_other_symbols(data):
    y, table = data.draw(coded())
    stream = encode_symbols(y, table)
    damaged = data.draw(damaged_bytes(stream))
    try:
        decoded = decode_symbols(damaged, table)
    except FileCorruptError:
        return
    assert damaged == stream or not np.array_equal(decoded, y)
    assert encode_symbols(decoded, table) == damaged


def test_damage_is_noticed_by_the_end_state():
    """24 bits of the end state are known, so that hardly any damaged stream passes."""
    rng = np.random.default_rng(0)
    table = frequencies(rng.dirichlet(np.ones(10), size=50))
    stream = encode_symbols(rng.integers(0, 10, 50), table)
    for place in range(len(stream)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(FileCorruptError):
            decode_symbols(bytes(damaged), table)
    for other in (b"", stream[:-1], stream + b"\0", stream[1:]):
        with pytest.raises(FileCorruptError):
            decode_symbols(other, table)
    wrong = table[::-1].copy()
    with pytest.raises(FileCorruptError):
        decode_symbols(stream, wrong)


def test_one_possible_symbol_and_no_symbol_cost_nothing():
    assert (
        encode_symbols([0, 0, 0], frequencies(np.ones((3, 1))))
        == b""
        == encode_symbols([], frequencies(np.ones((0, 4))))
    )
    assert decode_symbols(b"", frequencies(np.ones((3, 1)))).tolist() == [0, 0, 0]
    with pytest.raises(FileCorruptError):
        decode_symbols(b"\0", frequencies(np.ones((3, 1))))


@pytest.mark.parametrize(
    "table",
    [
        [[1, 1]],
        np.array([[0, 2**16]]),
        np.array([[-1, 2**16 + 1]]),
        np.array([[2**62, 2**62, 2**62, 2**62 + 2**16 - 2**62]]),
        np.array([[0.5, 0.5]]),
        np.zeros((3, 0), np.int64),
    ],
)
def test_other_tables_are_refused(table):
    for use in (lambda: encode_symbols([0], table), lambda: decode_symbols(b"", table)):
        with pytest.raises(InputError):
            use()


def test_symbols_outside_the_alphabet_and_two_precisions_are_refused():
    table = frequencies([[0.5, 0.5]])
    for y in ([2], [-1], [0.5], [0, 1], ["a"]):
        with pytest.raises(InputError):
            encode_symbols(y, table)
    decoder = SymbolDecoder(encode_symbols([1], table))
    assert decoder.decode(table[0]) == 1
    with pytest.raises(InputError, match="one precision"):
        decoder.decode(frequencies(np.full((1, 5000), 1 / 5000))[0])
