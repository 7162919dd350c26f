"""Streams of bytes from symbols and their frequencies, by asymmetric numeral systems (rANS; Duda 2013).

A state x holds what was encoded: a symbol of frequency f out of M = 2**P multiplies it by about M / f, and what exceeds the
range [L, 256 L), L = 256 M, leaves as bytes. The encoder starts at x = L with the last symbol, writes its final state and
then its bytes backwards; the decoder undoes every step and must arrive at x = L with no byte left.

The state never falls below L, so that the decoder knows from what it has read where the stream ends: the streams of n
symbols are a prefix code, and no length has to be stored. (A coder that starts at x = 1 has the defect that M / f is
far from the factor by which small states grow: there, a thousand symbols of the first class out of ten equally
probable ones take one byte.)

The factor deviates from M / f by up to M / x <= 1/256, with a sign that depends on the place of the symbol's interval in
0..M-1. Half of the symbols, by a hash of their place in the stream, have their intervals in reverse order, so that the
deviations cancel: at P = 16 the stream is between 24 and 32 bits longer than the ideal length, plus or minus 1e-5 of it.
"""

from bisect import bisect_right

import numpy as np

from kernelmem.compression.coder.frequencies import precision
from kernelmem.core import FileCorruptError, InputError
from kernelmem.core.checks import ArrayLike, as_labels

CHUNK = 2**18  # entries of the tables that are lists of Python integers at a time


