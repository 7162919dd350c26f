"""A sweep and a shadow ensemble by every executor, also with workers that are killed: the bits of a loop."""

import multiprocessing
import os
import random
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch

from kernelmem.core.tasks import SubmititExecutor
from kernelmem.double_descent import Execution, SweepOptions, sweep
from kernelmem.memorization.shadows import EnsembleTraining, ShadowOptions, shadow_ensemble
from kernelmem.training import Recipe, labeled_data
from tests.core.tasks.test_slurm import StandIn
from tests.core.tasks.worker_functions import CONTEXT
from tests.faults import killed_workers

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 4, generator=GENERATOR), torch.arange(24) % 3
DATA = labeled_data(X[:16], Y[:16], X[16:], Y[16:])
RECIPE = Recipe(steps=4, lr=0.05, batch_size=8)
KINDS = ("serial", "threads", "processes", "dask", "jobs")


def networks(executor, dtype, n_seeds=2, **options):
    """Metrics of a sweep, and outputs of a shadow ensemble."""
    execution = Execution(chunk=2, executor=executor, dtype=dtype, **options)
    swept = sweep(
        DATA,
        "width",
        [2, 3],
        noise=0.3,
        recipe=RECIPE,
        n_seeds=n_seeds,
        options=SweepOptions(control=1),
        execution=execution,
    )
    shadows = shadow_ensemble(
        (X, Y),
        EnsembleTraining(RECIPE, width=3),
        executor=executor,
        options=ShadowOptions(n_models=2 * n_seeds, models_per_chunk=2, dtype=dtype, **options),
    )
    return *vars(swept.curves).values(), *vars(swept.control).values(), shadows.logits


@contextmanager
def dask():
    distributed = pytest.importorskip("distributed")
    settings = {"processes": False, "protocol": "tcp://", "host": "127.0.0.1", "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, **settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


def executor_of(kind):
    return {
        "serial": lambda: nullcontext(None),
        "threads": lambda: ThreadPoolExecutor(2),
        "processes": lambda: ProcessPoolExecutor(2, mp_context=CONTEXT),
        "dask": dask,
        "jobs": lambda: SubmititExecutor(StandIn(), poll_seconds=0.01),
    }[kind]()


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def expected():
    return {dtype: networks(None, dtype) for dtype in (torch.float32, torch.float64)}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_executor_gives_the_bits_of_a_loop(kind, expected):
    with executor_of(kind) as executor:
        for dtype, values in expected.items():
            assert_same(networks(executor, dtype), values)


def test_a_process_that_is_killed_leaves_the_bits(expected):
    with ProcessPoolExecutor(2, mp_context=CONTEXT) as executor:
        executor.submit(os.getpid).result()
        os.kill(next(iter(executor._processes)), signal.SIGKILL)
        assert_same(networks(executor, torch.float32, timeout=60), expected[torch.float32])


def test_processes_that_are_killed_leave_the_bits_of_a_stored_kernel(tmp_path):
    assert killed_workers.kills(partial(killed_workers.processes, CONTEXT), tmp_path, 3, random.Random(0)) <= 3


@pytest.mark.soak
def test_spawned_processes_give_the_bits_of_a_loop(expected):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        for dtype, values in expected.items():
            assert_same(networks(executor, dtype), values)


@pytest.mark.soak
def test_a_hundred_kills_of_workers_leave_the_bits():
    """A thread kills random workers at random times, until there were 100 kills; runs follow each other."""
    alone = networks(None, torch.float32, n_seeds=8)
    generator, n_killed, n_runs = random.Random(0), 0, 0
    while n_killed < 100:
        stop = threading.Event()
        budget = [2]  # a task may lose two of its three attempts

        def kill(stop=stop, budget=budget):
            nonlocal n_killed
            while budget[0] and not stop.wait(generator.uniform(0.01, 0.15)):
                if workers := multiprocessing.active_children():
                    os.kill(generator.choice(workers).pid, signal.SIGKILL)
                    budget[0] -= 1
                    n_killed += 1

        killer = threading.Thread(target=kill)
        with ProcessPoolExecutor(2, mp_context=CONTEXT) as executor:
            killer.start()
            try:
                assert_same(networks(executor, torch.float32, n_seeds=8), alone)
            finally:
                stop.set()
                killer.join()
        n_runs += 1
    print(f"{n_killed} kills in {n_runs} runs")
