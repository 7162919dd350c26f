"""Directory of a run: one recorder at a time, opening of its SQLite file, errors of writing that name the disk."""

import fcntl
import os
import shutil
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kernelmem.core.errors import InputError, KernelmemError
from kernelmem.core.files import file_system


class DirectoryLock:
    """Exclusive access to the directory of a run; the operating system releases it when the process ends.

    File systems without locks give none: there two recorders are not kept apart.
    """

    def __init__(self, directory: Path) -> None:
        """Create the directory if it is missing, and lock it.

        Raises:
            InputError: another recorder holds the lock, or the directory cannot be created.
        """
        with translate_write_errors(directory):
            file_system.make_directories(directory)
            descriptor = os.open(directory, os.O_RDONLY)
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise InputError(
                f"directory {directory}, in which another recorder is recording",
                expected="one recorder for each run",
                hint="pass another directory, or wait until the other recorder has left its with block",
            ) from error
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        """Release the lock."""
        self._finalizer()


@contextmanager
def translate_write_errors(directory: Path) -> Iterator[None]:
    """Replace an error of writing in the ``with`` block (full disk, no permission) by one that names the disk.

    Raises:
        InputError: instead of an OSError or sqlite3.Error. Errors of kernelmem are not changed.
    """
    try:
        yield
    except KernelmemError:
        raise
    except (OSError, sqlite3.Error) as error:
        nearest_existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
        free = shutil.disk_usage(nearest_existing).free
        raise InputError(
            f"directory {directory}, to which the run cannot be written ({error}; {free / 2**20:,.0f} MiB free on its disk)",
            expected="a disk with free space, and permission to write",
            hint="free space on this disk; the run holds all steps before this one: continue with recorder.restore(), or"
            " later with resume=True",
        ) from error


def open_database(file: Path, *, write: bool) -> sqlite3.Connection:
    """Open the SQLite file of a run; for reading only, unless ``write`` is True.

    A process that was killed while it opened or closed the file may have left a rollback journal, which a read-only
    connection cannot apply: the file is then opened for writing first, once.

    Raises:
        InputError: there is such a journal, or a write-ahead log, and the directory is read-only. sqlite3.Error: the file
            cannot be read.
    """
    journal, log = (file.with_name(file.name + suffix) for suffix in ("-journal", "-wal"))
    try:
        if not write and journal.is_file() and journal.stat().st_size:
            with closing(file_system.connect(file, "rw")) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection = file_system.connect(file, "rw" if write else "ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.OperationalError as error:
        if (journal.exists() or log.exists()) and not os.access(file.parent, os.W_OK):
            raise InputError(
                f"{file} in a read-only directory, with changes of an interrupted process that were not merged ({error})",
                expected="a directory in which SQLite can complete or undo them",
                hint="copy the directory of the run to a disk with write permission, and open the copy",
            ) from error
        raise
