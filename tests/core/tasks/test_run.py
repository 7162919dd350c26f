"""Tasks whose workers die, hang or are lost: equal results, or the poison task is named and the rest is kept."""

import logging
import os
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from kernelmem.core import InputError, TaskError
from kernelmem.core.tasks import run_tasks
from tests.core.tasks.worker_functions import CONTEXT, die, die_while_sending, fail, hang, square, write_pid


def results(function, tasks, executor=None, *, values=None, **options):
    values = {} if values is None else values
    run_tasks(function, tasks, executor, values.__setitem__, lambda: None, **options)
    return [values[k] for k in range(len(tasks))]


def pool(workers=2):
    return ProcessPoolExecutor(workers, mp_context=CONTEXT)


def test_executors_give_what_a_loop_gives():
    tasks = [1, 2.5, -3, 10**20]
    expected = [square(task) for task in tasks]
    with ThreadPoolExecutor(3) as threads, pool() as processes:
        for executor in (None, threads, processes):
            assert results(square, tasks, executor) == expected
            assert results(square, [], executor) == []


def test_a_worker_that_is_killed_is_replaced(tmp_path, caplog):
    tasks = [(k, tmp_path / str(k) if k in (1, 2, 5) else "") for k in range(8)]
    with pool() as executor:
        assert results(die, tasks, executor) == [k * k for k in range(8)]
        assert any("repeated" in message and "task 1" in message for message in caplog.messages)
        # the user's pool stays broken, and the next call replaces it at once
        assert results(square, [4], executor, attempts=1) == [16]


def test_a_pool_that_breaks_while_it_starts_a_process_is_replaced(monkeypatch):
    def start_process():
        executor._broken = "a process died"
        raise OSError("handle is closed")

    with pool() as executor:
        assert executor.submit(square, 2).result() == 4
        monkeypatch.setattr(executor, "_adjust_process_count", start_process)
        assert results(square, [3, 4], executor, attempts=1) == [9, 16]
    with pool() as executor:
        monkeypatch.setattr(executor, "_adjust_process_count", raise_no_more_processes)
        with pytest.raises(OSError, match="no more processes"):
            results(square, [3], executor)


def raise_no_more_processes():
    raise OSError("no more processes")


def test_a_task_that_waits_while_a_worker_dies_has_not_failed(tmp_path):
    with pool(1) as executor:
        assert results(die, [(k, tmp_path / str(k)) for k in range(2)], executor, attempts=2) == [0, 1]


def test_a_task_that_always_kills_its_worker_is_named_and_the_rest_kept():
    tasks = [(k, None if k == 1 else "") for k in range(6)]
    values = {}
    with pool() as executor, pytest.raises(TaskError, match=r"Got tile b \(.*3 attempts; 5 of 6 tasks finished"):
        results(die, tasks, executor, values=values, names=[f"tile {letter}" for letter in "abcdef"])
    assert values == {k: k * k for k in (0, 2, 3, 4, 5)}


def test_workers_that_run_nothing_are_not_tried_for_ever():
    with pool() as executor, pytest.raises(TaskError, match="__main__"):
        results(die, [(k, None) for k in range(50)], executor)


def test_a_worker_that_dies_in_the_middle_of_a_message_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelmem.core.tasks.workers.STUCK_SECONDS", 0.0)
    monkeypatch.setattr("kernelmem.core.tasks.run.POLL_SECONDS", 0.05)
    with pool() as executor:
        assert results(die_while_sending, [(k, tmp_path / "sent") for k in range(4)], executor) == [0, 1, 4, 9]


def test_a_process_that_hangs_is_killed(tmp_path):
    with pool() as executor:
        tasks = [(k, tmp_path / "hung" if k == 1 else "") for k in range(5)]
        assert results(hang, tasks, executor, timeout=0.5) == [k * k for k in range(5)]
    with pool() as executor:
        values = {}
        with pytest.raises(TaskError, match=r"task 1 \(no result in 0.5 s\), in at most 1 attempts; 3 of 4"):
            results(
                hang, [(k, None if k == 1 else "") for k in range(4)], executor, timeout=0.5, attempts=1, values=values
            )
        assert values == {0: 0, 2: 4, 3: 9}


