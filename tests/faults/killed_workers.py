"""Not a test: kills the workers of km.ntk_store at random times, and compares the kernel with that of a loop."""

import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

import kernelmem as km
from kernelmem.kernels.large.worker import Worker

ROWS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TIMEOUT = 300  # seconds; a test that fails, instead of one that waits for workers that are not there
SECONDS = 0.03  # that a tile takes longer, so that kills find workers at work
REPEATS = 2  # a task is given up when its worker dies three times


class Network(nn.Sequential):
    """A network that brings the name of the log to the processes that receive it."""

    def __init__(self, log=None):
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        self.double()
        self.log = log

    def __setstate__(self, state):
        global log_file
        super().__setstate__(state)
        log_file = self.log


log_file = None


def note(*words):
    """Append a line to the log, if there is one, in one write."""
    if log_file is not None:
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
        os.close(descriptor)


def noted_tile(self, i, j, tile=Worker.tile):
    note("computes", i, j)
    time.sleep(SECONDS if log_file else 0)
    return tile(self, i, j)


def noted_put(self, i, j, array, put=km.KernelStore.put):
    put(self, i, j, array)
    note("acknowledged", i, j)


Worker.tile, km.KernelStore.put = noted_tile, noted_put  # in the workers too, which import this file


def attempts(log):
    """Return the number of attempts of each tile that is not acknowledged, after checking that no other begins again."""
    begun, acknowledged = Counter(), set()
    for line in log.read_text().splitlines() if log.exists() else ():
        word, *tile = line.split()
        assert word != "computes" or tuple(tile) not in acknowledged, "an acknowledged tile was computed again"
        if word == "acknowledged":
            acknowledged.add(tuple(tile))
            del begun[tuple(tile)]
        else:
            begun[tuple(tile)] += 1
    return begun


class Failures(logging.Handler):
    """Number of failures of each task that runs."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.of = Counter()

    def emit(self, record):
        if record.event == "repeated":
            self.of[record.task] += 1
        elif record.event == "finished":
            self.of.pop(record.task, None)


class Killer(threading.Thread):
    """Kills workers while no task has failed so often that it would be given up."""

    def __init__(self, pids, log, rng, n):
        super().__init__()
        self.pids, self.log, self.rng, self.n, self.killed = pids, log, rng, n, 0
        self.ended, self.failures = threading.Event(), Failures()

    def run(self):
        while self.killed < self.n:
            size = self.log.stat().st_size if self.log.exists() else 0
            if self.rng.random() < 0.7:  # else at any time, also while processes start
                while not self.ended.is_set() and (not self.log.exists() or self.log.stat().st_size == size):
                    time.sleep(0.002)
            if self.ended.wait(self.rng.uniform(0, 4 * SECONDS)):
                return
            pids = self.pids()
            failures = [*self.failures.of.values(), *(n - 1 for n in attempts(self.log).values())]
            if pids and max(failures, default=0) < REPEATS:
                os.kill(self.rng.choice(pids), signal.SIGKILL)
                self.killed += 1

    @contextmanager
    def at_work(self):
        logger = logging.getLogger("kernelmem.tasks")
        logger.addHandler(self.failures)
        logger.setLevel(logging.DEBUG)
        self.start()
        try:
            yield
        finally:
            self.ended.set()
            self.join()
            logger.removeHandler(self.failures)


@contextmanager
def processes(context):
    """Yield an executor of processes, and a function that returns their numbers."""
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        yield executor, lambda: [process.pid for process in multiprocessing.active_children()]


@contextmanager
def dask():
    from dask import config
    from distributed import Client, LocalCluster

    # By default all tasks that a killed worker was given have failed, and a worker that is lost stays lost for 15 s.
    config.set({"distributed.scheduler.allowed-failures": 100, "distributed.deploy.lost-worker-timeout": "1s"})
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=2, maximum=2, interval="500ms")  # starts others for workers that died while they started

        def pids():
            """Return the workers that run: Dask gives up a worker that dies while it starts."""
            workers = [nanny.process for nanny in list(cluster.workers.values())]
            return [worker.pid for worker in workers if worker and worker.pid and worker.status.name == "running"]

        yield client.get_executor(), pids


def kernel(path, log=None, executor=None):
    options = km.StoreOptions(tile=3, timeout=None if executor is None else TIMEOUT)
    with km.ntk_store(Network(log), ROWS, path=path, executor=executor, progress=False, options=options) as store:
        store.verify()
        return store.rows(0, len(ROWS))


def kills(workers, root, n, rng):
    """Kill ``n`` workers of runs that follow each other; return the number of runs."""
    global log_file
    expected = kernel(root / "loop")
    killed = run = 0
    while killed < n:
        log = root / f"{run}.log"
        with workers() as (executor, pids):
            killer = Killer(pids, log, rng, n - killed)
            with killer.at_work():
                found = kernel(root / str(run), log, executor)
        log_file = None
        assert torch.equal(found, expected)
        assert not attempts(log)
        assert not (root / f"{run}.tangents").exists()
        killed, run = killed + killer.killed, run + 1
    return run


def main():
    torch.set_num_threads(1)
    root, n, seed, method = sys.argv[1:]
    workers = dask if method == "dask" else partial(processes, multiprocessing.get_context(method))
    print(json.dumps({"killed": int(n), "runs": kills(workers, Path(root), int(n), random.Random(seed))}))
