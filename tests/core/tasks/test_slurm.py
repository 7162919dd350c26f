"""Jobs of submitit as an executor: a stand-in with its documented methods, and its own local executor if installed."""

import os
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from kernelmem.core import InputError, TaskError
from kernelmem.core.tasks import SubmititExecutor, run_tasks
from tests.core.tasks.worker_functions import die, square


class UncompletedJobError(RuntimeError):
    """The name in submitit."""


class FailedJobError(UncompletedJobError):
    """The name in submitit."""


class StandInJob:
    def __init__(self, future):
        self.future = future
        self.is_cancelled = False

    @property
    def state(self):
        return "RUNNING" if self.future.running() else "PENDING"

    def done(self):
        return self.future.done()

    def result(self):
        return self.future.result()

    def cancel(self, check=True):
        self.is_cancelled = True


class StandIn:
    """What ``submitit.AutoExecutor`` does, by threads; ``failures`` are raised by the first jobs instead of a result."""

    def __init__(self, *failures):
        self.failures, self.jobs = list(failures), []
        self.threads = ThreadPoolExecutor(2)

    def submit(self, function, *arguments, **keywords):
        failure = self.failures.pop(0) if self.failures else None

        def call():
            if failure is not None:
                raise failure
            return function(*arguments, **keywords)

        self.jobs.append(StandInJob(self.threads.submit(call)))
        return self.jobs[-1]


def results(executor, tasks, function=square, **options):
    values = {}
    run_tasks(function, tasks, executor, values.__setitem__, lambda: None, **options)
    return values


def test_jobs_give_results_and_lost_jobs_run_again():
    cluster = StandIn(UncompletedJobError("has not produced any output (state: NODE_FAIL)\n..."))
    with SubmititExecutor(cluster, max_workers=2, poll_seconds=0.01) as executor:
        assert results(executor, [1, 2, 3]) == {0: 1, 1: 4, 2: 9}
    assert len(cluster.jobs) == 4
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_a_job_that_cannot_load_its_task_is_not_repeated():
    trace = "Job (task=0) failed during processing with trace:\n---\nImportError: no kernelmem\n---\nYou can check full logs"
    cluster = StandIn(FailedJobError(trace))
    with (
        SubmititExecutor(cluster, poll_seconds=0.01) as executor,
        pytest.raises(TaskError, match="a job that failed: ImportError: no kernelmem; expected"),
    ):
        results(executor, [1])
    assert len(cluster.jobs) == 1


def test_a_job_that_hangs_is_cancelled():
    release, cluster, calls = threading.Event(), StandIn(), []

    def hang_once(value):
        calls.append(value)
        return release.wait(60) if len(calls) == 1 else value

    with SubmititExecutor(cluster, poll_seconds=0.01) as executor:
        assert results(executor, [1, 2], hang_once, timeout=0.2) == {0: 1, 1: 2}
        assert [job.is_cancelled for job in cluster.jobs] == [True, False, False]
        release.set()


def test_futures_can_be_cancelled_while_the_job_runs():
    release = threading.Event()
    executor = SubmititExecutor(StandIn(), poll_seconds=0.01)
    future = executor.submit(release.wait, 60)
    executor.shutdown(wait=False, cancel_futures=True)
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    assert future.cancel()
    release.set()
    done = executor  # the watcher ends by itself
    done.shutdown()


@pytest.mark.parametrize("arguments", [{"executor": 3}, {"executor": StandIn}, {"max_workers": 0}, {"poll_seconds": 0}])
def test_what_is_no_executor_of_jobs_is_refused(arguments):
    with pytest.raises(InputError):
        SubmititExecutor(**{"executor": StandIn(), **arguments})


@pytest.mark.soak
def test_submitit_itself(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)
    cluster = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    cluster.update_parameters(timeout_min=2)
    with SubmititExecutor(cluster, max_workers=2, poll_seconds=0.1) as executor:
        tasks = [(k, tmp_path / "died" if k == 1 else "") for k in range(3)]
        assert results(executor, tasks, die) == {0: 0, 1: 1, 2: 4}
        with pytest.raises(TaskError, match=r"task 1 .*; 1 of 2"):
            results(executor, [(0, ""), (1, None)], die, attempts=2)
    assert os.environ.get("SUBMITIT_EXECUTOR") is None
