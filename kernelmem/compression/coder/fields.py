"""Unsigned integers of fixed widths in bits, packed into bytes: the headers of streams."""

from collections.abc import Sequence

from kernelmem.core import FileCorruptError, InputError


def pack_fields(values: Sequence[int], widths: Sequence[int]) -> bytes:
    """Return the integers as bytes: each takes as many bits as its width, the last byte is filled up with zeros.

    Raises:
        InputError: a value that is negative or needs more bits than its width.

    >>> pack_fields([5, 1000], [4, 12]).hex()
    '53e8'
    """
    packed = 0
    for value, width in zip(values, widths, strict=True):
        if not 0 <= value < 1 << width:
            raise InputError(
                f"the value {value} for a field of {width} bits",
                expected=f"a whole number in 0..{(1 << width) - 1}",
                hint="use a wider field",
            )
        packed = packed << width | value
    n_bits = sum(widths)
    return (packed << -n_bits % 8).to_bytes(-(-n_bits // 8), "big")


def unpack_fields(data: bytes, widths: Sequence[int]) -> tuple[list[int], bytes]:
    """Return the integers that :func:`pack_fields` packed at the beginning of ``data``, and the bytes after them.

    Raises:
        FileCorruptError: too few bytes, or bits other than zero in the filled-up part.
    """
    n_bits = sum(widths)
    n_bytes = -(-n_bits // 8)
    packed, padding = int.from_bytes(data[:n_bytes], "big"), -n_bits % 8
    if len(data) < n_bytes or packed & ((1 << padding) - 1):
        raise FileCorruptError(
            f"a header of {min(len(data), n_bytes)} bytes" + " with non-zero padding" * (len(data) >= n_bytes),
            expected=f"{n_bytes} bytes that hold {n_bits} bits and zeros",
            hint="encode the labels again",
        )
    packed >>= padding
    values = []
    for width in reversed(widths):
        values.append(packed & ((1 << width) - 1))
        packed >>= width
    return values[::-1], data[n_bytes:]
