"""Atomic files: written to a temporary file in the same directory, fsynced, then renamed."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kernelmem.core.checks import as_path, as_text, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files import file_system


def check_directory(directory: str | Path) -> Path:
    """Check, without creating anything, that files can be written to ``directory``, and return it as a Path.

    Call it before long work whose result goes there.

    Raises:
        InputError: it is no path, it or one of its parents is a file, or no file can be created there.
    """
    directory = as_path(directory, "directory")
    nearest_existing = next(p for p in (directory, *directory.absolute().parents) if os.path.lexists(p))
    problem = "" if nearest_existing.is_dir() else "not a directory"
    if not problem and not os.access(nearest_existing, os.W_OK | os.X_OK):
        problem = "not writable"
    if not problem:
        try:
            file_system.check_writable(nearest_existing)
        except OSError as error:
            problem = f"not writable: {error.strerror}"
    if problem:
        location = f" ({nearest_existing} is {problem})" if nearest_existing != directory else f", {problem}"
        raise InputError(
            f"output directory {directory}{location}",
            expected="a directory that can be written to or created",
            hint="pass another directory",
        )
    return directory


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the old file or the whole new one, never a part of it.

    Missing parent directories are created.

    Raises:
        InputError: ``path`` is a directory, or one of its parents is a file.
        OSError: the disk is full or fails; the error names the file.
    """
    path = as_path(path, "path")
    return write_files(path.parent, {path.name: content})[0]


def write_files(
    directory: str | Path, contents: Mapping[str, bytes | str], *, obsolete: Iterable[str] = ()
) -> list[Path]:
    """Write several files into ``directory``, each whole or absent.

    All files are written to temporary names and fsynced before the first is renamed, so that a failure before that
    (disk full, wrong path) leaves the directory unchanged. Then the ``obsolete`` files are removed, and the new files
    are renamed in their order, each durably: no new file lies next to an obsolete one, even after a kill or power failure.

    Raises:
        InputError: as in :func:`check_directory`, or a name is the name of a directory.
        OSError: the disk is full or fails; the error names the file.
    """
    directory = check_directory(directory)
    check_instance(contents, "contents", Mapping, hint='pass contents={"name.txt": "..."}')
    for name, content in contents.items():
        as_path(name, "name of a file")
        check_instance(content, f"content of {name}", (bytes, str), hint="encode it as bytes or text")
        if isinstance(content, str):
            as_text(content, f"content of {name}")
    targets = [directory / name for name in contents]
    for target in targets:
        if target.is_dir():
            raise InputError(
                f"output file {target}, a directory", expected="the path of a file", hint="pass another name"
            )
    created: list[Path] = []
    staged: list[Path] = []
    try:
        with file_system.named(directory):
            created = file_system.make_directories(directory)
        for target, content in zip(targets, contents.values(), strict=True):
            with file_system.named(target):
                content_bytes = content.encode() if isinstance(content, str) else content
                staged.append(file_system.write_temporary(target, content_bytes))
        with file_system.named(directory):
            for name in obsolete:
                file_system.remove(directory / name)
            file_system.sync_directory(directory)
        for temporary, target in zip(staged, targets, strict=True):
            with file_system.named(target):
                file_system.rename(temporary, target)
                file_system.sync_directory(directory)
    except BaseException:
        file_system.remove_quietly(staged)
        file_system.remove_empty(created)
        raise
    return targets


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of the bytes of a file."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def array_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named arrays: names, dtypes, shapes and little-endian bytes, in the order of the mapping."""
    check_instance(arrays, "arrays", Mapping, hint='pass arrays={"x": x}')
    digest = hashlib.sha256()
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
