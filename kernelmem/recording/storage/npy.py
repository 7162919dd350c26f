"""Arrays as .npy bytes (no pickle), written and read for a whole batch at a time."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np


def array_bytes(array: np.ndarray) -> bytes:
    """Return the .npy bytes of one array (C order)."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()


def array_from_bytes(data: bytes) -> np.ndarray:
    """Read one array from .npy bytes.

    Raises:
        ValueError: bytes that are not those of a plain array.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype, order = _header(data[8:start])
    count = math.prod(shape)
    if len(data) != start + count * dtype.itemsize:
        raise ValueError(f"{len(data) - start} bytes of data for an array of shape {shape}, {dtype}")
    return np.frombuffer(data, dtype, count, start).reshape(shape, order=order).copy(order)


@lru_cache(256)
def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """Return shape, dtype and memory order of a header; cached, because parsing one takes longer than a small array."""
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(data))
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which requires pickle (allow_pickle=False)")
    return shape, dtype, "F" if fortran else "C"


def row_bytes(array: np.ndarray) -> list[bytes]:
    """Return the .npy bytes of every row of an array (B, ...).

    All rows share one header, which is computed once: numpy.save for each row would cost ten times as much.
    """
    array = np.ascontiguousarray(array)
    first, data = array[0], array.tobytes()
    header = array_bytes(first)[: -first.nbytes or None]
    size = first.nbytes
    return [header + data[i * size : (i + 1) * size] for i in range(len(array))]


def rows_from_bytes(rows: Sequence[bytes]) -> np.ndarray:
    """Stack the arrays in several .npy byte strings, of one shape and dtype, into a writable array (B, ...).

    Raises:
        ValueError: bytes that are not those of plain arrays, or arrays of different shapes or dtypes.
    """
    first = array_from_bytes(rows[0])
    offset = len(rows[0]) - first.nbytes
    header = rows[0][:offset]
    if any(len(row) != len(rows[0]) or row[:offset] != header for row in rows):
        raise ValueError("rows of different shapes or dtypes in one batch")
    data = bytearray().join(row[offset:] for row in rows)  # a bytearray, because torch requires writable arrays
    return np.frombuffer(data, dtype=first.dtype, count=len(rows) * first.size).reshape(len(rows), *first.shape)
