"""Safetensors and JSON files that contain a SHA-256 of their own content, read so that no file is trusted.

A file that is read may be damaged or made to do harm. Reading therefore executes nothing, waits for nothing, and allocates
memory in proportion to the size of the file; whatever is wrong with the content is one of ``READ_ERRORS``, which the caller
turns into a KernelmemError that names the file.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
from torch import Tensor

JSON: TypeAlias = Any  # any value that json.loads returns

READ_ERRORS = (
    safetensors.SafetensorError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""Errors of the functions in this file, and of functions that decode the values that they return."""

WRITER = "kernelmem"  # the metadata of our files have a key or a value that begins with it
HASH_KEY = "kernelmem_sha256"
NO_HASH = "0" * 64  # stands in the file while its SHA-256 is computed
MAX_EMPTY_SIZE = 2**24  # product of the other sizes of a tensor without elements
MAX_AXES = 32


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: there is no such file, it cannot be read, or it is a directory, a pipe or a device.
        ValueError: the path contains a null byte.
    """
    # a pipe without a writer would block the opening
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as stream:  # noqa: PTH123 (a descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        return stream.read(status.st_size)


def reason(error: Exception) -> str:
    """Return one short line that explains why a file could not be read."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:200]


def load_json(text: str | bytes, *, finite: bool = False) -> JSON:
    """Return the value of a JSON text in UTF-8; with ``finite``, NaN and infinite numbers are refused.

    Raises:
        ValueError: not JSON, nested too deeply, or an object with two entries of the same name.
    """
    number = _finite_float if finite else float
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_object_without_duplicates, parse_float=number, parse_constant=number)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def hashed_json(values: Mapping[str, JSON]) -> str:
    """Return a JSON object with the entries ``values`` and an entry with the SHA-256 of them, as indented text.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps({**values, HASH_KEY: _json_sha256(values)}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def check_json(values: dict[str, JSON]) -> dict[str, JSON]:
    """Return the entries ``values`` of a JSON object that :func:`hashed_json` has written, without the SHA-256.

    Line breaks and spaces of the text may have changed.

    Raises:
        ValueError: the SHA-256 is missing or differs.
    """
    entries = {key: value for key, value in values.items() if key != HASH_KEY}
    _check_sha256(values.get(HASH_KEY), _json_sha256(entries))
    return entries


def hashed_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a .safetensors file with these tensors and metadata, and a SHA-256 of all its bytes.

    One of the metadata values begins with "kernelmem". Equal tensors and metadata give equal bytes. Tensors may have any
    memory layout, and may share memory.
    """
    stored_tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        stored_tensors[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared memory
        storages.add(storage)
    content = safetensors.torch.save(stored_tensors)
    data_start = 8 + int.from_bytes(content[:8], "little")
    # The metadata are added here because safetensors writes them in random order.
    entries = {"__metadata__": {**metadata, HASH_KEY: NO_HASH}, **json.loads(content[8:data_start])}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    header = len(header).to_bytes(8, "little") + header
    data = memoryview(content)[data_start:]
    return b"".join((header.replace(_hash_entry(NO_HASH), _hash_entry(_sha256(header, data)), 1), data))


def load_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors, metadata) of the content of a .safetensors file, without the hash of :func:`hashed_safetensors`.

    A SHA-256 is required, and checked, if the metadata say that kernelmem wrote the file; other programs write none.

    Raises:
        One of ``READ_ERRORS``: the content is not that of a .safetensors file, or its SHA-256 is missing or differs.
    """
    header_length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header_length > len(content) - 8:
        raise ValueError("truncated, or not a .safetensors file")
    header = content[: 8 + header_length]
    entries = load_json(header[8:])
    metadata = entries.pop("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("metadata that are not text")
    if any(text.startswith(WRITER) for entry in metadata.items() for text in entry):
        recorded_sha256 = metadata.pop(HASH_KEY, None)
        header = header.replace(_hash_entry(recorded_sha256), _hash_entry(NO_HASH), 1)
        _check_sha256(recorded_sha256, _sha256(header, memoryview(content)[len(header) :]))
    for name, entry in entries.items():
        shape = entry["shape"]
        if len(shape) > MAX_AXES or (0 in shape and math.prod(size for size in shape if size) > MAX_EMPTY_SIZE):
            raise ValueError(f"tensor {name} of shape {shape}"[:200])
    try:
        return safetensors.torch.load(content), metadata
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _sha256(header: bytes, data: memoryview) -> str:
    hasher = hashlib.sha256(header)
    hasher.update(data)
    return hasher.hexdigest()


def _json_sha256(values: Mapping[str, JSON]) -> str:
    canonical_text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical_text.encode()).hexdigest()


def _check_sha256(recorded: object, computed: str) -> None:
    if recorded is None:
        raise ValueError("it contains no sha256")
    if recorded != computed:
        raise ValueError("its sha256 differs from the recorded one")


def _hash_entry(sha256: str | None) -> bytes:
    """Return the bytes of the hash in the header; inside of a name or text the quotation marks would be escaped."""
    return f'"{HASH_KEY}":"{sha256}"'.encode()


def _object_without_duplicates(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an object with two entries of the same name")
    return entries


def _finite_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text}")
    return value
