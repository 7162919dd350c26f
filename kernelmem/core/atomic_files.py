"""Files that are whole or absent: written beside their place, fsynced, then renamed."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kernelmem.core.errors import InputError

__all__ = ["array_sha256", "check_directory", "write_file", "write_files"]


def check_directory(directory: str | Path) -> Path:
    """Return ``directory`` if files can be written there, or if it can be made; nothing is made here.

    To be asked before long work whose result is to go there.

    Raises:
        InputError: it or one of its parents is a file, or no permission to write.
    """
    directory = Path(directory)
    existing = next(p for p in (directory, *directory.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "no directory" if not existing.is_dir() else "not writable"
        raise InputError(
            f"output directory {directory}" + (f" ({existing} is {what})" if existing != directory else f", {what}"),
            expected="a directory that can be written to, or made",
            hint="name another place",
        )
    return directory


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the old file or the whole new one, never a part.

    The bytes go to a temporary file in the same directory, are fsynced, and the file is renamed over ``path``;
    the directory is fsynced after it. Missing parent directories are made.

    Raises:
        InputError: ``path`` is a directory, or a parent of it is a file.
    """
    path = Path(path)
    return write_files(path.parent, {path.name: content})[0]


def write_files(directory: str | Path, contents: Mapping[str, bytes | str]) -> list[Path]:
    """Write several files into ``directory``, each whole or absent, none of them before all are on disk.

    Every file is first written beside its place and fsynced; only then are they renamed, one after the other. A
    failure before the first rename (disk full, wrong path) leaves the directory as it was.

    Raises:
        InputError: as in :func:`check_directory`, or a name is taken by a directory.
    """
    directory = check_directory(directory)
    made = [p for p in (directory, *directory.parents) if not p.exists()]
    staged: list[tuple[Path, Path]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            target = directory / name
            if target.is_dir():
                raise InputError(
                    f"output file {target}, a directory", expected="a file name", hint="name another place"
                )
            data = content.encode() if isinstance(content, str) else content
            descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            staged.append((Path(temporary), target))
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)
        for temporary, target in staged:
            temporary.replace(target)
    except BaseException:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
        for parent in made:  # innermost first; only those that this call made, and only if still empty
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    _sync_directory(directory)
    return [target for _, target in staged]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def array_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and bytes, in the mapping's order (little-endian)."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
