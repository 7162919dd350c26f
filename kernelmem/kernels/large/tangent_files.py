"""Tangents of a block of rows as a file: written whole or not at all, memory-mapped when they are used again.

A file has an 8-byte length, a JSON header (names, dtypes and shapes of the tensors, a hash of all values) and the values. It
is compared with its hash when a process first opens it, so that it needs no fsync: a file that a power failure has damaged
is computed again.
"""

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from kernelmem.core.errors import InputError
from kernelmem.core.files.hashed_files import READ_ERRORS, load_json
from kernelmem.tangents.groups.base import Buffers

ALIGNMENT = 64  # bytes


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
            with path.open("rb") as stream:
                header_length = int.from_bytes(stream.read(8), "little")
                if header_length > path.stat().st_size:
                    return None
                header = load_json(stream.read(header_length))
            values = np.memmap(path, mode="c", offset=0, dtype=np.uint8)[_aligned(8 + header_length) :]
            if name not in self._checked:
                if hashlib.sha256(values.data).hexdigest() != header["sha256"]:
                    return None
                self._checked.add(name)
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
        digest, entries = hashlib.sha256(), []
        for group, key, array in arrays:
            digest.update(array.reshape(-1).view(np.uint8).data)
            digest.update(bytes(-array.nbytes % ALIGNMENT))
            entries.append([group, key, array.dtype.str, list(array.shape)])
        header = {"n_groups": len(tangents), "tensors": entries, "sha256": digest.hexdigest()}
        content = json.dumps(header).encode()
        temporary: str | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.directory)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(len(content).to_bytes(8, "little") + content)
                stream.write(bytes(-(8 + len(content)) % ALIGNMENT))
                for _, _, array in arrays:
                    array.tofile(stream)
                    stream.write(bytes(-array.nbytes % ALIGNMENT))
            Path(temporary).replace(self.path(name))
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise InputError(
                f"directory {self.directory}, to which tangents cannot be written ({error.strerror or error})",
                expected="a disk with enough free space",
                hint="pass StoreOptions(tangents=...) on another disk, or more memory=, so that tangents stay in memory",
            ) from error
        self._checked.add(name)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
