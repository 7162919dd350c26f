"""One task as it is sent to a worker: pickled by value, its result or error returned as a value.

Whatever the executor's future raises is then a failure of the executor (a killed worker, a lost connection), and never an
exception of the task, which would fail in the same way on every worker.
"""

import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from kernelmem.core.errors import InputError, TaskError

Value = TypeVar("Value")
Dumps = Callable[[object], bytes]
PICKLING_ERRORS = (pickle.PicklingError, AttributeError, TypeError)


@dataclass(frozen=True, eq=False)
class Outcome(Generic[Value]):
    """Value that a task returned, or the exception that it raised, with its traceback in another process."""

    value: Value | None = None
    error: Exception | None = None
    traceback: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        if self.error is None:
            return Outcome, (self.value,)
        return Outcome, (None, _portable(self.error), "".join(traceback.format_exception(self.error)))

    def get(self) -> Value:
        """Return the value, or raise the exception."""
        if self.error is None:
            return self.value  # pyright: ignore[reportReturnType]
        if self.traceback:
            raise self.error from WorkerTracebackError(self.traceback)
        raise self.error


class ByValue(Generic[Value]):
    """Wrapper of a value that is pickled with its own copy of all tensors.

    multiprocessing would move the user's tensors to shared memory, and leave NumPy arrays that share their memory dangling.
    The copy is unpickled when it is first read: an error of this is an error of the task, and does not end the worker.
    """

    def __init__(self, value: Value | None, dumps: Dumps = pickle.dumps, content: bytes | None = None) -> None:
        self._value, self._dumps, self._content = value, dumps, content

    def get(self) -> Value:
        """Return the value."""
        if self._content is not None:
            self._value, self._content = pickle.loads(self._content), None
        return self._value  # pyright: ignore[reportReturnType]

    def pickled(self) -> "ByValue[Value]":
        """Return the same with the value pickled now.

        Raises:
            InputError: a value that cannot be pickled.
        """
        try:
            return ByValue(None, content=self._dumps(self._value))
        except PICKLING_ERRORS as error:
            raise (unpicklable(error) or error) from error

    def __reduce__(self) -> tuple[object, ...]:
        try:
            content = self._dumps(self._value) if self._content is None else self._content
        except PICKLING_ERRORS:  # the executor's own pickler may know more
            return ByValue, (self._value,)
        return ByValue, (None, pickle.dumps, content)


class WorkerTracebackError(Exception):
    """Cause of an exception that was raised in another process: its traceback there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def call_here(function: Callable[..., Value], task: object) -> Outcome[Value]:
    """Call a function on a task. KeyboardInterrupt and SystemExit are raised."""
    try:
        return Outcome(function(task))
    except Exception as error:
        return Outcome(error=error)


def call_in_worker(call: ByValue[tuple[Callable[..., Value], object]]) -> ByValue[Outcome[Value]]:
    """Unpickle a function and its task in a worker, and call it."""
    try:
        function, task = call.get()
    except Exception as error:
        message = f"a task that a worker cannot load ({type(error).__name__}: {first_line(error)})"
        hint = "define the function in a module that the workers can import too, as they import kernelmem"
        return ByValue(Outcome(error=InputError(message, expected="functions that workers can import", hint=hint)))
    return ByValue(call_here(function, task))


def pickler(executor: Executor) -> Dumps:
    """Return the function that pickles tasks for an executor.

    The workers of multiprocessing import the user's script. Others (Dask, Slurm) do not: cloudpickle, which comes with
    them, sends what the script defines by value.
    """
    if not isinstance(executor, ProcessPoolExecutor):
        try:
            import cloudpickle

            return cloudpickle.dumps
        except ImportError:
            pass
    return pickle.dumps


def unpicklable(error: Exception) -> InputError | None:
    """Return the error to raise if an executor failed because it cannot pickle a task or its result, or None."""
    if not isinstance(error, PICKLING_ERRORS):
        return None
    message = first_line(error)
    if not isinstance(error, pickle.PicklingError) and "pickle" not in message and "local object" not in message:
        return None
    return InputError(
        f"a task that cannot be sent to another process ({message})",
        expected="functions that pickle can find by their names",
        hint="define the function at the top level of a module, or use a ThreadPoolExecutor",
    )


def _portable(error: Exception) -> Exception:
    """Return an exception, or one that says the same if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return TaskError(
            f"a task that raised {type(error).__name__}: {first_line(error)}",
            expected="tasks that end without an exception",
            hint="the traceback of the worker is the cause of this error",
        )


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an exception."""
    return (str(error).splitlines() or [""])[0]
