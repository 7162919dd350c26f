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
    """The tables of averages on a tape; empty for a tape without them.

    A row holds sha256(hash of the row before it, hash of all steps up to it, its columns); ``averaged`` holds the SHA-256
    of the file of the averaged model after the last update, with a hash of the same kind. The tape translates errors.
    """

    SCHEMA = """
CREATE TABLE IF NOT EXISTS averages (position INTEGER PRIMARY KEY, step INTEGER NOT NULL, coefficient REAL NOT NULL,
    sha256 TEXT NOT NULL, chain TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS averaged (updates INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, seal TEXT NOT NULL);
"""

    def __init__(self, connection: sqlite3.Connection, genesis: str) -> None:
        self._connection, self._genesis = connection, genesis
        query = "SELECT count(*) FROM sqlite_master WHERE name IN ('averages', 'averaged')"
        self._present = connection.execute(query).fetchone()[0] == 2  # a tape of format 1 has none

    def insert(self, average: Average, *, rows: str) -> None:
        """Add an update after the steps with the hash ``rows``."""
        position, chain = self._last()
        values = (average.after_steps, average.coefficient, average.sha256)
        row = (position, *values, _link(chain, rows, *values))
        self._connection.execute("INSERT INTO averages VALUES (?, ?, ?, ?, ?)", row)

    def read(self, length: int) -> tuple[Average, ...]:
        """Return the updates after at most ``length`` steps."""
        query = "SELECT step, coefficient, sha256 FROM averages WHERE step <= ? ORDER BY position"
        return tuple(Average(*row) for row in self._all(query, length))

    def keep(self, sha256: str) -> list[str]:
        """Record the file of the averaged model after the last update; return the SHA-256 of the files that it replaces."""
        updates, chain = self._last()
        replaced = [row[0] for row in self._all("SELECT sha256 FROM averaged")]
        self._connection.execute("DELETE FROM averaged")
        row = (updates, sha256, _seal(chain, updates, sha256))
        self._connection.execute("INSERT INTO averaged VALUES (?, ?, ?)", row)
        return [old for old in replaced if old != sha256]

    def file(self) -> str | None:
        """Return the SHA-256 of the file after the last update, or None."""
        updates, _ = self._last()
        rows = self._all("SELECT sha256 FROM averaged WHERE updates = ?", updates)
        return rows[0][0] if rows else None

    def truncate(self, count: int) -> None:
        """Delete all but the first ``count`` updates."""
        self._connection.execute("DELETE FROM averages WHERE position >= ?", (count,))
        self._connection.execute("DELETE FROM averaged WHERE updates > ?", (count,))

    def verify(self, chains: dict[int, str]) -> None:
        """Check all hashes, given the hashes ``chains`` of the steps by number; later updates are ignored.

        Raises:
            ValueError: names the update.
        """
        chain, before = self._genesis, 0
        links = {0: chain}
        rows = self._all("SELECT position, step, coefficient, sha256, chain FROM averages ORDER BY position")
        for count, (position, step, coefficient, sha256, stored) in enumerate(rows):
            if step > max(chains):  # recorded since this tape was opened
                break
            columns = (step, coefficient, sha256)
            if position != count or step < before or stored != _link(chain, chains[step], *columns):
                raise ValueError(f"update {count} was altered")
            chain, before = stored, step
            links[count + 1] = chain
        for updates, sha256, stored in self._all("SELECT updates, sha256, seal FROM averaged"):
            if updates in links and stored != _seal(links[updates], updates, sha256):
                raise ValueError("the averaged file does not belong to the updates before it")

    def _last(self) -> tuple[int, str]:
        rows = self._all("SELECT position + 1, chain FROM averages ORDER BY position DESC LIMIT 1")
        return rows[0] if rows else (0, self._genesis)

    def _all(self, query: str, *values: int) -> list[tuple]:
        return self._connection.execute(query, values).fetchall() if self._present else []


def _link(chain: str, rows: str, after_steps: int, coefficient: float, sha256: str) -> str:
    return digest(chain.encode(), rows.encode(), f"average {after_steps} {coefficient!r} {sha256}".encode())


def _seal(chain: str, updates: int, sha256: str) -> str:
    return digest(chain.encode(), f"averaged {updates} {sha256}".encode())