def encode_symbols(symbols: ArrayLike, frequencies: np.ndarray) -> bytes:
    """Return the stream of n symbols, between 24 and 32 bits longer than ``ideal_bits(...).sum()`` at P = 16.

    It is empty if there is no symbol or only one possible symbol. Cost: about 0.5 µs per symbol, after tables of n C.

    Args:
        symbols: (n,) whole numbers in 0..C−1.
        frequencies: (n, C) from :func:`~kernelmem.compression.coder.frequencies`.

    Raises:
        InputError: symbols outside the alphabet, or frequencies that are not positive integers with the sum 2**P.
    """
    check_frequencies(frequencies)
    n, n_symbols = frequencies.shape
    labels = as_labels(symbols, "symbols", n=n, n_classes=n_symbols).cpu().numpy()
    if n == 0 or n_symbols == 1:
        return b""
    bits = precision(n_symbols)
    mask = (1 << bits) - 1
    state = lower = 1 << bits + 8
    emitted: list[int] = []
    rows_per_chunk = max(1, CHUNK // n_symbols)
    for first in reversed(range(0, n, rows_per_chunk)):
        table, row_labels = frequencies[first : first + rows_per_chunk], labels[first : first + rows_per_chunk, None]
        frequency = np.take_along_axis(table, row_labels, 1)[:, 0]
        start = np.take_along_axis(table.cumsum(1), row_labels, 1)[:, 0] - frequency
        flips = _flips(first, len(table), mask)
        for f, c, flip in zip(frequency[::-1].tolist(), start[::-1].tolist(), flips[::-1], strict=True):
            while state >= f << 16:
                emitted.append(state & 255)
                state >>= 8
            quotient, remainder = divmod(state, f)
            state = (quotient << bits) + ((c + remainder) ^ flip)
    assert lower <= state < lower << 8
    return state.to_bytes(_state_bytes(bits), "big") + bytes(reversed(emitted))


class SymbolDecoder:
    """Decode a stream of :func:`encode_symbols` one symbol after the other, where frequencies may depend on earlier ones.

    >>> from kernelmem.compression.coder import frequencies
    >>> table = frequencies([[0.7, 0.2, 0.1]] * 5)
    >>> decoder = SymbolDecoder(encode_symbols([0, 0, 2, 1, 0], table))
    >>> [decoder.decode(row) for row in table]
    [0, 0, 2, 1, 0]
    >>> decoder.close()
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._position = 0  # of the next byte
        self._bits = 0  # precision; 0 before the first symbol of an alphabet of two or more
        self._state = 0
        self._decoded = 0  # number of symbols of alphabets of two or more

    def decode(self, frequencies_row: np.ndarray) -> int:
        """Return the next symbol, given the frequencies (C,) that it was encoded with.

        Raises:
            FileCorruptError: the stream has ended.
            InputError: not frequencies, or of another precision than for the symbols before.
        """
        table = np.asarray(frequencies_row)[None]
        check_frequencies(table)
        return self.decode_rows(table)[0]

    def decode_rows(self, table: np.ndarray) -> list[int]:
        """Return the next symbols, given the frequencies (n, C) of all of them, which are not checked."""
        n, n_symbols = table.shape
        if n == 0 or n_symbols == 1:
            return [0] * n
        bits = self._start(precision(n_symbols))
        mask, lower = (1 << bits) - 1, 1 << bits + 8
        state, position, data = self._state, self._position, self._data
        ends = np.zeros((n, n_symbols + 1), np.int64)
        table.cumsum(1, out=ends[:, 1:])
        flat = ends.ravel().data  # a memoryview: only the entries that bisection reads become Python integers
        width = n_symbols + 1
        symbols: list[int] = []
        try:
            for first, flip in zip(range(0, n * width, width), _flips(self._decoded, n, mask), strict=True):
                slot = (state & mask) ^ flip
                place = bisect_right(flat, slot, first, first + width)
                start = flat[place - 1]
                state = (flat[place] - start) * (state >> bits) + slot - start
                while state < lower:
                    state = state << 8 | data[position]
                    position += 1
                symbols.append(place - first - 1)
        except IndexError:
            raise _corrupt(f"a stream of {len(data)} bytes that ends too early") from None
        self._state, self._position = state, position
        self._decoded += n
        return symbols

    def close(self) -> None:
        """Check that the stream has ended: every byte was read, and the state is that of the encoder before its first step.

        Raises:
            FileCorruptError: it has not; symbols were decoded from damaged bytes or with other frequencies.
        """
        if self._position != len(self._data):
            raise _corrupt(f"a stream with {len(self._data) - self._position} of {len(self._data)} bytes left")
        if self._bits and self._state != 1 << self._bits + 8:
            raise _corrupt("a stream whose decoder does not return to the state of the encoder")

    def _start(self, bits: int) -> int:
        """Read the state before the first symbol; return the precision."""
        if not self._bits:
            self._bits, self._position = bits, _state_bytes(bits)
            self._state = int.from_bytes(self._data[: self._position], "big")
            if len(self._data) < self._position or not 1 << bits + 8 <= self._state < 1 << bits + 16:
                raise _corrupt(f"a stream of {len(self._data)} bytes that begins with no state")
        if bits != self._bits:
            raise InputError(
                f"frequencies that sum to 2**{bits}, after frequencies that sum to 2**{self._bits}",
                expected="one precision per stream",
                hint="use one alphabet per stream",
            )
        return bits


def decode_symbols(data: bytes, frequencies: np.ndarray) -> np.ndarray:
    """Return the symbols (n,) int64 of a whole stream, given the frequencies (n, C) of all of them.

    Raises:
        FileCorruptError: the stream was damaged, or encoded with other frequencies.
        InputError: frequencies that are not positive integers with the sum 2**P.
    """
    check_frequencies(frequencies)
    decoder = SymbolDecoder(data)
    rows_per_chunk = max(1, CHUNK // frequencies.shape[1])
    symbols: list[int] = []
    for first in range(0, len(frequencies), rows_per_chunk):
        symbols += decoder.decode_rows(frequencies[first : first + rows_per_chunk])
    decoder.close()
    return np.array(symbols, dtype=np.int64)


def stream_bits(n_bytes: int, n_symbols: int) -> int:
    """Return the length in bits of a stream of ``n_bytes`` bytes that holds ``n_symbols`` symbols, its end included.

    No length has to be stored (the streams of ``n_symbols`` symbols are a prefix code), so that it is 8 ``n_bytes``.
    """
    return 8 * n_bytes if n_symbols else 0


def check_frequencies(frequencies: np.ndarray) -> None:
    """Check that frequencies are (n, C) positive integers, each row with the sum 2**P.

    Raises:
        InputError: they are not.
    """
    is_table = isinstance(frequencies, np.ndarray) and frequencies.ndim == 2 and frequencies.dtype == np.int64
    if is_table and frequencies.shape[1]:
        total = 2 ** precision(frequencies.shape[1])
        # entries of 1..total cannot overflow when they are added
        if bool((frequencies >= 1).all() and (frequencies <= total).all() and (frequencies.sum(1) == total).all()):
            return
    description = (
        f"{frequencies.dtype}, shape {frequencies.shape}" if isinstance(frequencies, np.ndarray) else "no array"
    )
    raise InputError(
        f"frequencies ({description})",
        expected="(n, C) positive integers with the sum 2**precision(C) in every row",
        hint="compute them with kernelmem.compression.coder.frequencies(probabilities)",
    )


def _flips(first: int, n: int, mask: int) -> list[int]:
    """Return ``mask`` or 0 for the symbols of places ``first``, ``first + 1``, ...: by one bit of a hash (SplitMix64)."""
    mixed = np.arange(first + 1, first + n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed >> np.uint64(63)).astype(np.int64) * mask).tolist()


def _state_bytes(bits: int) -> int:
    return -(-(bits + 16) // 8)


def _corrupt(description: str) -> FileCorruptError:
    return FileCorruptError(
        description,
        expected="a stream of encode_symbols, decoded with the frequencies that it was encoded with",
        hint="encode again, and decode with the same inputs, predictor and versions",
    )
