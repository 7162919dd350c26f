"""Processes that train networks for a command, and that end with it, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Yield an executor of ``workers`` processes, or None for one worker.

    If an exception (KeyboardInterrupt too) leaves the context, the processes are terminated instead of finishing their
    tasks. They also end by themselves if this process is killed.
    """
    if workers == 1:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    others = set(multiprocessing.active_children())
    until_closed, open_pipe = spawn.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_prepare_worker, initargs=(until_closed,))
    with until_closed, open_pipe:
        try:
            yield executor
            executor.shutdown()
        except BaseException:
            _terminate(executor, open_pipe, others)
            raise


def _terminate(executor: ProcessPoolExecutor, open_pipe: Connection, others: set) -> None:
    """End the processes of an executor at once, also one that is being started and is not among the children yet."""
    # The executor's thread may find a process gone in the middle of a message, and would print a traceback of that
    print_exception, threading.excepthook = threading.excepthook, lambda _: None
    try:
        open_pipe.close()
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        # The rest of a message from a process that is gone never comes, and the executor's thread would wait for it for ever
        # while anybody, this process included, could still write it (Python 3.11 to 3.14)
        results = getattr(executor, "_result_queue", None)
        if results is not None:
            results._writer.close()
        executor.shutdown(cancel_futures=True)
    finally:
        threading.excepthook = print_exception


def _prepare_worker(until_closed: Connection) -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(until_closed,), daemon=True).start()


def _exit_with_parent(until_closed: Connection) -> None:
    """Wait until the parent process closes its end of the pipe or is gone, then end this process at once."""
    wait([until_closed])
    os._exit(1)
