"""Independent tasks, one after the other or by an executor: repeated if workers die, given up one by one, never all at once."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from kernelmem.core.checks import as_count, as_number
from kernelmem.core.errors import InputError, TaskError
from kernelmem.core.tasks.calls import ByValue, Outcome, call_here, call_in_worker, first_line, pickler, unpicklable
from kernelmem.core.tasks.workers import Workers, is_process_pool

Task = TypeVar("Task")
Value = TypeVar("Value")

ATTEMPTS = 3  # of a task whose worker dies
LOGGER = logging.getLogger("kernelmem.tasks")
POLL_SECONDS = 1.0  # between two calls of idle
# Exceptions of a future that do not come from the task; those of the task are values (see calls.py)
EXECUTOR_ERRORS = (BrokenExecutor, OSError, EOFError, CancelledError)
FINAL_ERRORS = ("KilledWorker",)  # Dask has repeated the task on other workers before it raises this


def run_tasks(
    function: Callable[[Task], Value],
    tasks: Sequence[Task],
    executor: Executor | None,
    finished: Callable[[int, Value], object],
    idle: Callable[[], object],
    *,
    attempts: int = ATTEMPTS,
    timeout: float | None = None,
    names: Sequence[str] | None = None,
    retry: tuple[type[Exception], ...] = (),
    keep_going: bool = False,
) -> None:
    """Call ``function`` on every task, and ``finished`` with its index and value as soon as it ends.

    Tasks are independent and may run more than once: they must be pure, or leave the same behind each time. A task whose
    worker dies, is lost or exceeds the time limit runs again, at most ``attempts`` times in all. A task that fails in every
    attempt is given up, all others run, and TaskError names it at the end. An exception that the task itself raises is
    raised at once: it would fail in the same way again.

    What happens is logged by the logger ``kernelmem.tasks``: repeated tasks as warnings, starts and ends at level DEBUG.
    Records have the attributes ``event`` ("started", "finished", "repeated" or "failed"), ``task`` (its name) and
    ``attempt`` (from 1): a handler of this logger is the place for a user's own monitoring.

    Args:
        function: for processes a function that can be pickled, as all tasks and results.
        tasks: the arguments.
        executor: any PEP 3148 executor. None: tasks run here, in order. A ``ProcessPoolExecutor`` that breaks is replaced by
            new processes with the same settings; other executors cannot be replaced.
        finished: called in this thread, once per task, in the order in which tasks end.
        idle: called about once per second while tasks run.
        attempts: largest number of times that a task runs.
        timeout: seconds after which a task is given up or repeated, including the start of a process. Worker processes are
            killed; threads cannot be, so a task that hangs in a thread keeps its thread, and is not repeated. Executors
            that do not tell their number of workers (Dask): seconds in which no task ends.
        names: of the tasks, for messages; None: "task 0", ...
        retry: exceptions of a task after which it runs again.
        keep_going: after an exception of a task, run the others before it is raised.

    Raises:
        TaskError: workers died or tasks exceeded the time limit, in every attempt; also if the executor broke.
        InputError: a task that cannot be sent to another process, or options out of range.
        Exception: what a task raised, with its name as a note if there are ``names``. Tasks that have not begun are
            cancelled. With ``keep_going`` of the first of the tasks that failed.
    """
    as_count(attempts, "attempts", maximum=100)
    if timeout is not None:
        timeout = as_number(timeout, "timeout", exclusive=True)
        if executor is None:
            raise InputError(
                f"timeout={timeout:g} without an executor",
                expected="an executor of processes, which can be killed",
                hint="pass executor=ProcessPoolExecutor(1)",
            )
    run = _Run(tasks, finished, names, attempts, retry, keep_going)
    if executor is None:
        while run.queue:
            index = run.start()
            run.settle(index, call_here(function, tasks[index]))
    else:
        _run_by_executor(run, function, executor, idle, timeout)
    run.raise_failures()


class _Run(Generic[Task, Value]):
    """Tasks of a run: those to start, and those that failed.

    Attributes:
        n_workers: number of workers, None if it is not known.
        queue: indices of the tasks to start next.
        lost: reason for each task that was given up because its workers failed.
        errors: outcome of each task that raised an exception, if the others run on.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        finished: Callable[[int, Value], object],
        names: Sequence[str] | None,
        attempts: int,
        retry: tuple[type[Exception], ...],
        keep_going: bool,
    ) -> None:
        self.tasks, self.finished, self.names = tasks, finished, names
        self.attempts, self.retry, self.keep_going = attempts, retry, keep_going
        self.queue = deque(range(len(tasks)))
        self.failures = [0] * len(tasks)
        self.n_finished = 0
        self.n_workers: int | None = None
        self.lost: dict[int, str] = {}
        self.errors: dict[int, Outcome[Value]] = {}

    def name(self, index: int) -> str:
        """Return the name of a task."""
        return f"task {index}" if self.names is None else self.names[index]

    def start(self) -> int:
        """Return the index of the task to start now."""
        index = self.queue.popleft()
        self.log(logging.DEBUG, "started", index)
        return index

    def settle(self, index: int, outcome: Outcome[Value]) -> None:
        """Pass a value on, or repeat, note or raise an exception of the task."""
        error = outcome.error
        if error is None:
            self.finished(index, outcome.get())
            self.n_finished += 1
            self.log(logging.DEBUG, "finished", index)
        elif isinstance(error, self.retry) and self.failures[index] + 1 < self.attempts:
            self.fail(index, f"{type(error).__name__}: {first_line(error)}")
        else:
            self.log(logging.DEBUG, "failed", index, f"{type(error).__name__}: {first_line(error)}")
            if self.names is not None:
                error.add_note(f"raised by {self.name(index)}")
            if not self.keep_going:
                outcome.get()
            self.errors[index] = outcome

    def fail(self, index: int, reason: str, *, repeat: bool = True) -> None:
        """Note that a worker failed: repeat its task, or give it up.

        Raises:
            TaskError: as many tasks as there are workers, at least three, were given up and none has finished.
        """
        self.failures[index] += 1
        if repeat and self.failures[index] < self.attempts:
            self.log(logging.WARNING, "repeated", index, reason)
            self.queue.appendleft(index)
            return
        self.log(logging.WARNING, "failed", index, reason)
        self.lost[index] = reason
        if self.n_workers and len(self.lost) >= max(3, self.n_workers) and not self.n_finished and self.queue:
            raise self.failure(
                "workers that run tasks",
                "look for the reason in the output of the workers; a script that starts processes needs "
                "if __name__ == '__main__': around its main part",
            )

    def log(self, level: int, event: str, index: int, reason: str = "") -> None:
        """Log an event of a task."""
        if not LOGGER.isEnabledFor(level):
            return
        name = self.name(index)
        attempt = max(1, self.failures[index] + (event in ("started", "finished")))
        extra = {"event": event, "task": name, "attempt": attempt}
        LOGGER.log(
            level,
            "%s %s (attempt %d of %d)%s",
            name,
            event,
            attempt,
            self.attempts,
            reason and f": {reason}",
            extra=extra,
        )

    def failure(self, expected: str, hint: str) -> TaskError:
        """Return the error that names the tasks that were given up."""
        names = [f"{self.name(index)} ({reason})" for index, reason in list(self.lost.items())[:5]]
        more = f" and {len(self.lost) - 5} more" if len(self.lost) > 5 else ""
        kept = f"; {self.n_finished} of {len(self.tasks)} tasks finished and are kept"
        return TaskError(
            f"{', '.join(names)}{more}, in at most {self.attempts} attempts{kept}", expected=expected, hint=hint
        )

    def raise_failures(self) -> None:
        """Raise what is to be raised when all tasks have ended."""
        if self.errors:
            index, *others = sorted(self.errors)
            if (error := self.errors[index].error) is not None and (others or self.lost):
                failed = [*others, *self.lost]
                names = ", ".join(map(self.name, failed[:5])) + ", ..." * (len(failed) > 5)
                error.add_note(f"{len(failed)} other tasks failed: {names}")
            self.errors[index].get()
        if self.lost:
            raise self.failure(
                "tasks whose workers live until they end",
                "a worker that needs more memory than there is, is killed: lower memory= or the number of workers; "
                "the same call runs only what is missing where results are saved",
            )


