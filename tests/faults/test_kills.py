"""SIGKILL at random times: what is resumed equals the uninterrupted run, and nothing acknowledged is computed again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

KINDS = ["store", "shadows", "sweep", "recorder"]


def kill(directory, n, seed, kinds):
    command = [sys.executable, "-m", "tests.faults.killed_driver", str(directory), str(n), str(seed), *kinds]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def test_killed_runs_resume_to_the_same_result(tmp_path):
    counts = kill(tmp_path, 2, 0, ["store", "shadows", "recorder"])
    assert all(count["killed"] == 2 for count in counts.values())


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_killed_runs_resume_to_the_same_result(tmp_path, kind):
    counts = kill(tmp_path, 60, time.time_ns(), [kind])
    assert counts[kind]["killed"] == 60
