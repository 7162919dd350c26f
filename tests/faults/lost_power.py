"""Traces of file operations, those of SQLite included, and what a power failure may leave of their files."""

import os
from contextlib import contextmanager
from pathlib import Path

from kernelmem.core.files import file_system
from tests.faults.sqlite_files import observed_files

SECTOR = 512  # bytes that a disk writes whole or not at all


@contextmanager
def traced():
    """Yield the list of the operations of the ``with`` block: (operation, path, offset, data)."""
    steps = []

    def note(operation, path, data):
        if not (operation == "create" and Path(path).is_dir()):  # a probe that is removed at once
            steps.append((operation, Path(path), 0, bytes(data)))

    with file_system.observed(note), observed_files().mounted(lambda *step: steps.append(step)):
        yield steps


@contextmanager
def unsynced():
    """Sync nothing in the ``with`` block: a test that reads what it has just written does not have to wait for the disk."""
    fsync = os.fsync
    os.fsync = lambda descriptor: None
    try:
        with observed_files().mounted(None, sync=False):
            yield
    finally:
        os.fsync = fsync


class File:
    """Bytes that are on disk, and writes (offset, data) and truncations (size, None) that may be."""

    def __init__(self):
        self.durable, self.pending, self.size = bytearray(), [], 0

    def write(self, offset, data):
        self.pending.append((offset, data))
        self.size = max(self.size, offset + len(data))

    def truncate(self, size):
        self.pending.append((size, None))
        self.size = size

    def sync(self):
        apply(self.durable, self.pending)
        self.pending = []

    def left(self, rng):
        """Return bytes that a power failure may leave."""
        content = bytearray(self.durable)
        apply(content, list(torn(some_of(self.pending, rng), rng)))
        return bytes(content)


def apply(content, changes):
    for offset, data in changes:
        if data is None:
            del content[offset:]
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        if data is not None:
            content[offset : offset + len(data)] = data


def some_of(changes, rng):
    """Return all, none, the first or any of the changes, in their order."""
    kind = rng.choice(["all", "none", "first", "any", "any"])
    if kind == "first":
        return changes[: rng.randint(0, len(changes))]
    return [change for change in changes if kind == "all" or (kind == "any" and rng.random() < 0.5)]


def torn(changes, rng):
    """Yield the changes, some of the writes without some of their sectors."""
    for offset, data in changes:
        if data is None or rng.random() < 0.5:
            yield offset, data
            continue
        start = 0
        while start < len(data):
            stop = min(len(data), start + SECTOR - (offset + start) % SECTOR)
            if rng.random() < 0.5:
                yield offset + start, data[start:stop]
            start = stop


def left_by_power_failure(steps, rng):
    """Return a dict from path to bytes that a power failure after these steps may leave.

    POSIX promises the bytes of a file after a sync of the file, and the entries of a directory after a sync of the directory.
    """
    files, names, durable, pending = [], {}, {}, []
    for operation, path, offset, data in steps:
        if operation == "create" or (operation == "open" and data):
            names[path] = len(files)
            files.append(File())
            pending.append([(path, names[path])])
        elif operation == "write" and path in names:
            file = files[names[path]]
            file.write(offset if path.suffix != ".tmp" else file.size, data)  # the package itself only appends
        elif operation == "truncate":
            files[names[path]].truncate(offset)
        elif operation in ("sync", "fsync") and path in names:
            files[names[path]].sync()
        elif operation in ("sync_directory", "fsync"):
            for changes in pending:
                if changes[0][0].parent == path:
                    durable.update(changes)
            pending = [changes for changes in pending if changes[0][0].parent != path]
        elif operation in ("delete", "unlink"):
            names.pop(path, None)
            pending.append([(path, None)])
        elif operation == "rename":
            target = Path(os.fsdecode(data))
            names[target] = names.pop(path)
            pending.append([(path, None), (target, names[target])])
    for changes in some_of(pending, rng):
        durable.update(changes)
    return {path: files[number].left(rng) for path, number in durable.items() if number is not None}


def put_back(state, old, new):
    """Write files that were below the directory ``old`` below ``new``."""
    for path, content in state.items():
        if old in path.parents:
            target = new / path.relative_to(old)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
