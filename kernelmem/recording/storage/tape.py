"""The tape of a run: one SQLite row per training step, chained by hashes to all rows before it."""

import json
import sqlite3
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from torch import Tensor

from kernelmem.core.batches import Tree
from kernelmem.core.checks import as_path
from kernelmem.core.errors import FileCorruptError, InputError, KernelmemError
from kernelmem.core.files import hashed_files
from kernelmem.core.files.atomic_files import write_file
from kernelmem.core.files.hashed_files import load_json
from kernelmem.core.files.result_files import decode
from kernelmem.recording.storage.average_log import Average, AverageLog
from kernelmem.recording.storage.directory import open_database
from kernelmem.recording.storage.header import Header
from kernelmem.recording.storage.inputs import StoredInput, stored_sha256
from kernelmem.recording.storage.pytree import tree_from_row_bytes
from kernelmem.recording.storage.step import Row, Step, checkpoint_hash, decode_step, digest, encode_step, step_hash

FILE = "tape.sqlite"
FORMAT = 4  # 1: single tensors as inputs, no averages; 2: no frozen parameters; 3: no autocast, no loss scale, CPU only
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE steps (step INTEGER PRIMARY KEY, facts TEXT NOT NULL, examples BLOB NOT NULL, versions BLOB NOT NULL,
    weights BLOB NOT NULL, random BLOB, chain TEXT NOT NULL);
CREATE TABLE examples (example INTEGER NOT NULL, version INTEGER NOT NULL, step INTEGER NOT NULL, sha256 TEXT NOT NULL,
    x BLOB NOT NULL, y BLOB NOT NULL, PRIMARY KEY (example, version));
