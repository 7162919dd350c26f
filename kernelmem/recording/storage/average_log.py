"""Updates of averaged weights on the tape: one row per update, chained by hashes to all rows before it."""

import sqlite3
from dataclasses import dataclass

from kernelmem.recording.storage.step import digest


@dataclass(frozen=True)
class Average:
    """One update of the averaged weights: w_avg <- w_avg + coefficient (w - w_avg)."""

    after_steps: int  # w are the weights after this many steps
    coefficient: float
    sha256: str  # of the averaged parameters after the update


class AverageLog:
    """The tables ``averages`` and ``averaged`` in the SQLite file of a run; missing tables are read as empty ones.

    Each row of ``averages`` is one update, with sha256(hash of the row before it, hash of all steps up to it, its columns).
    ``averaged`` holds the SHA-256 of the file of the averaged model after the last update, with a hash of the same kind.
    Errors are those of sqlite3; the caller translates them.
    """

    SCHEMA = """
CREATE TABLE IF NOT EXISTS averages (position INTEGER PRIMARY KEY, step INTEGER NOT NULL, coefficient REAL NOT NULL,
    sha256 TEXT NOT NULL, chain TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS averaged (updates INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, seal TEXT NOT NULL);
"""

    def __init__(self, connection: sqlite3.Connection, header_hash: str) -> None:
        self._connection, self._header_hash = connection, header_hash
        query = "SELECT count(*) FROM sqlite_master WHERE name IN ('averages', 'averaged')"
        self._tables_exist = connection.execute(query).fetchone()[0] == 2  # a tape of format 1 has none

    def insert(self, average: Average, *, steps_hash: str) -> None:
        """Add an update after the last one; ``steps_hash`` is the hash of all training steps before it."""
        position, previous_hash = self._next_position()
        values = (average.after_steps, average.coefficient, average.sha256)
        row = (position, *values, _update_hash(previous_hash, steps_hash, *values))
        self._connection.execute("INSERT INTO averages VALUES (?, ?, ?, ?, ?)", row)

    def read(self, length: int) -> tuple[Average, ...]:
        """Return, in order, the updates that were made after at most ``length`` training steps."""
        query = "SELECT step, coefficient, sha256 FROM averages WHERE step <= ? ORDER BY position"
        return tuple(Average(*row) for row in self._fetch_rows(query, length))

    def keep(self, sha256: str) -> list[str]:
        """Record ``sha256``, that of the file of the averaged model after the last update.

        Returns the SHA-256 of the files recorded before, which this one replaces.
        """
        updates, last_hash = self._next_position()
        saved_sha256 = [row[0] for row in self._fetch_rows("SELECT sha256 FROM averaged")]
        self._connection.execute("DELETE FROM averaged")
        row = (updates, sha256, _file_hash(last_hash, updates, sha256))
        self._connection.execute("INSERT INTO averaged VALUES (?, ?, ?)", row)
        return [file_sha256 for file_sha256 in saved_sha256 if file_sha256 != sha256]

    def file(self) -> str | None:
        """Return the SHA-256 of the file of the averaged model after the last update, or None if none was recorded."""
        updates, _ = self._next_position()
        rows = self._fetch_rows("SELECT sha256 FROM averaged WHERE updates = ?", updates)
        return rows[0][0] if rows else None

    def truncate(self, count: int) -> None:
        """Delete all but the first ``count`` updates, and the record of a file after a deleted one."""
        self._connection.execute("DELETE FROM averages WHERE position >= ?", (count,))
        self._connection.execute("DELETE FROM averaged WHERE updates > ?", (count,))

    def verify(self, step_hashes: dict[int, str]) -> None:
        """Check the hashes of all updates; ``step_hashes`` maps a number t to the hash of the first t training steps.

        Updates after the last of these steps are ignored.

        Raises:
            ValueError: a hash differs; the message names the update.
        """
        previous_hash, previous_step = self._header_hash, 0
        update_hashes = {0: previous_hash}
        rows = self._fetch_rows("SELECT position, step, coefficient, sha256, chain FROM averages ORDER BY position")
        for expected_position, (position, step, coefficient, sha256, stored_hash) in enumerate(rows):
            if step > max(step_hashes):  # recorded since this tape was opened
                break
            columns = (step, coefficient, sha256)
            if (
                position != expected_position
                or step < previous_step
                or stored_hash != _update_hash(previous_hash, step_hashes[step], *columns)
            ):
                raise ValueError(f"update {expected_position} was altered")
            previous_hash, previous_step = stored_hash, step
            update_hashes[expected_position + 1] = previous_hash
        for updates, sha256, stored_hash in self._fetch_rows("SELECT updates, sha256, seal FROM averaged"):
            if updates in update_hashes and stored_hash != _file_hash(update_hashes[updates], updates, sha256):
                raise ValueError("the averaged file does not belong to the updates before it")

    def _next_position(self) -> tuple[int, str]:
        """Return the position of the next update (0 for the first) and the hash of the last one, or of the header."""
        rows = self._fetch_rows("SELECT position + 1, chain FROM averages ORDER BY position DESC LIMIT 1")
        return rows[0] if rows else (0, self._header_hash)

    def _fetch_rows(self, query: str, *values: int) -> list[tuple]:
        """Return all rows of an SQL query with the given values; an empty list if the tables do not exist."""
        return self._connection.execute(query, values).fetchall() if self._tables_exist else []


def _update_hash(previous_hash: str, steps_hash: str, after_steps: int, coefficient: float, sha256: str) -> str:
    """Return the hash of an update, which depends on the update before it and on all training steps before it."""
    return digest(
        previous_hash.encode(), steps_hash.encode(), f"average {after_steps} {coefficient!r} {sha256}".encode()
    )


def _file_hash(previous_hash: str, updates: int, sha256: str) -> str:
    """Return the hash that binds the file ``sha256`` to the update before it, the one with number ``updates``."""
    return digest(previous_hash.encode(), f"averaged {updates} {sha256}".encode())
