"""Processes that train networks for a command, and that end with it, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


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
    executor = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_prepare_worker)
    try:
        yield executor
    except BaseException:
        # The executor's thread may find a process gone in the middle of a message, and would print a traceback of that
        print_exception, threading.excepthook = threading.excepthook, lambda _: None
        try:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            executor.shutdown(cancel_futures=True)
        finally:
            threading.excepthook = print_exception
        raise
    executor.shutdown()


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait until the parent process ends, then end this process at once: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
