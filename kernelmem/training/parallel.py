"""Run independent tasks one after the other, or by an executor with one thread in each worker process."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from kernelmem.core.errors import InputError

Task = TypeVar("Task")
Value = TypeVar("Value")


def run_tasks(
    function: Callable[[Task], Value],
    tasks: Sequence[Task],
    executor: Executor | None,
    finished: Callable[[int, Value], object],
    idle: Callable[[], object],
) -> None:
    """Call ``function`` on every task, and ``finished`` with its index and value as soon as it ends.

    Without an executor the tasks run here, in order. With an executor all are submitted at once; ``idle`` is called about
    once per second while they run. If a task, ``finished`` or the caller fails, tasks that have not begun are cancelled.

    Raises:
        InputError: a task that cannot be sent to another process; also the errors of the tasks.
    """
    if executor is None:
        for index, task in enumerate(tasks):
            finished(index, function(task))
        return
    futures: dict[Future[_ByValue[Value]], int] = {
        executor.submit(_call, function, _ByValue(task)): index for index, task in enumerate(tasks)
    }
    try:
        pending: set[Future[_ByValue[Value]]] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                finished(futures[future], _result(future))
            idle()
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _result(future: "Future[_ByValue[Value]]") -> Value:
    try:
        return future.result().value
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        message = str(error)
        if isinstance(error, pickle.PicklingError) or "pickle" in message or "local object" in message:
            raise InputError(
                f"a task that cannot be sent to another process ({message.splitlines()[0]})",
                expected="functions that pickle can find by their names",
                hint="define the function at the top level of a module, or use a ThreadPoolExecutor",
            ) from error
        raise


class _ByValue(Generic[Value]):
    """Wrapper of a value that is pickled with its own copy of all tensors.

    multiprocessing would move the user's tensors to shared memory, and leave NumPy arrays that share their memory dangling.
    """

    def __init__(self, value: Value) -> None:
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        try:
            return _unpickled, (pickle.dumps(self.value),)
        except (pickle.PicklingError, AttributeError, TypeError):  # the executor's own pickler may know more
            return _ByValue, (self.value,)


def _unpickled(content: bytes) -> _ByValue:
    return _ByValue(pickle.loads(content))


def _call(function: Callable[[Task], Value], task: _ByValue[Task]) -> _ByValue[Value]:
    return _ByValue(function(task.value))


@contextmanager
def one_thread_per_worker() -> Iterator[None]:
    """Use one thread in a worker process: workers share the cores, and more threads would only wait for each other."""
    if multiprocessing.parent_process() is None:
        yield
        return
    with one_thread():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch: networks of a few thousand parameters are trained faster, above all on a busy machine."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
