"""SIGKILL at random times: what is resumed equals the uninterrupted run, and nothing acknowledged is computed again."""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.core.tasks.worker_functions import CONTEXT
from tests.faults.killed_driver import kills

KINDS = ["store", "kernel", "shadows", "sweep", "recorder"]
WORKERS = "from tests.faults.killed_workers import main; main()"


def kill(directory, n, seed, kinds, script=("-m", "tests.faults.killed_driver")):
    command = [sys.executable, *script, str(directory), str(n), str(seed), *kinds]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@pytest.mark.parametrize("kind", ["kernel", "recorder"])
def test_killed_runs_resume_to_the_same_result(tmp_path, kind):
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as executor:  # a process without threads can be forked
        assert executor.submit(kills, kind, tmp_path / kind, 2, random.Random(0)).result()["killed"] == 2


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_killed_runs_resume_to_the_same_result(tmp_path, kind):
    counts = kill(tmp_path, 60, time.time_ns(), [kind])
    assert counts[kind]["killed"] == 60


@pytest.mark.soak
@pytest.mark.parametrize("method", ["spawn", "dask"])
def test_many_killed_workers_leave_the_bits(tmp_path, method):
    counts = kill(tmp_path, 50, time.time_ns(), [method], ["-c", WORKERS])
    assert counts["killed"] == 50
    print(counts)