@dataclass
class _Attempt:
    """One submitted call.

    Attributes:
        index: its task.
        since: time at which it began, as far as the executor tells; None: it waits for a worker.
        is_excused: its worker was killed for another task, or had not begun it.
    """

    index: int
    since: float | None = None
    is_excused: bool = False


def _run_by_executor(
    run: _Run[Task, Value],
    function: Callable[[Task], Value],
    executor: Executor,
    idle: Callable[[], object],
    timeout: float | None,
) -> None:
    workers = Workers(executor)
    run.n_workers = workers.size
    dumps = pickler(executor)
    running: dict[Future[ByValue[Outcome[Value]]], _Attempt] = {}
    last_end = time.monotonic()

    def submit() -> None:
        """Submit as many tasks as there are free workers, and to a process pool one more each, for when that one ends."""
        # A time limit counts from the submission, so that no task may wait for its worker then.
        ahead = 2 if timeout is None and is_process_pool(workers.executor) else 1
        while run.queue and (workers.size is None or len(running) < ahead * workers.size):
            index = run.queue[0]
            try:
                call = ByValue((function, run.tasks[index]), dumps)
                if workers.can_stop:  # a process pool would start a process before it finds what cannot be pickled
                    call = call.pickled()
                future: Future[ByValue[Outcome[Value]]] = workers.submit(call_in_worker, call)
            except BrokenExecutor as error:
                raise _broken(run, executor, error) from error
            run.start()
            running[future] = _Attempt(index)

    try:
        while run.queue or running:
            submit()
            poll = POLL_SECONDS if timeout is None else min(POLL_SECONDS, timeout / 4)
            ended = _ended(workers, running, poll)
            ended.sort(key=lambda pair: pair[1].cancelled() or pair[1].exception() is not None)  # results first
            if ended:
                last_end = time.monotonic()
            submit()  # before results are stored
            ended.reverse()
            while ended:  # no name keeps a future: Dask computes what a lost worker held again, as long as one does
                _settle(run, *ended.pop())
            if timeout is not None:
                _end_hanging(run, workers, running, timeout, last_end)
            workers.end_stuck_pools()
            for future in [future for future in running if workers.is_forgotten(future)]:
                run.fail(running.pop(future).index, "the process pool broke")
            idle()
    except BaseException:
        for future in running:
            future.cancel()
        workers.close(at_once=True)
        raise
    workers.close(at_once=False)


