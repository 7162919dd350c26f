"""One thread of torch per worker, so that workers do not compete for the cores."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
