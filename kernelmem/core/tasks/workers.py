"""The user's executor, and single worker processes that replace a process pool when it breaks."""

import math
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, TypeGuard, TypeVar

from kernelmem.core.errors import InputError

Value = TypeVar("Value")
STUCK_SECONDS = 3.0  # after which a pool that has not noticed that a worker is dead is ended


class Workers:
    """Workers of an executor: submits calls, ends workers that hang, and replaces a process pool that breaks.

    A pool does not tell which of its processes died. After the first break each call therefore runs in a pool of one
    process: a worker that dies then takes only its own task with it, and is replaced.

    Attributes:
        size: number of workers, None if the executor does not tell.
        is_rebuilt: the user's process pool broke and was replaced.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = self._given = executor
        self.is_rebuilt = False
        size = getattr(executor, "_max_workers", None) or getattr(executor, "num_workers", None)
        self.size = size if isinstance(size, int) else None
        self._since: dict[int, float] = {}  # when a process was first seen dead, a pool broken

    @property
    def can_stop(self) -> bool:
        """True if a worker that hangs can be ended and replaced."""
        return isinstance(self.executor, SingleWorkers) or is_process_pool(self.executor)

    def submit(self, function: Callable[..., Value], *arguments: object) -> Future[Value]:
        """Submit a call, in new workers if the process pool is broken.

        Raises:
            BrokenExecutor: an executor that cannot be replaced is broken.
            InputError: the executor was shut down.
        """
        pool = self.executor
        try:
            return pool.submit(function, *arguments)
        except BrokenExecutor:
            if not is_process_pool(pool):
                raise
        except OSError:
            if not is_process_pool(pool) or not _is_broken(pool):
                raise
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            raise InputError(
                f"an executor that was shut down ({error})",
                expected="an executor that takes tasks",
                hint="call this function inside the with block of the executor",
            ) from error
        self.executor, self.is_rebuilt = SingleWorkers(pool), True
        return self.executor.submit(function, *arguments)

    def stop(self, future: Future[Value]) -> None:
        """End the worker of a call; of a user's process pool all workers, because it does not tell which one it is."""
        if is_process_pool(pool := self._pool_of(future)):
            end_processes(pool)

    def end_stuck_pools(self) -> None:
        """End what a broken pool leaves behind, and pools in which a dead process has not been noticed for some time.

        A worker that is killed in the middle of a message leaves the thread of the pool waiting for the rest of it. A
        process that is started while the pool breaks is never ended by it, nor is its call (Python 3.11 to 3.14).
        """
        for pool in self._pools():
            if getattr(pool, "_broken", False):
                self._since.setdefault(id(pool), time.monotonic())
                end_processes(pool)
            for process in _processes(pool):
                if not process.is_alive():
                    since = self._since.setdefault(id(process), time.monotonic())
                    if time.monotonic() - since > STUCK_SECONDS:
                        end_processes(pool)

    def is_forgotten(self, future: Future[Value]) -> bool:
        """Tell whether a call was submitted to a pool that has long been broken, and will never end."""
        pool = self._pool_of(future)
        if future.done() or not getattr(pool, "_broken", False):
            return False
        return time.monotonic() - self._since.get(id(pool), math.inf) > STUCK_SECONDS

    def close(self, *, at_once: bool) -> None:
        """End the workers that were started here, ``at_once`` without waiting for their tasks."""
        if isinstance(self.executor, SingleWorkers):
            self.executor.shutdown(cancel_futures=at_once, at_once=at_once)
        self.end_stuck_pools()

    def _pools(self) -> list[ProcessPoolExecutor]:
        """Return the process pools that run calls."""
        pools = [*self.executor.pools.values()] if isinstance(self.executor, SingleWorkers) else []
        return [pool for pool in (self._given, *pools) if is_process_pool(pool)]

    def _pool_of(self, future: Future[Value]) -> Executor:
        pools = self.executor.pools if isinstance(self.executor, SingleWorkers) else {}
        return pools.get(future, self._given)


class SingleWorkers(Executor):
    """PEP 3148 executor of pools of one process each, with the settings of a ``ProcessPoolExecutor``.

    Each call runs at once, in an idle process or in a new one: the caller submits at most as many as there are workers.

    Attributes:
        pools: pool of each call that was submitted and has not been seen to end.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        names = ("mp_context", "initializer", "initargs", "max_tasks_per_child")
        self._settings: dict[str, Any] = {name: getattr(pool, f"_{name}") for name in names}
        self._idle: list[ProcessPoolExecutor] = []
        self.pools: dict[Future[Any], ProcessPoolExecutor] = {}

    def submit(self, fn: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        """Submit a call to an idle process, or to a new one."""
        for future in [future for future in self.pools if future.done()]:
            pool = self.pools.pop(future)
            if future.cancelled() or isinstance(future.exception(), BrokenExecutor):
                _discard(pool)
            else:
                self._idle.append(pool)
        while True:
            pool = self._idle.pop() if self._idle else ProcessPoolExecutor(1, **self._settings)
            try:
                future = pool.submit(fn, *args, **kwargs)
            except (BrokenExecutor, OSError) as error:  # its process died while it was idle
                if isinstance(error, OSError) and not _is_broken(pool):
                    raise
                _discard(pool)
                continue
            self.pools[future] = pool
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, at_once: bool = False) -> None:
        """End all processes, ``at_once`` in the middle of their calls."""
        for pool in [*self.pools.values(), *self._idle]:
            if at_once or pool._broken:  # pyright: ignore[reportAttributeAccessIssue]
                end_processes(pool)
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        self.pools, self._idle = {}, []


def is_process_pool(executor: Executor) -> TypeGuard[ProcessPoolExecutor]:
    """Tell whether an executor is a process pool whose processes and settings are known."""
    return type(executor) is ProcessPoolExecutor


def _is_broken(pool: ProcessPoolExecutor) -> bool:
    """Tell whether a pool broke; while it starts a process for a call, its pipes are closed then, an OSError."""
    return bool(pool._broken)  # pyright: ignore[reportAttributeAccessIssue]


def end_processes(pool: ProcessPoolExecutor) -> None:
    """Kill the processes of a pool, which then is broken and takes no more calls."""
    pool._broken = pool._broken or "its processes were killed"  # pyright: ignore[reportAttributeAccessIssue]
    for process in _processes(pool):
        process.kill()
    # The rest of a message from a process that is gone never comes, and the pool's thread would wait for it for ever
    # while any process, this one included, could still write it (Python 3.11 to 3.14)
    queue = getattr(pool, "_result_queue", None)
    if queue is not None:
        queue._writer.close()


def _discard(pool: ProcessPoolExecutor) -> None:
    """Forget a broken pool."""
    end_processes(pool)
    pool.shutdown(wait=False)


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())  # pyright: ignore[reportAttributeAccessIssue]
