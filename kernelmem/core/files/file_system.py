"""Operations by which the package writes to disk: every file it leaves behind goes through these functions.

Tests observe the operations, and let each of them fail: :func:`observed`.
"""

import errno
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

Observer: TypeAlias = Callable[[str, Path, bytes], object]

connection_class: type[sqlite3.Connection] = sqlite3.Connection
"""Class of SQLite connections; tests put one here whose statements fail."""

_observers: list[Observer] = []


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call ``observer(operation, path, data)`` before every operation in the ``with`` block.

    An error that the observer raises takes the place of the operation. ``data`` are the bytes of a "write", the new path of
    a "rename", and empty for "mkdir", "create", "allocate", "fsync", "unlink" and "connect".
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def _before(operation: str, path: Path, data: bytes = b"") -> None:
    for observer in _observers:
        observer(operation, path, data)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let errors of the ``with`` block name ``path``, if they name no file: a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def make_directories(directory: Path) -> list[Path]:
    """Create ``directory`` and its missing parents, durably, and return the directories created, innermost first.

    After an error none of them is left.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    created: list[Path] = []
    try:
        for path in reversed(missing):
            _before("mkdir", path)
            path.mkdir(exist_ok=True)
            created.insert(0, path)
            sync_directory(path.parent)
    except BaseException:
        remove_empty(created)
        raise
    return created


def write_temporary(target: Path, content: bytes | Iterable[bytes | memoryview], *, durable: bool = True) -> Path:
    """Write ``content``, whole or in parts, to a new file in the directory of ``target`` and return its path.

    After an error no file is left. A file that is not ``durable`` is not synced: a power failure may damage it, so that its
    reader has to compare a hash.
    """
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
    _before("create", temporary)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
    except OSError as error:
        error.filename = str(target)
        raise
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123 (a descriptor)
            for part in (content,) if isinstance(content, bytes) else content:
                _before("write", temporary, bytes(part) if _observers else b"")
                stream.write(part)
            stream.flush()
            if durable:
                _before("fsync", temporary)
                os.fsync(descriptor)
    except BaseException:
        remove_quietly([temporary])
        raise
    return temporary


def write_chunks(file: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a new file piece by piece; it is not synced: see :func:`new_path`."""
    _before("create", file)
    with file.open("xb") as stream:
        for chunk in chunks:
            _before("write", file, bytes(chunk[:1024]))
            stream.write(chunk)


class DeferredErrors:
    """A new file for a library that crashes if it cannot write: it sees no error, and :meth:`check` raises the first one.

    The file is not synced: see :func:`new_path`.
    """

    def __init__(self, file: Path) -> None:
        _before("create", file)
        self._file = file
        self._error: OSError | None = None
        self._stream = file.open("xb+", buffering=0)
        self.seek, self.tell = self._stream.seek, self._stream.tell
        self.read, self.readinto = self._stream.read, self._stream.readinto

    def write(self, data: memoryview) -> int:
        """Write all of ``data``, unless an operation has failed before."""
        view = memoryview(data).cast("B")
        n_written = 0
        try:
            if self._error is None:
                _before("write", self._file, bytes(view[:1024]))
            while self._error is None and n_written < len(view):
                n_written += self._stream.write(view[n_written:])
        except OSError as error:
            self._error = error
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the size of the file."""
        try:
            if self._error is None:
                self._stream.truncate(size)
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def check(self) -> None:
        """Raise the first error."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


@contextmanager
def new_path(target: Path) -> Iterator[Path]:
    """Give a path where the ``with`` block writes a file or a folder, which is then synced and named ``target``.

    For files that are too large for :func:`write_temporary`, or that another library writes. After an error nothing is left.
    """
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        for path in [temporary, *temporary.rglob("*")]:
            sync_directory(path)
        rename(temporary, target)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            remove_quietly([temporary])
        raise
    sync_directory(target.parent)


def rename(temporary: Path, target: Path) -> None:
    """Give a file the name ``target`` in one step; a file of that name is replaced."""
    _before("rename", temporary, os.fsencode(target))
    temporary.replace(target)


def remove(file: Path) -> None:
    """Remove a file, if it exists."""
    _before("unlink", file)
    file.unlink(missing_ok=True)


def remove_quietly(files: Iterable[Path]) -> None:
    """Remove files after an error, which no further error replaces."""
    for file in files:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove those of the directories that are empty, after an error, which no further error replaces."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def sync_directory(directory: Path) -> None:
    """Flush the directory's list of files to disk, so that new, renamed and removed files survive a power failure."""
    _before("fsync", directory)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync directories
            raise
    finally:
        os.close(descriptor)


def check_writable(directory: Path) -> None:
    """Create a file in the directory and remove it.

    Raises:
        OSError: that is not possible; root may write anywhere, except where the file system forbids it.
    """
    _before("create", directory)
    tempfile.TemporaryFile(dir=directory).close()


@contextmanager
def reserved_file(directory: Path, n_bytes: int) -> Iterator[Path]:
    """Reserve ``n_bytes`` on the disk of ``directory``; the file has a name only in the ``with`` block.

    A memory mapping keeps the file. On a full disk, writing to a mapped file that was not reserved would kill the process.
    """
    with named(directory):
        _before("create", directory)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".mapped-") as stream:
        path = Path(stream.name)
        with named(directory):
            _before("allocate", path)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, max(n_bytes, 1))
            else:
                stream.truncate(n_bytes)
        yield path


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """Return a connection to an SQLite file, without implicit transactions, that any thread may use.

    ``mode`` is "ro", "rw" or "rwc" (create the file). Functions and views of the schema of the file are not trusted.
    """
    _before("connect", file)
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=connection_class)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
    except BaseException:
        connection.close()
        raise
    return connection