def _ended(
    workers: Workers, running: dict[Future[ByValue[Outcome[Value]]], _Attempt], poll: float
) -> list[tuple[_Attempt, Future[ByValue[Outcome[Value]]]]]:
    """Wait until a call ends, at most ``poll`` seconds, and take those that ended from ``running``, in order."""
    done = wait(running, timeout=poll, return_when=FIRST_COMPLETED).done
    _excuse_waiting(workers, running)
    return [(running.pop(future), future) for future in [*running] if future in done]


def _excuse_waiting(workers: Workers, running: dict[Future[ByValue[Outcome[Value]]], _Attempt]) -> None:
    """Excuse the tasks that a process pool had not begun when it broke, so that they do not lose an attempt.

    A pool begins tasks in the order of their submission: besides those that ended, it had begun as many as it has workers.
    """
    if workers.size is None or len(running) <= workers.size:
        return
    errors = [future.exception() if future.done() and not future.cancelled() else None for future in running]
    if any(isinstance(error, BrokenExecutor) for error in errors):
        n_ended = sum(future.done() and error is None for future, error in zip(running, errors, strict=True))
        for attempt in [*running.values()][workers.size + n_ended :]:
            attempt.is_excused = True


def _settle(run: _Run[Task, Value], attempt: _Attempt, future: Future[ByValue[Outcome[Value]]]) -> None:
    """Pass on the outcome of a task, or repeat it if its executor failed."""
    index = attempt.index
    try:
        outcome = future.result().get()
    except EXECUTOR_ERRORS as error:
        if attempt.is_excused:
            run.queue.appendleft(index)
        else:
            run.fail(index, _reason(error))
        return
    except Exception as error:
        if type(error).__name__ in FINAL_ERRORS:
            run.fail(index, _reason(error), repeat=False)
            return
        if (refused := unpicklable(error)) is not None:
            raise refused from error
        raise
    run.settle(index, outcome)


def _end_hanging(
    run: _Run[Task, Value],
    workers: Workers,
    running: dict[Future[ByValue[Outcome[Value]]], _Attempt],
    timeout: float,
    last_end: float,
) -> None:
    """Repeat or give up tasks that exceed the time limit, and end their workers."""
    now = time.monotonic()
    for future, attempt in running.items():
        if attempt.since is None and (workers.size is None or future.running()):
            attempt.since = now
    if workers.size is None and now - last_end <= timeout:
        return
    hanging = [f for f, a in running.items() if a.since is not None and now - a.since > timeout and not f.done()]
    for future in hanging:
        attempt = running.pop(future)
        future.cancel()
        if workers.can_stop:
            if not workers.is_rebuilt:
                for other in running.values():
                    other.is_excused = True
            workers.stop(future)
        elif not future.cancelled() and workers.size is not None:
            workers.size -= 1  # its thread goes on
        run.fail(attempt.index, f"no result in {timeout:g} s", repeat=workers.can_stop or future.cancelled())
    if workers.size == 0 and run.queue:
        raise run.failure(
            "tasks that end",
            "threads cannot be stopped: use a ProcessPoolExecutor, whose workers are killed and replaced",
        )


def _broken(run: _Run[Task, Value], executor: Executor, error: BrokenExecutor) -> TaskError:
    """Return the error of an executor that cannot be replaced."""
    unfinished = [run.name(index) for index in sorted({*run.queue, *run.lost})]
    names = ", ".join(unfinished[:5]) + ", ..." * (len(unfinished) > 5)
    return TaskError(
        f"a broken {type(executor).__name__} ({first_line(error)}); {run.n_finished} of {len(run.tasks)} tasks finished and "
        f"are kept, not {names}",
        expected="an executor that takes tasks",
        hint="call again with a new executor; a concurrent.futures.ProcessPoolExecutor is replaced when it breaks",
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its worker process died"
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
