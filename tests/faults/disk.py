"""Disks that fail: the k-th operation of the package or of SQLite raises; a model of what a power failure may leave."""

import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from kernelmem.core.files import file_system
from tests.faults.sqlite_files import observed_files

MESSAGES = {"ENOSPC": "database or disk is full", "EIO": "disk I/O error", "EACCES": "unable to open database file"}


class Disk:
    """Counts the operations of the package, and the statements and file operations of SQLite, and lets some of them fail."""

    def __init__(self, fails=lambda k: False, code=5):
        self.fails, self.code = fails, code
        self.trace = []  # (operation, path, data)

    def operation(self, name, path, data=b""):
        """Note an operation, or let it fail."""
        k = len(self.trace)
        self.trace.append((name, Path(path), bytes(data)))
        if self.fails(k):
            raise OSError(self.code, os.strerror(self.code))

    @contextmanager
    def mounted(self) -> Iterator["Disk"]:
        """Use this disk in the ``with`` block."""
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql, *parameters):
                disk.statement(sql)
                return super().execute(sql, *parameters)

            def executemany(self, sql, *parameters):
                disk.statement(sql)
                return super().executemany(sql, *parameters)

            def executescript(self, sql):
                disk.statement(sql)
                return super().executescript(sql)

        file_system.connection_class = Connection
        files = observed_files()
        try:
            with file_system.observed(self.operation), files.mounted(self.file_operation) if files else nullcontext():
                yield self
        finally:
            file_system.connection_class = sqlite3.Connection

    def file_operation(self, name, path, offset, data):
        """Note an operation of SQLite on a file, or let it fail; SQLite itself ignores that a directory cannot be synced."""
        if name != "sync_directory":
            self.operation(f"sqlite {name}", path)

    def statement(self, sql):
        """Note a statement of SQLite, or let it fail as on a disk with this error."""
        try:
            self.operation("execute", "statement", sql.encode())
        except OSError as error:
            names = {28: "ENOSPC", 13: "EACCES"}
            raise sqlite3.OperationalError(MESSAGES[names.get(self.code, "EIO")]) from error


def possible_states(trace, before):
    """Yield what a power failure at the end of ``trace`` may leave: a dict from path to bytes (None: a directory).

    ``before`` is such a dict, all of it durable. POSIX promises the bytes of a file after fsync of the file, and an entry of
    a directory (created, renamed, removed) after fsync of the directory. Other bytes may be lost, torn or zero, and of the
    other entries any of the changes may be on disk.
    """
    content = {}  # file, by its first path -> [(bytes, durable)]
    names = {}  # path -> first path
    durable = dict(before)  # path -> bytes, None (directory) or first path in a tuple
    pending = []  # (directory, [(path, value or "removed")])
    for operation, path, data in trace:
        if operation == "mkdir":
            pending.append((path.parent, [(path, None)]))
        elif operation == "create":
            names[path], content[path] = path, (b"", True)
            pending.append((path.parent, [(path, (path,))]))
        elif operation == "write":
            content[names[path]] = (content[names[path]][0] + data, False)
        elif operation == "fsync" and path in names:
            content[names[path]] = (content[names[path]][0], True)
        elif operation == "fsync":
            for directory, changes in pending:
                if directory == path:
                    apply(durable, changes)
            pending = [change for change in pending if change[0] != path]
        elif operation == "rename":
            target = Path(os.fsdecode(data))
            names[target] = names.pop(path)
            pending.append((path.parent, [(path, "removed"), (target, (names[target],))]))
        elif operation == "unlink":
            pending.append((path.parent, [(path, "removed")]))
        else:
            raise ValueError(operation)
    versions = {
        file: [whole] if is_durable else [b"", whole[: len(whole) // 2], bytes(len(whole)), whole]
        for file, (whole, is_durable) in content.items()
    }
    for kept in subsets(pending):
        entries = dict(durable)
        for _, changes in kept:
            apply(entries, changes)
        reachable = {
            path: value
            for path, value in entries.items()
            if all(entries.get(parent, "lost") is None for parent in parents(path, before))
        }
        uncertain = sorted({value[0] for value in reachable.values() if isinstance(value, tuple)})
        for chosen in itertools.product(*(versions[file] for file in uncertain)):
            of = dict(zip(uncertain, chosen, strict=True))
            yield {path: of[value[0]] if isinstance(value, tuple) else value for path, value in reachable.items()}


def subsets(changes):
    """Yield the changes that may be on disk: any of them if they are few, else the first ones."""
    if len(changes) > 5:
        yield from (changes[:k] for k in range(len(changes) + 1))
        return
    for keep in itertools.product([True, False], repeat=len(changes)):
        yield [change for change, is_kept in zip(changes, keep, strict=True) if is_kept]


def apply(entries, changes):
    for path, value in changes:
        if value == "removed":
            entries.pop(path, None)
        else:
            entries[path] = value


def parents(path, before):
    """Return the parents of a path below the directories that were there before."""
    root = min(before, key=lambda p: len(p.parts))
    return [parent for parent in path.parents if root in parent.parents]
