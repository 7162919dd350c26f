"""Arrays as .npy bytes (no pickle), written and read for a whole batch at a time."""

import ast
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np


def array_bytes(array: np.ndarray) -> bytes:
    """Return the bytes of a .npy file that holds ``array`` in C order."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()


def array_from_bytes(data: bytes) -> np.ndarray:
    """Read one array from .npy bytes.

    Raises:
        ValueError: the bytes are not those of a plain array.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("not the bytes of an array in .npy format 1.0")
    header_end = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype, order = _parse_header(data[8:header_end])
    n_values = math.prod(shape)
    if len(data) != header_end + n_values * dtype.itemsize:
        raise ValueError(f"{len(data) - header_end} bytes of data for an array of shape {shape}, {dtype}")
    return np.ndarray(shape, dtype, data, header_end, order=order).copy(order)


@lru_cache(256)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """Return shape, dtype and memory order ("C" or "F") from the header of .npy bytes, version 1.0, without magic string.

    Results are cached, because parsing a header takes longer than reading a small array.
    """
    try:
        fields = ast.literal_eval(header[2:].decode("latin1").strip())
    except SyntaxError as error:
        raise ValueError("a header that is not one of .npy bytes") from error
    dtype = np.dtype(fields["descr"])
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of dtype {dtype}, not of numbers")
    return tuple(fields["shape"]), dtype, "F" if fields["fortran_order"] else "C"


def row_bytes(array: np.ndarray) -> list[bytes]:
    """Return a list with the .npy bytes of each of the B rows of an array (B, ...).

    All rows share one header, which is computed once: numpy.save for each row would cost ten times as much.
    """
    array = np.ascontiguousarray(array)
    first_row, all_bytes = array[0], array.tobytes()
    header = array_bytes(first_row)[: -first_row.nbytes or None]
    row_nbytes = first_row.nbytes
    return [header + all_bytes[i * row_nbytes : (i + 1) * row_nbytes] for i in range(len(array))]


def rows_from_bytes(rows: Sequence[bytes]) -> np.ndarray:
    """Stack the arrays in several .npy byte strings, of one shape and dtype, into a writable array (B, ...).

    Raises:
        ValueError: the bytes are not those of plain arrays, or the arrays differ in shape or dtype.
    """
    first_array = array_from_bytes(rows[0])
    header_length = len(rows[0]) - first_array.nbytes
    header = rows[0][:header_length]
    if any(len(row) != len(rows[0]) or row[:header_length] != header for row in rows):
        raise ValueError("rows of different shapes or dtypes in one batch")
    # a bytearray, because torch requires writable arrays
    all_bytes = bytearray().join(row[header_length:] for row in rows)
    stacked = np.frombuffer(all_bytes, dtype=first_array.dtype, count=len(rows) * first_array.size)
    return stacked.reshape(len(rows), *first_array.shape)
