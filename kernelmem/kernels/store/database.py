"""SQLite file of a stored kernel: connections, the check of its tables, and errors that name the file."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kernelmem.core.errors import FileCorruptError, InputError, KernelmemError
from kernelmem.core.files import file_system, hashed_files
from kernelmem.kernels.store.layout import MAX_FACT_BYTES

FORMAT = 1
PAGE_SIZE = 65536  # bytes; the largest: a tile of 4 MiB is 64 pages instead of 1,024
LOG_PAGES = 4096  # 256 MiB; merged after every tile of 16 MiB or more, the log would be written to disk twice as often
SCHEMA = """
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE tiles (tile INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, stop_row INTEGER NOT NULL,
    first_column INTEGER NOT NULL, stop_column INTEGER NOT NULL, dtype TEXT NOT NULL, sha256 BLOB NOT NULL,
    data BLOB NOT NULL);
"""
READ_ERRORS = (*hashed_files.READ_ERRORS, sqlite3.Error, AttributeError)


def connect(file: Path, *, write: bool) -> sqlite3.Connection:
    """Open a store, for reading only unless ``write`` is True, and limit what a damaged file can make SQLite allocate.

    A process that was killed may have left a rollback journal, which a read-only connection cannot apply: the file is then
    opened for writing first, once.

    Raises:
        sqlite3.Error, ValueError: the file cannot be read, or is not a store.
    """
    journal = file.with_name(f"{file.name}-journal")
    if not write and journal.is_file() and journal.stat().st_size:
        with closing(_open(file, "rw")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection = _open(file, "rw" if write else "ro")
    try:
        check_schema(connection)
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _open(file: Path, mode: str) -> sqlite3.Connection:
    connection = file_system.connect(file, mode)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_FACT_BYTES)
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def check_schema(connection: sqlite3.Connection) -> None:
    """Check that the file has the tables of a store and nothing else: a view or trigger could run any query.

    Raises:
        ValueError: a table is missing, or something is not part of a store.
    """
    with closing(sqlite3.connect(":memory:")) as expected:
        expected.executescript(SCHEMA)
        query = "SELECT type || ' ' || name, sql FROM sqlite_master"
        tables = dict(expected.execute(query).fetchall())
        stored_tables = dict(connection.execute(query).fetchmany(len(tables) + 1))
    wrong = {name for name in {*tables, *stored_tables} if tables.get(name, 0) != stored_tables.get(name, 0)}
    if wrong:
        raise ValueError(f"not the tables of a store: {sorted(map(str, wrong))[:5]}")


@contextmanager
def transaction(connection: sqlite3.Connection, file: Path) -> Iterator[None]:
    """Run the SQL statements of the ``with`` block as one transaction; after an error none of them has an effect.

    Raises:
        InputError: the file cannot be written (full disk, no permission).
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # the error before it says more
                connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error | OSError):
            free = shutil.disk_usage(file.absolute().parent).free
            raise InputError(
                f"{file}, to which a tile cannot be written ({error}; {free / 2**20:,.0f} MiB free on its disk)",
                expected="a disk with free space, and permission to write",
                hint="free space on this disk; the tiles written before are kept, and only the others are computed again",
            ) from error
        raise


@contextmanager
def translate_read_errors(file: Path, description: str, hint: str) -> Iterator[None]:
    """Replace a reading error in the ``with`` block by a FileCorruptError that contains ``description``."""
    try:
        yield
    except KernelmemError:
        raise
    except READ_ERRORS as error:
        raise FileCorruptError(
            f"{file}, {description} ({hashed_files.reason(error)})", expected="the file as it was written", hint=hint
        ) from error