def test_a_thread_that_hangs_is_named_and_the_rest_kept():
    release, values = threading.Event(), {}

    def wait_if_odd(k):
        return release.wait(60) if k % 2 else k

    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(TaskError, match=r"task 1 \(no result in 0.1 s\)"):
            results(wait_if_odd, [0, 1, 2, 4], executor, timeout=0.1, values=values)
        assert values == {0: 0, 2: 2, 3: 4}
        release.set()
    release.clear()
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(TaskError, match="threads cannot be stopped"):
            results(wait_if_odd, [1, 3, 5, 2], executor, timeout=0.1)
        release.set()


def test_an_exception_of_a_task_is_raised_with_its_traceback():
    values = {}
    with pool(1) as executor:
        with pytest.raises(KeyError, match="two") as caught:
            results(fail, [0, 1, 2], executor, values=values, names=["a", "b", "c"])
        assert values == {0: 0, 1: 1}
        assert caught.value.__notes__ == ["raised by c"]
        assert "worker_functions.py" in str(caught.value.__cause__)
        with pytest.raises(TaskError, match="LocalError: three halves"):
            results(fail, [3, 1], executor)
        values.clear()
        with pytest.raises(KeyError) as caught:
            results(fail, [0, 2, 3, 1], executor, values=values, keep_going=True)
        assert values == {0: 0, 3: 1}
        assert "task 2" in caught.value.__notes__[-1]


def test_exceptions_are_repeated_if_asked(caplog):
    calls = []

    def connect(value):
        calls.append(value)
        if len(calls) < 3:
            raise ConnectionError("reset")
        return value

    with caplog.at_level(logging.DEBUG, "kernelmem.tasks"):
        assert results(connect, [7], retry=(ConnectionError,)) == [7]
    assert [(record.event, record.task, record.attempt) for record in caplog.records] == [
        ("started", "task 0", 1), ("repeated", "task 0", 1), ("started", "task 0", 2), ("repeated", "task 0", 2),
        ("started", "task 0", 3), ("finished", "task 0", 3),
    ]  # fmt: skip
    calls.clear()
    with pytest.raises(ConnectionError):
        results(connect, [7])
    assert calls == [7]


class Scripted(Executor):
    """Executor that raises what it is told, once per submitted call; None: it runs the call."""

    def __init__(self, *script):
        self.script = list(script)
        self.n_submitted = 0

    def submit(self, fn, /, *args, **kwargs):
        self.n_submitted += 1
        error = self.script.pop(0) if self.script else None
        future = Future()
        if error == "submit":
            raise BrokenExecutor("no workers")
        if error == "never":
            return future
        if error is None:
            future.set_result(fn(*args))
        else:
            future.set_exception(error)
        return future


class KilledWorker(Exception):  # noqa: N818, the name in distributed
    pass


def test_failures_of_an_executor_are_repeated_and_others_are_not():
    assert results(square, [3], Scripted(ConnectionError("lost"), EOFError())) == [9]
    assert results(square, [3, 4], Scripted("never"), timeout=0.1) == [9, 16]
    values, executor = {}, Scripted(KilledWorker("x"))
    with pytest.raises(TaskError, match=r"task 0 \(KilledWorker: x\).*1 of 2"):
        results(square, [3, 4], executor, values=values)
    assert executor.n_submitted == 2
    assert values == {1: 16}
    with pytest.raises(ZeroDivisionError):
        results(square, [3], Scripted(ZeroDivisionError()))
    with pytest.raises(TaskError, match=r"a broken Scripted \(no workers\); 0 of 3 tasks finished .* not task 1"):
        results(square, [1, 2, 3], Scripted(None, "submit"))


def test_an_executor_that_was_shut_down_is_refused():
    for executor in (ThreadPoolExecutor(1), pool(1)):
        executor.shutdown()
        with pytest.raises(InputError, match="inside the with block"):
            results(square, [1], executor)


@pytest.mark.parametrize("options", [{"attempts": 0}, {"timeout": 0}, {"timeout": 1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        results(square, [1], **options)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interruption_ends_the_workers_that_were_started_here(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelmem.core.tasks.run.POLL_SECONDS", 0.05)
    paths = [str(tmp_path / str(k)) for k in range(2)]

    def interrupt():
        if all(Path(path).exists() and Path(path).read_text() for path in paths):
            raise KeyboardInterrupt

    with pool() as executor:
        with pytest.raises(TaskError):
            results(die, [(0, None)], executor, attempts=1)
        with pytest.raises(KeyboardInterrupt):
            run_tasks(write_pid, paths, executor, lambda index, value: None, interrupt)
    deadline = time.monotonic() + 20
    while any(is_alive(int(Path(path).read_text())) for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)
