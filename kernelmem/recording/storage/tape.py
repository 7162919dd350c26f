"""The tape of a run: one SQLite row per training step, chained by hashes to all rows before it."""

import json
import sqlite3
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from torch import Tensor

from kernelmem.core.atomic_files import write_file
from kernelmem.core.batches import Tree
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.storage.average_log import Average, AverageLog
from kernelmem.recording.storage.header import Header
from kernelmem.recording.storage.inputs import StoredInput, stored_sha256
from kernelmem.recording.storage.pytree import tree_from_row_bytes
from kernelmem.recording.storage.step import Row, Step, decode_step, digest, encode_step, link, seal

FILE = "tape.sqlite"
FORMAT = 2  # 1: inputs were single tensors, no averages
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE steps (step INTEGER PRIMARY KEY, facts TEXT NOT NULL, examples BLOB NOT NULL, versions BLOB NOT NULL,
    weights BLOB NOT NULL, random BLOB, chain TEXT NOT NULL);
CREATE TABLE examples (example INTEGER NOT NULL, version INTEGER NOT NULL, step INTEGER NOT NULL, sha256 TEXT NOT NULL,
    x BLOB NOT NULL, y BLOB NOT NULL, PRIMARY KEY (example, version));
CREATE INDEX examples_of_step ON examples (step);
CREATE TABLE checkpoints (step INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, seal TEXT NOT NULL);
"""
ROW = "facts, examples, versions, weights, random"
UNREADABLE = (sqlite3.DatabaseError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError)


class Tape:
    """The file ``tape.sqlite`` of a run.

    Every row holds sha256(hash of the previous row, all its columns, its new inputs), so that :meth:`verify` finds an
    altered, missing or moved row; truncation leaves a shorter valid run. Each step is one transaction with fsync: after a
    crash all acknowledged steps are on disk. Arrays are stored as .npy bytes.
    """

    def __init__(self, directory: str | Path, *, write: bool = False) -> None:
        """Open the tape of a run, read-only unless ``write``.

        Raises:
            InputError: no run in ``directory``, or one in a later format.
            FileCorruptError: a file that is not a tape.
        """
        self.file = Path(directory) / FILE
        if not self.file.is_file():
            raise InputError(
                f"directory {directory} without a {FILE}",
                expected="a run recorded by kernelmem.Recorder",
                hint="check the path, or record the run first (resume=False)",
            )
        self._write = write
        address = f"{self.file.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
        with self._reading("its header"):
            # a Run may be used in worker threads: SQLite serializes their access
            self._connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
            self._finalizer = weakref.finalize(self, self._connection.close)
            rows = self._connection.execute("SELECT key, value FROM meta").fetchall()
            self.meta: Header = {key: json.loads(value) for key, value in rows}
            format_ = int(self.meta["format"])
            self._genesis = digest(*(part.encode() for row in sorted(rows) for part in row))
        if format_ > FORMAT:
            self.close()
            raise InputError(
                f"{self.file} in format {format_}", expected=f"format {FORMAT} at most", hint="upgrade kernelmem"
            )
        with self._reading("its header"):
            if write:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.executescript(AverageLog.SCHEMA)  # a tape of format 1 has none
            self._averages = AverageLog(self._connection, self._genesis)
            self._length = self._count_steps()
        self._chain = self._chain_after(self._length)

    @classmethod
    def create(cls, directory: str | Path, meta: Header, *, initial: str) -> "Tape":
        """Create a tape with the header ``meta`` and the SHA-256 of the checkpoint of the initial weights.

        Raises:
            InputError: a directory that already holds a run, or is not writable.
        """
        file = Path(directory) / FILE
        refuse_existing(directory)
        content = {key: json.dumps(value, sort_keys=True) for key, value in {**meta, "format": FORMAT}.items()}
        genesis = digest(*(part.encode() for row in sorted(content.items()) for part in row))
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            connection.executescript(SCHEMA + AverageLog.SCHEMA)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", content.items())
            connection.execute("INSERT INTO checkpoints VALUES (0, ?, ?)", (initial, seal(genesis, 0, initial)))
            write_file(file, connection.serialize())  # atomic
        finally:
            connection.close()
        return cls(directory, write=True)

    @property
    def head(self) -> str:
        """The hash of the last row, and so of all rows before it."""
        return self._chain

    def __len__(self) -> int:
        """Return the number of steps when the tape was opened, plus those appended since."""
        return self._length

    def append(self, step: Step, inputs: Sequence[StoredInput] = (), *, checkpoint: str | None = None) -> None:
        """Commit one step, its new inputs, and the SHA-256 of the checkpoint after it, if there is one.

        Raises:
            InputError: a step that is not the next one, or that another process has written.
        """
        if step.index != self._length:
            raise InputError(
                f"step {step.index} for a tape of {self._length} steps",
                expected=f"step {self._length}",
                hint="append the steps in order",
            )
        row = encode_step(step)
        chain = link(self._chain, row, ((new.example, new.version, new.sha256) for new in inputs))
        with self._transaction():
            self._connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)", (step.index, *row, chain))
            self._connection.executemany(
                "INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?)",
                [(new.example, new.version, step.index, new.sha256, new.x, new.y) for new in inputs],
            )
            if checkpoint is not None:
                self._insert_checkpoint(chain, step.index + 1, checkpoint)
        self._chain, self._length = chain, self._length + 1

    def keep(self, checkpoint: str) -> None:
        """Commit the SHA-256 of a checkpoint of the weights after the last step."""
        with self._transaction():
            self._insert_checkpoint(self._chain, self._length, checkpoint)

    def append_average(self, coefficient: float, sha256: str) -> None:
        """Commit an update of the averaged weights after the last step."""
        with self._transaction():
            self._averages.insert(Average(self._length, coefficient, sha256), rows=self._chain)

    def averages(self) -> tuple[Average, ...]:
        """Return the updates of the averaged weights, in order."""
        with self._reading("its averages"):
            return self._averages.read(self._length)

    def keep_averaged(self, sha256: str) -> list[str]:
        """Commit the SHA-256 of the averaged model's file after the last update; return those of the replaced files."""
        with self._transaction():
            return self._averages.keep(sha256)

    def averaged_file(self) -> str | None:
        """Return the SHA-256 of the averaged model's file after the last update, or None if it was not written."""
        with self._reading("its averages"):
            return self._averages.file()

    def truncate(self, length: int, *, averages: int = 0) -> None:
        """Delete the steps from ``length`` on, with their inputs and checkpoints, and later averages."""
        with self._transaction():
            self._averages.truncate(averages)
            self._connection.execute("DELETE FROM steps WHERE step >= ?", (length,))
            self._connection.execute("DELETE FROM examples WHERE step >= ?", (length,))
            self._connection.execute("DELETE FROM checkpoints WHERE step > ?", (length,))
        self._length = length
        self._chain = self._chain_after(length)

    def step(self, index: int) -> Step:
        """Read one step.

        Raises:
            FileCorruptError: a row that is missing or unreadable.
        """
        with self._reading(f"step {index}"):
            return decode_step(index, cast(Row, self._one(f"SELECT {ROW} FROM steps WHERE step = ?", index)))

    def inputs(self, step: Step) -> tuple[Tree, Tensor]:
        """Return the inputs x (B, ...), a tensor or a tree of tensors, and the targets y (B, ...) of a step.

        Raises:
            FileCorruptError: an input that is missing or unreadable.
        """
        query = "SELECT x, y FROM examples WHERE example = ? AND version = ?"
        with self._reading(f"the inputs of step {step.index}"):
            keys = zip(step.examples.tolist(), step.versions.tolist(), strict=True)
            x, y = zip(*(self._one(query, *key) for key in keys), strict=True)
            return tree_from_row_bytes(x), tree_from_row_bytes(y)

    def known_inputs(self) -> list[tuple[int, int, str]]:
        """Return (example, version, sha256) of all stored inputs."""
        with self._reading("its examples"):
            return self._connection.execute("SELECT example, version, sha256 FROM examples").fetchall()

    def checkpoints(self) -> dict[int, str]:
        """Return the SHA-256 of each checkpoint by step, in order."""
        with self._reading("its checkpoints"):
            query = "SELECT step, sha256 FROM checkpoints WHERE step <= ? ORDER BY step"
            return dict(self._connection.execute(query, (self._length,)).fetchall())

    def verify(self) -> None:
        """Read the whole tape and check all hashes; O(bytes of the tape).

        Raises:
            FileCorruptError: names the first step with an altered row or new input.
        """
        chain = self._genesis
        chains = {0: chain}
        for index in range(self._length):
            with self._reading(f"step {index}"):
                row = self._one(f"SELECT {ROW}, chain FROM steps WHERE step = ?", index)
                columns = cast(Row, row[:5])
                chain = link(chain, columns, self._checked_inputs(index))
                if chain != row[5]:
                    raise ValueError("its row, or the header before it, was altered")
                decode_step(index, columns)
                chains[index + 1] = chain
        with self._reading("its checkpoints"):
            rows = self._connection.execute("SELECT step, sha256, seal FROM checkpoints ORDER BY step").fetchall()
            inputs = self._one("SELECT count(*) FROM examples WHERE step NOT BETWEEN 0 AND ?", self._length - 1)[0]
            # a recorder may have added rows beyond the end since this tape was opened
            if (inputs or any(row[0] > self._length for row in rows)) and self._count_steps() <= self._length:
                raise ValueError(f"inputs or checkpoints of steps after the last one, {self._length - 1}")
            if not rows or rows[0][0] != 0:
                raise ValueError("the initial one is missing")
        for step, sha256, sealed in rows:
            with self._reading(f"the checkpoint of step {step}"):
                if step <= self._length and sealed != seal(chains[step], step, sha256):
                    raise ValueError("it does not belong to the steps before it")
        with self._reading("its averages"):
            self._averages.verify(chains)
        with self._reading("its pages"):
            # also covers the indexes, which the hashes do not
            report = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if report != "ok":
                raise ValueError(report)

    def close(self) -> None:
        """Close the file; for a tape opened to write, merge its write-ahead log into it."""
        if self._write and self._finalizer.alive:
            with suppress(sqlite3.Error):  # another process is reading the run: the log stays
                self._connection.execute("PRAGMA journal_mode=DELETE")
        self._finalizer()

    def _count_steps(self) -> int:
        return self._one("SELECT count(*) FROM steps")[0]

    def _checked_inputs(self, index: int) -> Iterator[tuple[int, int, str]]:
        query = "SELECT example, version, sha256, x, y FROM examples WHERE step = ?"
        for example, version, sha256, x, y in self._connection.execute(query, (index,)):
            if stored_sha256(x, y) != sha256:
                raise ValueError(f"input {version} of example {example} was altered")
            yield example, version, sha256

    def _chain_after(self, length: int) -> str:
        if length == 0:
            return self._genesis
        with self._reading(f"step {length - 1}"):
            return str(self._one("SELECT chain FROM steps WHERE step = ?", length - 1)[0])

    def _one(self, query: str, *values: int) -> tuple:
        row = self._connection.execute(query, values).fetchone()
        if row is None:
            raise ValueError("the row is missing")
        return row

    def _insert_checkpoint(self, chain: str, step: int, sha256: str) -> None:
        self._connection.execute("INSERT INTO checkpoints VALUES (?, ?, ?)", (step, sha256, seal(chain, step, sha256)))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
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
    def _reading(self, part: str) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            raise FileCorruptError(
                f"{self.file}, {part} ({error})",
                expected="the file that the recorder wrote",
                hint="restore the file from a copy, or record the run again",
            ) from error


def refuse_existing(directory: str | Path) -> None:
    """Check that the directory does not hold a run yet, before anything is written to it.

    Raises:
        InputError: says how to resume that run.
    """
    if (Path(directory) / FILE).exists():
        raise InputError(
            f"directory {directory} that already holds a run",
            expected="a directory without one",
            hint="pass resume=True to resume that run, or another directory",
        )
