"""Tangents of a block of rows as a file: written whole or not at all, memory-mapped when they are used again.

A file has the SHA-256 of all that follows, the length of a JSON header, the header (names, dtypes and shapes of the tensors)
and the values. It is compared with its hash when a process first opens it, so that it needs no fsync: a file that a power
failure has damaged is computed again.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from kernelmem.core.errors import InputError
from kernelmem.core.files import file_system
from kernelmem.core.files.hashed_files import READ_ERRORS, load_json
from kernelmem.tangents.groups.base import Buffers

ALIGNMENT = 64  # bytes
HASH_BYTES, START = 32, 40  # the hash; the hash and the length of the header


class TangentFiles:
    """Directory with the tangents of blocks of rows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._checked: set[str] = set()  # names of files whose hash was compared

    def path(self, name: str) -> Path:
        """Return the file of the block of this name."""
        return self.directory / f"{name}.tangents"

    def read(self, name: str) -> list[Buffers] | None:
        """Return the tangents of a block, memory-mapped; None if there is no such file, or it is damaged."""
        path = self.path(name)
        try:
            content = np.memmap(path, mode="c", dtype=np.uint8)
            if name not in self._checked:
                if hashlib.sha256(content[HASH_BYTES:].data).digest() != content[:HASH_BYTES].tobytes():
                    return None
                self._checked.add(name)
            header_end = START + int.from_bytes(content[HASH_BYTES:START].tobytes(), "little")
            header, values = load_json(content[START:header_end].tobytes()), content[_aligned(header_end) :]
            tangents: list[Buffers] = [{} for _ in range(header["n_groups"])]
            start = 0
            for group, key, dtype, shape in header["tensors"]:
                size = math.prod(shape) * np.dtype(dtype).itemsize
                tangents[group][key] = torch.from_numpy(values[start : start + size].view(dtype)).view(shape)
                start = _aligned(start + size)
            return tangents
        except READ_ERRORS:
            return None

    def write(self, name: str, tangents: list[Buffers]) -> None:
        """Write the tangents of a block.

        Raises:
            InputError: the directory cannot be written to, or the disk is full.
        """
        arrays = [
            (group, key, tensor.detach().cpu().contiguous().numpy())
            for group, buffers in enumerate(tangents)
            for key, tensor in buffers.items()
        ]
        entries = [[group, key, array.dtype.str, list(array.shape)] for group, key, array in arrays]
        header = json.dumps({"n_groups": len(tangents), "tensors": entries}).encode()
        head = len(header).to_bytes(START - HASH_BYTES, "little") + header
        head += bytes(-(HASH_BYTES + len(head)) % ALIGNMENT)
        digest = hashlib.sha256(head)
        for _, _, array in arrays:
            digest.update(array.reshape(-1).view(np.uint8).data)
            digest.update(bytes(-array.nbytes % ALIGNMENT))
        parts: list[bytes | memoryview] = [digest.digest() + head]
        for _, _, array in arrays:
            parts += [array.reshape(-1).view(np.uint8).data, bytes(-array.nbytes % ALIGNMENT)]
        path = self.path(name)
        try:
            file_system.make_directories(self.directory)
            file_system.rename(file_system.write_temporary(path, parts, durable=False), path)
        except OSError as error:
            raise InputError(
                f"directory {self.directory}, to which tangents cannot be written ({error.strerror or error})",
                expected="a disk with enough free space",
                hint="pass StoreOptions(tangents=...) on another disk, or more memory=, so that tangents stay in memory",
            ) from error
        self._checked.add(name)

    def remove(self) -> None:
        """Remove all files of tangents, and the directory if it is empty then."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.endswith((".tangents", ".tmp")):
                    file_system.remove(path)
            file_system.remove_empty([self.directory])


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
