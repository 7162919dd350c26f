"""Power failures inside of SQLite: what was acknowledged is on disk, and the rest can be computed again."""

import random
import shutil
import sqlite3
import time

import pytest
import torch

import kernelmem as km
from kernelmem.core.files import file_system
from kernelmem.kernels.store import database, header
from kernelmem.recording import Run
from tests.faults.conftest import train
from tests.faults.lost_power import left_by_power_failure, put_back, traced, unsynced
from tests.faults.sqlite_files import observed_files

pytestmark = pytest.mark.skipif(observed_files() is None, reason="this SQLite does not give access to its file system")

KERNEL = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FACTS = {"a": 1}


class Store:
    """A store that is written in two sessions, with a log that is merged in between."""

    def write(self, root, acknowledge):
        for n in (4, 9):
            if n == 4:
                options = {"tile": 2, "dtype": torch.float64, "symmetric": False}
                store = km.KernelStore.create(root / "k", FACTS, 6, **options)
            else:
                store = km.KernelStore.open(root / "k", FACTS, write=True)
            with store:
                self.fill(store, n, acknowledge)

    def fill(self, store, n, acknowledge):
        missing = store.missing()
        for i, j in missing[: n - 9 + len(missing)]:
            store.put(i, j, KERNEL[2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
            acknowledge((i, j))

    def check(self, root, acknowledged):
        """Check that all acknowledged tiles are there, and add the others."""
        if acknowledged or (root / "k").exists():
            with km.KernelStore.open(root / "k", FACTS) as store:
                store.verify()
                assert not {*store.missing()} & {*acknowledged}
            with km.KernelStore.open(root / "k", FACTS, write=True) as store:
                self.fill(store, 9, lambda tile: None)
                assert torch.equal(store.rows(0, 6), KERNEL)


class Recording:
    """A recorded run."""

    def write(self, root, acknowledge):
        train(root / "run", 3, acknowledge=acknowledge)

    def check(self, root, acknowledged):
        is_begun = (root / "run" / "tape.sqlite").exists()
        if acknowledged or is_begun:
            run = Run.open(root / "run")
            run.verify()
            assert len(run) >= len(acknowledged)
            run.tape.close()
        train(root / "run", 3, resume=is_begun)
        run = Run.open(root / "run")
        run.verify()
        assert len(run) == 3
        run.tape.close()


WRITERS = {"store": Store(), "tape": Recording()}


@pytest.fixture(params=[4096])
def small_pages(request, monkeypatch):
    monkeypatch.setattr(header, "PAGE_SIZE", request.param)
    monkeypatch.setattr(database, "LOG_PAGES", 4)


def trace_of(writer, root):
    """Return the operations of a writer, among them ("acknowledged", root, 0, task) after each task."""
    root.mkdir()
    with traced() as steps:
        writer.write(root, lambda task: steps.append(("acknowledged", root, 0, task)))
    return steps


def check_power_failures(writer, root, steps, n, rng):
    """Check ``n`` random power failures; return the number of different states."""
    states = set()
    left = root.parent / "left"
    with unsynced():
        for _ in range(n):
            before = steps[: rng.randint(0, len(steps))]
            state = left_by_power_failure(before, rng)
            states.add(hash(frozenset(state.items())))
            shutil.rmtree(left, ignore_errors=True)
            left.mkdir()
            put_back(state, root, left)
            writer.check(left, [step[3] for step in before if step[0] == "acknowledged"])
    return len(states)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_power_failure_leaves_what_was_acknowledged(tmp_path, kind, small_pages):
    steps = trace_of(WRITERS[kind], tmp_path / "root")
    assert sum(step[0] == "acknowledged" for step in steps) == {"store": 9, "tape": 3}[kind]
    assert check_power_failures(WRITERS[kind], tmp_path / "root", steps, 12, random.Random(0)) > 6


@pytest.mark.soak
@pytest.mark.parametrize("small_pages", [4096, header.PAGE_SIZE], indirect=True)
@pytest.mark.parametrize("kind", WRITERS)
def test_many_power_failures_leave_what_was_acknowledged(tmp_path, kind, small_pages):
    steps = trace_of(WRITERS[kind], tmp_path / "root")
    check_power_failures(WRITERS[kind], tmp_path / "root", steps, 1000, random.Random(time.time_ns()))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("forgotten", ["sync", "sync_directory", "OFF", "NORMAL"])
def test_without_syncs_this_test_fails(tmp_path, kind, forgotten, small_pages, monkeypatch):
    """Syncs that are left out of the trace, and settings of SQLite that leave them out."""

    class Connection(sqlite3.Connection):
        def execute(self, sql, *parameters):
            return super().execute(sql.replace("synchronous=FULL", f"synchronous={forgotten}"), *parameters)

    with monkeypatch.context() as patch:
        if forgotten in ("OFF", "NORMAL"):
            patch.setattr(file_system, "connection_class", Connection)
        steps = [step for step in trace_of(WRITERS[kind], tmp_path / "root") if step[0] != forgotten]
    with pytest.raises((AssertionError, km.KernelmemError)):
        check_power_failures(WRITERS[kind], tmp_path / "root", steps, 100, random.Random(0))
