"""Not a test: kills forks of this process at random times while they work, and compares what they resume to."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import kernelmem as km
from kernelmem.double_descent.sweeps.options import Execution, SweepOptions
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.memorization.shadows import EnsembleTraining, ShadowOptions, shadow_ensemble
from kernelmem.recording import Run
from kernelmem.training import Recipe
from kernelmem.training.datasets import labeled_data
from tests.faults import killed_workers
from tests.faults.conftest import X, Y, train

RECIPE = Recipe(steps=30, lr=0.05, batch_size=4)
KERNEL = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TILE = 8


def note(directory, *words):
    """Append a line to the log of the driver in one write."""
    descriptor = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    os.close(descriptor)


def run_store(directory):
    file = directory / "kernel.sqlite"
    options = {"tile": TILE, "dtype": torch.float64, "symmetric": False}
    if file.exists():
        store = km.KernelStore.open(file, {"a": 1}, write=True)
    else:
        store = km.KernelStore.create(file, {"a": 1}, 40, **options)
    with store:
        for i, j in store.missing():
            note(directory, "computes", i, j)
            store.put(i, j, KERNEL[TILE * i : TILE * (i + 1), TILE * j : TILE * (j + 1)])
            note(directory, "acknowledged", i, j)


def result_of_store(directory):
    with km.KernelStore.open(directory / "kernel.sqlite", {"a": 1}) as store:
        store.verify()
        assert torch.equal(store.rows(0, 40), KERNEL)
    return check_log(directory)


def run_kernel(directory):
    """Compute the kernel of a network into a store; the log is that of killed_workers."""
    killed_workers.SECONDS = 0.003
    killed_workers.kernel(directory / "kernel.sqlite", directory / "log")


def result_of_kernel(directory):
    check_log(directory)
    with km.KernelStore.open(directory / "kernel.sqlite") as store:
        return store.rows(0, len(killed_workers.ROWS)).tolist()


def check_log(directory):
    """Check that no tile was computed after it was acknowledged."""
    acknowledged = set()
    for line in (directory / "log").read_text().splitlines():
        word, *tile = line.split()
        assert word == "acknowledged" or tuple(tile) not in acknowledged, "an acknowledged tile was computed again"
        if word == "acknowledged":
            acknowledged.add(tuple(tile))
    return True


def run_shadows(directory):
    return shadow_ensemble(
        (X, Y), EnsembleTraining(RECIPE, width=3), path=directory / "shadows", progress=False,
        options=ShadowOptions(n_models=8, models_per_chunk=1),
    )  # fmt: skip


def run_sweep(directory):
    data = labeled_data(X, Y, X, Y)
    return sweep(
        data, "width", [2, 3, 4, 5], recipe=RECIPE, n_seeds=2, options=SweepOptions(control=1),
        execution=Execution(out=directory / "sweep", chunk=1), progress=False,
    )  # fmt: skip


def run_recorder(directory):
    train(directory / "run", steps=12, resume=(directory / "run" / "tape.sqlite").exists())


def result_of_recorder(directory):
    run = Run.open(directory / "run")
    run.verify()
    assert len(run) == 12
    return run.weights(12)["weight"].tolist()


RUNS = {
    "store": (run_store, result_of_store),
    "kernel": (run_kernel, result_of_kernel),
    "shadows": (run_shadows, lambda directory: run_shadows(directory).logits.tolist()),
    "sweep": (run_sweep, lambda directory: run_sweep(directory).to_frame().to_csv()),
    "recorder": (run_recorder, result_of_recorder),
}


def forked(run, directory, kill_after=None):
    """Run in a fork and return its exit code; kill it after some seconds."""
    child = os.fork()
    if not child:
        code = 1
        try:
            run(directory)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(kind, root, n, rng):
    """Kill runs ``n`` times, each time resumed until the run is complete, and compare; return the number of resumed runs."""
    run, result = RUNS[kind]
    (root / "whole").mkdir(parents=True)
    started = time.monotonic()
    assert forked(run, root / "whole") == 0
    seconds = time.monotonic() - started
    expected = result(root / "whole")
    killed = resumed = trial = 0
    while killed < n:
        directory = root / str(trial)
        trial += 1
        directory.mkdir()
        interrupted = 0
        while killed < n and interrupted < 3:
            code = forked(run, directory, kill_after=rng.uniform(0, seconds))
            assert code in (0, -signal.SIGKILL), code
            killed += code != 0
            interrupted += code != 0
            if code == 0:
                break
        assert forked(run, directory) == 0
        resumed += interrupted > 0
        assert result(directory) == expected, kind
        assert list(directory.rglob("*-journal")) == []
    return {"killed": killed, "resumed": resumed, "seconds": seconds}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)  # imports torch._dynamo, which takes seconds
    root, n, seed, *kinds = sys.argv[1:]
    rng = random.Random(int(seed))
    print(json.dumps({kind: kills(kind, Path(root) / kind, int(n), rng) for kind in kinds}))