CREATE INDEX examples_of_step ON examples (step);
CREATE TABLE checkpoints (step INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, seal TEXT NOT NULL);
"""
ROW_COLUMNS = "facts, examples, versions, weights, random"
READ_ERRORS = (*hashed_files.READ_ERRORS, sqlite3.DatabaseError, AttributeError)


class Tape:
    """The file ``tape.sqlite`` of a run, with one row for each training step.

    Every row holds sha256(hash of the previous row, all its columns, its new inputs), so that :meth:`verify` finds an
    altered, missing or moved row; a file without its last rows is a shorter valid run. Each step is one transaction with
    fsync: after a crash, all steps whose :meth:`append` returned are on disk. Arrays are stored as .npy bytes.
    """

    def __init__(self, directory: str | Path, *, write: bool = False) -> None:
        """Open the tape in the directory of a run, for reading only unless ``write`` is True.

        Raises:
            InputError: ``directory`` holds no run, or one in a later format.
            FileCorruptError: the file is not a tape.
        """
        self.file = as_path(directory, "directory") / FILE
        if not self.file.is_file():
            raise InputError(
                f"directory {directory} without a {FILE}",
                expected="a run recorded by kernelmem.Recorder",
                hint="check the path, or record the run first (resume=False)",
            )
        self._writable = write
        with self._translate_read_errors("its header"):
            self._connection = open_database(self.file, write=write)
            self._finalizer = weakref.finalize(self, self._connection.close)
            if not write:
                # In a damaged file the pages of a table can form a loop; no query on an undamaged one does as many operations.
                max_operations = min(10**6 + 10 * self.file.stat().st_size, 2**31 - 1)
                self._connection.set_progress_handler(lambda: 1, max_operations)
            _check_schema(self._connection)
            rows = self._connection.execute("SELECT key, value FROM meta").fetchall()
            self.meta: Header = {key: load_json(value) for key, value in rows}
            tape_format = decode(self.meta["format"], int, "format")
            self._header_hash = digest(*(part.encode() for row in sorted(rows) for part in row))
        if tape_format > FORMAT:
            self.close()
            raise InputError(
                f"{self.file} in format {tape_format}", expected=f"format {FORMAT} at most", hint="upgrade kernelmem"
            )
        with self._translate_read_errors("its header"):
            if write:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.executescript(AverageLog.SCHEMA)  # a tape of format 1 has none
            self._averages = AverageLog(self._connection, self._header_hash)
            self._length = self._count_steps()
        self._last_hash = self._hash_after(self._length)

    @classmethod
    def create(cls, directory: str | Path, meta: Header, *, initial_sha256: str) -> "Tape":
        """Create a tape without steps in ``directory``, and return it, opened for writing.

        ``meta`` is its header, ``initial_sha256`` the SHA-256 of the file of the checkpoint of the initial weights.

        Raises:
            InputError: the directory already holds a run, or is not writable.
        """
        file = Path(directory) / FILE
        refuse_existing(directory)
        header_values = {key: json.dumps(value, sort_keys=True) for key, value in {**meta, "format": FORMAT}.items()}
        header_hash = digest(*(part.encode() for row in sorted(header_values.items()) for part in row))
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            connection.executescript(SCHEMA + AverageLog.SCHEMA)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", header_values.items())
            connection.execute(
                "INSERT INTO checkpoints VALUES (0, ?, ?)",
                (initial_sha256, checkpoint_hash(header_hash, 0, initial_sha256)),
            )
            write_file(file, connection.serialize())  # atomic
        finally:
            connection.close()
        return cls(directory, write=True)

    @property
    def head(self) -> str:
        """The hash of the last step, which depends on the header and on all steps before it."""
        return self._last_hash

    def __len__(self) -> int:
        """Return the number of steps when the tape was opened, plus those appended since."""
        return self._length

    def append(
        self, step: Step, new_inputs: Sequence[StoredInput] = (), *, checkpoint_sha256: str | None = None
    ) -> None:
        """Write one step to disk, with its new inputs and the SHA-256 of the checkpoint after it (None: no checkpoint).

        Raises:
            InputError: the step is not the next one, or another process has written it.
        """
        if step.index != self._length:
            raise InputError(
                f"step {step.index} for a tape of {self._length} steps",
                expected=f"step {self._length}",
                hint="append the steps in order",
            )
        row = encode_step(step)
        input_hashes = [(stored.example, stored.version, stored.sha256) for stored in new_inputs]
        new_hash = step_hash(self._last_hash, row, input_hashes)
        with self._transaction():
            self._connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)", (step.index, *row, new_hash))
            self._connection.executemany(
                "INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (stored.example, stored.version, step.index, stored.sha256, stored.x, stored.y)
                    for stored in new_inputs
                ],
            )
            if checkpoint_sha256 is not None:
                self._insert_checkpoint(new_hash, step.index + 1, checkpoint_sha256)
        self._last_hash, self._length = new_hash, self._length + 1

    def keep(self, checkpoint_sha256: str) -> None:
        """Write to disk the SHA-256 of the checkpoint after the last step."""
        with self._transaction():
            self._insert_checkpoint(self._last_hash, self._length, checkpoint_sha256)

    def append_average(self, coefficient: float, sha256: str) -> None:
        """Write to disk an update of the averaged weights that follows the last step.

        ``coefficient`` is the number kappa in w_avg <- w_avg + kappa (w - w_avg), ``sha256`` the hash of the new w_avg.
        """
        with self._transaction():
            self._averages.insert(Average(self._length, coefficient, sha256), steps_hash=self._last_hash)

    def averages(self) -> tuple[Average, ...]:
        """Return the updates of the averaged weights, in order; an empty tuple if the run has none."""
        with self._translate_read_errors("its averages"):
            return self._averages.read(self._length)

    def keep_averaged(self, sha256: str) -> list[str]:
        """Write to disk the SHA-256 of the file of the averaged model after the last update.

        Returns the SHA-256 of the files recorded before, which this one replaces.
        """
        with self._transaction():
            return self._averages.keep(sha256)

    def averaged_file(self) -> str | None:
        """Return the SHA-256 of the file of the averaged model after the last update, or None if it was not written."""
        with self._translate_read_errors("its averages"):
            return self._averages.file()

    def truncate(self, length: int, *, averages: int = 0) -> None:
        """Delete all but the first ``length`` steps, their inputs and checkpoints, and the first ``averages`` updates."""
        with self._transaction():
            self._averages.truncate(averages)
            self._connection.execute("DELETE FROM steps WHERE step >= ?", (length,))
            self._connection.execute("DELETE FROM examples WHERE step >= ?", (length,))
            self._connection.execute("DELETE FROM checkpoints WHERE step > ?", (length,))
        self._length = length
        self._last_hash = self._hash_after(length)

    def step(self, index: int) -> Step:
        """Return step number ``index`` = 0..T-1 of T steps, without its inputs and weights.

        Raises:
            FileCorruptError: the row is missing or unreadable.
        """
        with self._translate_read_errors(f"step {index}"):
            row = self._fetch_row(f"SELECT {ROW_COLUMNS} FROM steps WHERE step = ?", index)
            return decode_step(index, cast(Row, row))

    def inputs(self, step: Step) -> tuple[Tree, Tensor]:
        """Return inputs x (B, ...), a tensor or a tree of tensors, and targets y (B, ...) of the B examples of a step.

        Raises:
            FileCorruptError: an input is missing or unreadable.
        """
        query = "SELECT x, y FROM examples WHERE example = ? AND version = ?"
        with self._translate_read_errors(f"the inputs of step {step.index}"):
            keys = zip(step.examples.tolist(), step.versions.tolist(), strict=True)
            x, y = zip(*(self._fetch_row(query, *key) for key in keys), strict=True)
            return tree_from_row_bytes(x), tree_from_row_bytes(y)

    def known_inputs(self) -> list[tuple[int, int, str]]:
        """Return a list of (example, version, sha256), one for each stored input."""
        with self._translate_read_errors("its examples"):
            rows = self._connection.execute("SELECT example, version, sha256 FROM examples").fetchall()
            for _, _, sha256 in rows:
                bytes.fromhex(sha256)
            return rows

    def checkpoints(self) -> dict[int, str]:
        """Return a dict from the number of steps before a checkpoint to the SHA-256 of its file, in increasing order."""
        with self._translate_read_errors("its checkpoints"):
            query = "SELECT step, sha256 FROM checkpoints WHERE step <= ? ORDER BY step"
            return dict(self._connection.execute(query, (self._length,)).fetchall())

    def verify(self) -> None:
        """Read the whole tape and check all hashes; O(bytes of the tape).

        Raises:
            FileCorruptError: names the first step with an altered row or new input.
        """
        expected_hash = self._header_hash
        step_hashes = {0: expected_hash}
        for index in range(self._length):
            with self._translate_read_errors(f"step {index}"):
                row = self._fetch_row(f"SELECT {ROW_COLUMNS}, chain FROM steps WHERE step = ?", index)
                columns = cast(Row, row[:5])
                expected_hash = step_hash(expected_hash, columns, self._verified_inputs(index))
                if expected_hash != row[5]:
                    raise ValueError("its row, or the header before it, was altered")
                decode_step(index, columns)
                step_hashes[index + 1] = expected_hash
        with self._translate_read_errors("its checkpoints"):
            rows = self._connection.execute("SELECT step, sha256, seal FROM checkpoints ORDER BY step").fetchall()
            query = "SELECT count(*) FROM examples WHERE step NOT BETWEEN 0 AND ?"
            n_extra_inputs = self._fetch_row(query, self._length - 1)[0]
            # a recorder may have added rows beyond the end since this tape was opened
            if (n_extra_inputs or any(row[0] > self._length for row in rows)) and self._count_steps() <= self._length:
                raise ValueError(f"inputs or checkpoints of steps after the last one, {self._length - 1}")
            if not rows or rows[0][0] != 0:
                raise ValueError("the initial one is missing")
        for step, sha256, stored_hash in rows:
            with self._translate_read_errors(f"the checkpoint of step {step}"):
                if step <= self._length and stored_hash != checkpoint_hash(step_hashes[step], step, sha256):
                    raise ValueError("it does not belong to the steps before it")
        with self._translate_read_errors("its averages"):
            self._averages.verify(step_hashes)
        with self._translate_read_errors("its pages"):
            # also covers the indexes, which the hashes do not
            integrity_report = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if integrity_report != "ok":
                raise ValueError(integrity_report)

    def close(self) -> None:
        """Close the file; for a tape opened to write, merge its write-ahead log into it."""
        if self._writable and self._finalizer.alive:
            with suppress(sqlite3.Error):  # another process is reading the run: the log stays
                self._connection.execute("PRAGMA journal_mode=DELETE")
        self._finalizer()

    def _count_steps(self) -> int:
        return self._fetch_row("SELECT count(step) FROM steps")[0]  # count(*) could not be interrupted

    def _verified_inputs(self, index: int) -> Iterator[tuple[int, int, str]]:
        """Yield (example, version, sha256) for each new input of step ``index``, after checking its SHA-256.

        Raises:
            ValueError: the SHA-256 of an input differs.
        """
        query = "SELECT example, version, sha256, x, y FROM examples WHERE step = ?"
        for example, version, sha256, x, y in self._connection.execute(query, (index,)):
            if stored_sha256(x, y) != sha256:
                raise ValueError(f"input {version} of example {example} was altered")
            yield example, version, sha256

    def _hash_after(self, length: int) -> str:
        """Return the hash of the first ``length`` steps, or that of the header if ``length`` is 0."""
        if length == 0:
            return self._header_hash
        with self._translate_read_errors(f"step {length - 1}"):
            return str(self._fetch_row("SELECT chain FROM steps WHERE step = ?", length - 1)[0])

    def _fetch_row(self, query: str, *values: int) -> tuple:
        """Return the first row of an SQL query with the given values; raise ValueError if there is none."""
        row = self._connection.execute(query, values).fetchone()
        if row is None:
            raise ValueError("the row is missing")
        return row

    def _insert_checkpoint(self, steps_hash: str, step: int, sha256: str) -> None:
        """Insert the checkpoint after ``step`` steps, whose hash is ``steps_hash``; ``sha256`` is that of its file."""
        self._connection.execute(
            "INSERT INTO checkpoints VALUES (?, ?, ?)", (step, sha256, checkpoint_hash(steps_hash, step, sha256))
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the SQL statements of the ``with`` block as one transaction; after an error none of them has an effect.

        Raises:
            InputError: another process has written the same row.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.IntegrityError):
                raise InputError(
                    f"{self.file}, in which another process has written this step",
                    expected="one recorder for each run",
                    hint="stop the other process, then resume",
                ) from error
            raise

    @contextmanager
    def _translate_read_errors(self, description: str) -> Iterator[None]:
        """Replace a reading error in the ``with`` block by a FileCorruptError that contains ``description``."""
        try:
            yield
        except KernelmemError:
            raise
        except READ_ERRORS as error:
            raise FileCorruptError(
                f"{self.file}, {description} ({hashed_files.reason(error)})",
                expected="the file that the recorder wrote",
                hint="restore the file from a copy, or record the run again",
            ) from error


def _check_schema(connection: sqlite3.Connection) -> None:
    """Check that the file has the tables of a tape and nothing else: a view or trigger could run any query.

    Raises:
        ValueError: a table is missing, or something is not part of a tape.
    """
    expected = sqlite3.connect(":memory:")
    try:
        expected.executescript(SCHEMA + AverageLog.SCHEMA)
        tables, stored_tables = (
            dict(c.execute("SELECT type || ' ' || name, sql FROM sqlite_master").fetchall())
            for c in (expected, connection)
        )
    finally:
        expected.close()
    required = {name for name in tables if "averag" not in name}  # formats without averages
    unexpected = {name for name, sql in stored_tables.items() if name not in tables or tables[name] != sql}
    if unexpected or not required <= stored_tables.keys():
        raise ValueError(f"not the tables of a tape: {sorted(unexpected or required - stored_tables.keys())}")


def refuse_existing(directory: str | Path) -> None:
    """Check that the directory does not hold a run yet, before anything is written to it.

    Raises:
        InputError: the directory holds a run; the message says how to resume it.
    """
    if (Path(directory) / FILE).exists():
        raise InputError(
            f"directory {directory} that already holds a run",
            expected="a directory without one",
            hint="pass resume=True to resume that run, or another directory",
        )
