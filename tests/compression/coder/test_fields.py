"""Packed integers come back; a damaged header is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.compression.coder import pack_fields, unpack_fields
from kernelmem.core import FileCorruptError, InputError
from tests.profiles import examples


@examples(1)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 2**70))), st.binary(max_size=3))
def test_fields_come_back(pairs, rest):
    widths = [width for width, _ in pairs]
    values = [value & ((1 << width) - 1) for width, value in pairs]
    packed = pack_fields(values, widths)
    assert len(packed) == -(-sum(widths) // 8)
    assert unpack_fields(packed + rest, widths) == (values, rest)
    if packed:
        with pytest.raises(FileCorruptError):
            unpack_fields(packed[:-1], widths)


def test_padding_and_values_are_checked():
    with pytest.raises(FileCorruptError, match="non-zero padding"):
        unpack_fields(b"\x01", [3])
    for value in (-1, 8):
        with pytest.raises(InputError):
            pack_fields([value], [3])
