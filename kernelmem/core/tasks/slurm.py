"""PEP 3148 executor of Slurm jobs, by submitit."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any, Protocol, TypeVar

from kernelmem.core.checks import as_count, as_number, describe
from kernelmem.core.errors import InputError, TaskError
from kernelmem.core.tasks.calls import first_line

Value = TypeVar("Value")


class _Job(Protocol):
    """The methods of a ``submitit.Job`` that are used."""

    @property
    def state(self) -> str: ...
    def done(self) -> bool: ...
    def result(self) -> object: ...
    def cancel(self, check: bool = True) -> None: ...


class SubmititExecutor(Executor):
    """PEP 3148 executor that runs each call as a job of ``submitit``, for ``executor=``.

    Files of the jobs are kept in the folder of the submitit executor, which all nodes must see. Slurm's own time limit ends
    a task that hangs: it then runs again, as after any loss of a node.

    Args:
        executor: ``submitit.AutoExecutor(folder)`` with its parameters set (partition, minutes, memory), or another
            executor of submitit.
        max_workers: largest number of jobs in the queue at a time.
        poll_seconds: time between two looks at the jobs.

    Raises:
        InputError: ``executor`` has no method ``submit``, or a number is out of range.

    Cost: one job, of at least some seconds, per call; choose tasks (``models_per_chunk``, ``chunk``) of minutes.

    Example::

        jobs = submitit.AutoExecutor(folder="jobs")
        jobs.update_parameters(timeout_min=60, slurm_partition="cpu", mem_gb=8, cpus_per_task=1)
        with km.SubmititExecutor(jobs, max_workers=64) as executor:
            ensemble = km.shadow_ensemble((x, y), training, path="shadows", executor=executor)
    """

    def __init__(self, executor: object, *, max_workers: int = 100, poll_seconds: float = 1.0) -> None:
        if not callable(getattr(executor, "submit", None)) or isinstance(executor, type):
            raise InputError(
                f"executor={describe(executor)}",
                expected="an executor of submitit",
                hint='pass submitit.AutoExecutor(folder="jobs")',
            )
        self._submit: Callable[..., _Job] = executor.submit  # pyright: ignore[reportAttributeAccessIssue]
        self._max_workers = as_count(max_workers, "max_workers")
        self._poll_seconds = as_number(poll_seconds, "poll_seconds", exclusive=True)
        self._futures: list[_JobFuture] = []
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._is_shut_down = False

    def submit(self, fn: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        """Submit a job. Its future can be cancelled while the job runs."""
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = _JobFuture(self._submit(fn, *args, **kwargs))
            self._futures.append(future)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and wait for the jobs or cancel them."""
        with self._lock:
            self._is_shut_down = True
            futures, watcher = list(self._futures), self._watcher
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait and watcher is not None:
            watcher.join()

    def _watch(self) -> None:
        """Pass results on until no job is left."""
        while True:
            for future in list(self._futures):
                future.look()
            with self._lock:
                self._futures = [future for future in self._futures if not future.done()]
                if not self._futures:
                    self._watcher = None
                    return
            time.sleep(self._poll_seconds)


class _JobFuture(Future[Any]):
    """Future of a job. It counts as pending while the job runs, so that it can be cancelled."""

    def __init__(self, job: _Job) -> None:
        super().__init__()
        self._job = job
        self._is_running = False

    def running(self) -> bool:
        return self._is_running and not self.done()

    def cancel(self) -> bool:
        if self.done():
            return self.cancelled()
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()
        self._job.cancel(check=False)
        return True

    def look(self) -> None:
        """Take the result of a job that has ended."""
        try:
            is_done = self._job.done()
            self._is_running = is_done or self._job.state == "RUNNING"
        except Exception:  # the state is not known, for example while Slurm does not answer
            return
        if not is_done or self.done():
            return
        result = error = None
        try:
            result = self._job.result()
        except Exception as failure:
            error = _job_error(failure)
        try:
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)
        except Exception:  # cancelled in the meantime
            if not self.done():
                raise


def _job_error(failure: Exception) -> Exception:
    """Return the error of a job without result: Slurm ended it, or what it runs cannot be loaded on its node."""
    lines = [line for line in str(failure).split("You can check")[0].splitlines() if line.strip(" -")]
    if type(failure).__name__ == "FailedJobError":
        return TaskError(
            f"a job that failed: {lines[-1] if lines else type(failure).__name__}",
            expected="jobs that can import kernelmem and the functions of the task",
            hint="look at the output of the job, in the folder of the submitit executor",
        )
    return BrokenExecutor(f"{type(failure).__name__}: {first_line(failure)}")
