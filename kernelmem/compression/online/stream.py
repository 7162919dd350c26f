"""Streams of online codes, and the container of a stream."""

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.coder import SymbolDecoder, best_shift, encode_symbols, frequencies, stream_bits
from kernelmem.compression.online.options import MAX_CLASSES, OnlineOptions
from kernelmem.core import FileCorruptError
from kernelmem.core.checks import as_count, as_text
from kernelmem.core.files.hashed_files import JSON, READ_ERRORS, load_json, reason

SHIFTS = 128
MAGIC = b"kmol\x01"
DIGEST = 8  # bytes of a SHA-256


@dataclass(frozen=True)
class Stream:
    """Coded labels: a byte with the shift of the frequencies, the seed of the order unless it is 0, and the rANS bytes.

    Attributes:
        data: the bytes.
        bits: their number of bits.
        margin: distance of the probabilities, times 2**16, to those that would change a frequency.
    """

    data: bytes
    bits: int
    margin: float


def row_order(n: int, seed: int) -> np.ndarray:
    """Return the permutation of n rows in which they are coded: that which sorts n numbers of NumPy's SeedSequence."""
    return np.argsort(np.random.SeedSequence(seed).generate_state(n, np.uint64), kind="stable")


def encode_labels(probabilities: np.ndarray, labels: np.ndarray, order_seed: int) -> Stream:
    """Return the stream of labels (n,), given their probabilities (n, C).

    A decoder computes probabilities that differ by rounding, and has to round them to the same frequencies. Of 128 shifts,
    the one is chosen for which the probabilities are farthest from a number that would be rounded otherwise.
    """
    shift, distance = best_shift(probabilities, SHIFTS)
    coded = encode_symbols(labels, frequencies(probabilities, shift / SHIFTS))
    header = bytes([shift | (0x80 if order_seed else 0)]) + (_varint(order_seed) if order_seed else b"")
    return Stream(header + coded, 8 * len(header) + stream_bits(len(coded), len(labels)), distance)


def read_header(data: bytes) -> tuple[float, int, bytes]:
    """Return shift, order seed and the rANS bytes of a stream.

    Raises:
        LookupError: the header is incomplete.
    """
    seed, position = 0, 1
    if data[0] & 0x80:
        while data[position] & 0x80:
            seed |= (data[position] & 0x7F) << 7 * (position - 1)
            position += 1
        seed |= data[position] << 7 * (position - 1)
        position += 1
    return (data[0] & 0x7F) / SHIFTS, seed, data[position:]


def decode_labels(coded: bytes, shift: float, predictions: Generator[np.ndarray, int, None], n: int) -> np.ndarray:
    """Return the n labels of a stream from the predictions of one row after the other.

    Raises:
        FileCorruptError: the stream was damaged, or coded with other predictions.
    """
    labels = np.empty(n, dtype=np.int64)
    try:
        decoder, probabilities = SymbolDecoder(coded), next(predictions)
        for i in range(n):
            labels[i] = decoder.decode(frequencies(probabilities[None], shift)[0])
            if i + 1 < n:
                probabilities = predictions.send(int(labels[i]))
        decoder.close()
    except FileCorruptError as error:
        raise corrupt("a stream that does not decode with these predictions") from error
    return labels


@dataclass(frozen=True)
class Header:
    """Facts that sender and receiver agree on before the labels are known: they are written down, but not paid for."""

    kind: str
    n: int
    n_classes: int
    options: OnlineOptions


def pack(header: Header, stream: bytes, labels: Tensor) -> bytes:
    """Return a container of the stream, with two checks: of the container, and of the labels."""
    defaults = asdict(OnlineOptions())
    options = {name: value for name, value in asdict(header.options).items() if value != defaults[name]}
    values = {"kind": header.kind, "n": header.n, "classes": header.n_classes, "options": options}
    text = json.dumps(values, separators=(",", ":")).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + stream + label_digest(labels)
    return body + hashlib.sha256(body).digest()[:DIGEST]


def unpack(data: bytes) -> tuple[Header, bytes, bytes]:
    """Return the header, the stream and the digest of the labels.

    Raises:
        FileCorruptError: not the bytes of ``OnlineCode.encode()``.
    """
    with reading():
        body = data[:-DIGEST]
        if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest()[:DIGEST] != data[-DIGEST:]:
            raise ValueError("damaged, or not an online code")
        start = len(MAGIC) + 4
        end = start + int.from_bytes(body[len(MAGIC) : start], "little")
        values: dict[str, JSON] = load_json(body[start:end])
        n, n_classes = as_count(values["n"], "n"), as_count(values["classes"], "classes", maximum=MAX_CLASSES)
        header = Header(as_text(values["kind"], "kind"), n, n_classes, OnlineOptions(**values["options"]))
        return header, body[end:-DIGEST], body[-DIGEST:]


def label_digest(labels: Tensor) -> bytes:
    """Return the first bytes of the SHA-256 of labels (n,)."""
    return hashlib.sha256(labels.to(torch.int64).numpy().astype("<i8").tobytes()).digest()[:DIGEST]


@contextmanager
def reading() -> Iterator[None]:
    """Turn errors of reading into a FileCorruptError."""
    try:
        yield
    except READ_ERRORS as error:
        raise corrupt(reason(error)) from error


def corrupt(description: str) -> FileCorruptError:
    """Return the error of bytes from which no labels can be decoded."""
    return FileCorruptError(
        f"an online code ({description})",
        expected="the bytes of OnlineCode.encode(), decoded with the same kernel or the same learner and rows",
        hint="pass the kernel in float64 as it was encoded, or a learner whose predictions are reproducible",
    )


def _varint(value: int) -> bytes:
    """Return 7 bits per byte, the lowest first; the last byte has no high bit."""
    groups = []
    while value >> 7:
        groups.append((value & 0x7F) | 0x80)
        value >>= 7
    return bytes([*groups, value])
