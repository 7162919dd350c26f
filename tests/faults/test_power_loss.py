"""Power failures: what was acknowledged is on disk, and before that the old files are whole."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.auditing.schema import files as report_files
from kernelmem.core.files import file_system
from kernelmem.core.files.atomic_files import write_file, write_files
from kernelmem.recording.storage.checkpoints import Checkpoint, write_checkpoint
from tests.faults.disk import Disk, possible_states

RESULT = km.spectrum(np.eye(3))


def tree(root):
    """Return a dict from every path below ``root`` to its bytes, None for a directory."""
    return {path: None if path.is_dir() else path.read_bytes() for path in (root, *root.rglob("*"))}


def write_report(directory, name):
    rows = f"rows of {name}".encode()
    document = json.dumps({"name": name, "files": {f"{name}.npz": hashlib.sha256(rows).hexdigest()}})
    report_files.write_report_files(
        directory, document, {f"{name}.npz": rows}, lambda: f"page of {name}", overwrite=True
    )


def check_one_file(state, root, before, after, *, acknowledged):
    """Every file is the old one or the new one."""
    for path in {*before, *after}:
        allowed = [after[path]] if acknowledged and path in after else [before.get(path, "no"), after.get(path, "no")]
        assert state.get(path, "no") in allowed, path


def check_report(state, root, before, after, *, acknowledged):
    """The files are those of one report."""
    names = {path.name: content for path, content in state.items() if content and not path.name.startswith(".")}
    document = json.loads(names.pop("audit.json", '{"name": null, "files": {}}'))
    if acknowledged:
        assert names.keys() == {"audit.html", "new.npz"}
    page = names.pop("audit.html", None)
    assert page in (None, f"page of {document['name']}".encode())
    for name, content in names.items():
        assert hashlib.sha256(content).hexdigest() == document["files"].get(name)


WRITERS = {
    "result": (lambda root: RESULT.save(root / "r.safetensors"), check_one_file),
    "several": (lambda root: write_files(root, {"a": "new a", "b": "new b"}), check_one_file),
    "directories": (lambda root: write_file(root / "x" / "y" / "z", "deep"), check_one_file),
    "checkpoint": (
        lambda root: write_checkpoint(root, 3, Checkpoint({"w": torch.ones(2)}, {}, torch.get_rng_state()[:8])),
        check_one_file,
    ),
    "report": (lambda root: write_report(root, "new"), check_report),
}


def traced(root, writer):
    """Return (trace, tree before, tree after) of a writer that replaces older files."""
    root.mkdir(exist_ok=True)
    for name in ("r.safetensors", "a", "b"):
        (root / name).write_text(f"old {name}")
    if writer == "report":
        for name in ("r.safetensors", "a", "b"):
            (root / name).unlink()
        write_report(root, "old")
    before = tree(root)
    with Disk().mounted() as disk:
        WRITERS[writer][0](root)
    trace = [step for step in disk.trace if not (step[0] == "create" and step[1] == root)]  # the probe of the directory
    return trace, before, tree(root)


def check_power_failures(root, writer, trace, before, after):
    """Check every state that a power failure after any number of operations may leave; return their number."""
    count = 0
    for stop in range(len(trace) + 1):
        for state in possible_states(trace[:stop], before):
            count += 1
            WRITERS[writer][1](state, root, before, after, acknowledged=stop == len(trace))
    return count


@pytest.mark.parametrize("writer", WRITERS)
def test_a_power_failure_leaves_the_old_or_the_new_files(tmp_path, writer):
    root = tmp_path / "root"
    trace, before, after = traced(root, writer)
    assert check_power_failures(root, writer, trace, before, after) > 10


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("forgotten", ["files", "directories"])
def test_without_fsync_this_test_fails(tmp_path, writer, forgotten):
    root = tmp_path / "root"
    trace, before, after = traced(root, writer)
    directories = {path for path, content in (before | after).items() if content is None} | {root.parent}
    shortened = [
        step for step in trace if step[0] != "fsync" or (step[1] in directories) != (forgotten == "directories")
    ]
    assert len(shortened) < len(trace)
    with pytest.raises((AssertionError, ValueError)):  # ValueError: a torn document
        check_power_failures(root, writer, shortened, before, after)


def test_the_trace_is_what_happens(tmp_path, monkeypatch):
    """Every fsync in the trace is one of the operating system."""
    synced = []
    fsync = file_system.os.fsync
    monkeypatch.setattr(file_system.os, "fsync", lambda descriptor: synced.append(fsync(descriptor)))
    trace, _, _ = traced(tmp_path / "root", "directories")
    assert len(synced) == sum(step[0] == "fsync" for step in trace)


@pytest.mark.parametrize("kind", ["tape", "store"])
def test_sqlite_syncs_every_transaction(tmp_path, kind, small_run):
    if kind == "tape":
        from kernelmem.recording.storage.tape import Tape

        opened = Tape(small_run, write=True)
        connection = opened._connection
    else:
        opened = km.KernelStore.create(tmp_path / "k.sqlite", {"a": 1}, 2)
        connection = opened._tiles._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: the log is synced at every commit
    opened.close()


def test_paths_are_those_of_the_trace(tmp_path):
    trace, _, _ = traced(tmp_path / "root", "result")
    assert all(isinstance(path, Path) for _, path, _ in trace)
    assert [operation for operation, _, _ in trace] == ["create", "write", "fsync", "fsync", "rename", "fsync"]
