"""kernelmem.recording.storage.directory: crashes, full disks and other processes leave a run that can be read."""

import copy
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.recording.storage.directory import DirectoryLock
from kernelmem.recording.storage.tape import FILE


def run_python(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


DIE_WITH_A_HOT_JOURNAL = """
    import os, signal, sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA cache_size=2")  # pages of the open transaction are written, after the journal
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE steps SET facts = facts || hex(zeroblob(3000)), chain = 'x'")
    connection.execute("UPDATE meta SET value = value || ' '")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def hot(lab):
    """A run whose process was killed while pages were written: the file is altered, the journal undoes that."""
    directory, model, _ = lab.record(steps=6)
    original = (directory / FILE).read_bytes()
    ended = run_python(DIE_WITH_A_HOT_JOURNAL, directory / FILE)
    assert ended.returncode == -signal.SIGKILL
    assert (directory / f"{FILE}-journal").stat().st_size > 512
    assert (directory / FILE).read_bytes() != original
    return directory, model


def test_a_hot_journal_is_rolled_back_on_opening(hot):
    run = Run.open(hot[0])
    assert len(run) == 6
    run.verify()


def test_a_run_with_a_hot_journal_is_resumed(lab, hot):
    directory, model = hot
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, directory, loss="cross_entropy", resume=True) as recorder:
        lab.loop().run(model, optimizer, recorder, start=recorder.restore(), steps=8)
    run = Run.open(directory)
    run.verify()
    assert len(run) == 8


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only directories")
def test_a_hot_journal_in_a_read_only_directory_is_refused(hot):
    hot[0].chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"read-only directory.*Hint: copy the directory"):
            Run.open(hot[0])
    finally:
        hot[0].chmod(0o700)


def test_two_recorders_in_one_directory(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = copy.deepcopy(model)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        options = {"directory": lab.directory / "run", "loss": "cross_entropy"}
        with pytest.raises(InputError, match="already holds a run"):
            Recorder(other, torch.optim.SGD(other.parameters(), lr=0.1), **options)
        second = Recorder(other, torch.optim.SGD(other.parameters(), lr=0.1), **options, resume=True)
        with pytest.raises(InputError, match="another recorder is recording"):
            second.__enter__()
        lab.loop().run(model, optimizer, recorder, steps=2)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert len(run) == 2


def test_recorders_that_start_together(lab):
    """Both have seen an empty directory: the second one neither writes nor deletes anything."""
    model, other = lab.network(), lab.network(seed=1)
    first, second = (
        Recorder(m, torch.optim.SGD(m.parameters(), lr=0.1), lab.directory / "run", loss="cross_entropy")
        for m in (model, other)
    )
    lock = DirectoryLock(lab.directory / "run")
    with pytest.raises(InputError, match="another recorder is recording"):
        second.__enter__()
    lock.release()
    with first:
        before = {path.name: path.read_bytes() for path in (lab.directory / "run").rglob("*") if path.is_file()}
        with pytest.raises(InputError, match="already holds a run"):
            second.__enter__()
        assert before == {path.name: path.read_bytes() for path in (lab.directory / "run").rglob("*") if path.is_file()}


def test_a_killed_recorder_does_not_hold_the_directory(lab):
    program = """
        import fcntl, os, signal, sys
        os.mkdir(sys.argv[1])
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(program, lab.directory / "run").returncode == -signal.SIGKILL
    DirectoryLock(lab.directory / "run").release()


FULL_DISK = """
    import resource, signal, sys
    import torch
    from torch import nn
    import torch.nn.functional as F
    from kernelmem.core.errors import InputError
    from kernelmem.recording.recorder import Recorder
    from kernelmem.recording.run import Run

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    torch.manual_seed(0)
    model, x, y = nn.Linear(300, 3), torch.randn(40, 300), torch.arange(40) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def step(t):
        index = (torch.arange(8) + 8 * t) % 40
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        recorder.step(index, x[index], y[index])
    with Recorder(model, optimizer, sys.argv[1], loss="cross_entropy") as recorder:
        step(0)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), limit[1]))  # no file may grow beyond this
        done = 1
        try:
            for t in range(1, 5):
                step(t)
                done += 1
        except InputError as error:
            print(error)
            assert "cannot be written" in str(error) and "MiB free on its disk" in str(error)
        else:
            raise SystemExit("the disk was not full")
        assert len(Run.open(sys.argv[1])) == done
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert recorder.restore() == done
        for t in range(done, 6):
            step(t)
    run = Run.open(sys.argv[1])
    run.verify()
    assert len(run) == 6
"""


def test_a_full_disk_is_named_and_recording_goes_on_afterwards(lab):
    ended = run_python(FULL_DISK, lab.directory / "run", 60_000)  # bytes: the write-ahead log does not fit
    assert ended.returncode == 0, ended.stdout + ended.stderr


FULL_AT_CLOSE = """
    import resource, signal, sys
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    from tests.recording.conftest import network, Loop
    import torch
    from kernelmem.recording.recorder import Recorder
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, sys.argv[1], loss="cross_entropy") as recorder:
        Loop().run(model, optimizer, recorder, steps=5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
"""


def test_a_disk_that_is_full_at_the_end_leaves_a_run_that_can_be_read(lab):
    run_python(FULL_AT_CLOSE, lab.directory / "run")
    run = Run.open(lab.directory / "run")
    run.verify()
    assert len(run) == 5


def alter(directory, *statements):
    connection = sqlite3.connect(directory / FILE, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statements",
    [
        ("ALTER TABLE meta RENAME TO steps_", "CREATE VIEW meta AS SELECT key, value FROM steps_"),
        (
            "ALTER TABLE meta RENAME TO m",
            "CREATE VIEW meta AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
            " SELECT x AS key, x AS value FROM c",
        ),
        ("CREATE TRIGGER t AFTER INSERT ON steps BEGIN DELETE FROM steps; END",),
        ("CREATE TABLE other (x)",),
        ("UPDATE meta SET value = '5' WHERE key = 'parameters'",),
        ("UPDATE meta SET value = '[[1, 2]]' WHERE key = 'parameters'",),
        ("UPDATE meta SET value = '7' WHERE key = 'loss'",),
        ("UPDATE meta SET value = '\"median\"' WHERE key = 'reduction'",),
        ("UPDATE meta SET value = '[' || value || ']' WHERE key = 'format'",),
        ("UPDATE meta SET value = replace(hex(zeroblob(50000)), '0', '[') WHERE key = 'defaults'",),
        ("DELETE FROM meta WHERE key = 'initial'",),
    ],
)
def test_an_altered_header_or_schema_is_refused_on_opening(lab, statements):
    directory, _, _ = lab.record(steps=2)
    alter(directory, *statements)
    with pytest.raises(FileCorruptError, match="header"):
        Run.open(directory)


@pytest.mark.parametrize(
    "facts",
    [
        "[]",
        "5",
        "null",
        "json_set(facts, '$.groups', json('[1, 2]'))",
        "json_set(facts, '$.groups', json('{}'))",
        "json_set(facts, '$.groups[0].lr', 'fast')",
        "json_set(facts, '$.groups[0].momentum', json('[]'))",
        "json_set(facts, '$.groups[0].parameters', json('[3]'))",
        "json_set(facts, '$.scale', 'big')",
        "json_set(facts, '$.skipped', 3)",
        "json_set(facts, '$.after', json('{}'))",
        "json_remove(facts, '$.evaluating')",
    ],
)
def test_an_altered_step_is_refused_on_reading(lab, facts):
    directory, _, _ = lab.record(steps=2)
    value = facts if facts.startswith("json_") else f"'{facts}'"
    alter(directory, f"UPDATE steps SET facts = {value} WHERE step = 1")
    run = Run.open(directory)
    assert run.steps[0].index == 0
    with pytest.raises(FileCorruptError, match="step 1"):
        run.steps[1]


def test_a_run_is_pickled_by_its_path(lab):
    run = Run.open(lab.record(steps=3)[0])
    for other in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert other.tape.head == run.tape.head
        assert torch.equal(other.batch(1)[0], run.batch(1)[0])
    directory = run.path
    content = pickle.dumps(run)
    run.tape.close()
    shutil.rmtree(directory)
    with pytest.raises(InputError, match="without a tape"):
        pickle.loads(content)


def test_the_recorder_names_the_disk_if_the_first_checkpoint_does_not_fit(lab, monkeypatch):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr("kernelmem.recording.storage.checkpoints.write_file", full_disk)
    with pytest.raises(InputError, match=r"cannot be written .*No space left"):
        Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy").__enter__()
    F.cross_entropy(model(lab.batch(0)[1]), lab.batch(0)[2]).backward()
    optimizer.step()  # no hook is left


def full_disk(*_):
    raise OSError(28, "No space left on device")
