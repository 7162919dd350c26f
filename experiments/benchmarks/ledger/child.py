"""One measurement in its own process; the last line of its output is the result as JSON.

    python -m experiments.benchmarks.ledger.child '{"task": "analyze", "engine": "ours", ...}'

Threads are set by the environment that processes.py starts it in.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks.ledger import recording, training
from experiments.benchmarks.ledger.engines import ENGINES, PEER_PACKAGES
from experiments.benchmarks.ledger.workloads import Problem, Workload
from experiments.benchmarks.ntk import gauges

__all__ = ["main"]

PATIENCE = 3.0  # seconds; an analysis that takes longer is timed once


def main(task: dict) -> dict:
    """Do it; whatever goes wrong is the result."""
    torch.set_num_threads(task["threads"])
    workload = Workload(**task["workload"] | {"sizes": tuple(task["workload"]["sizes"])})
    try:
        return {"status": "ok"} | TASKS[task["task"]](workload, task)
    except Exception as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}


def _analyze(workload: Workload, task: dict) -> dict:
    """Time, memory and residual."""
    entry = ENGINES[task["engine"]]
    if entry.peer:
        sys.path.append(str(PEER_PACKAGES))
    problem = Problem.open(workload, Path(task["run"]))
    engine = entry.prepare()(problem, **entry.settings)
    engine.warm_up()
    started = gauges.peak()
    gauges.reset_peak()
    before = gauges.resident()
    seconds: list[float] = []
    processor: list[float] = []
    account = None
    while len(seconds) < task["calls"] and sum(seconds) < PATIENCE:
        account = None  # the last result is not this call's memory
        wall, own = time.perf_counter(), time.process_time()
        account = engine.analyze()
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - own)
    peak = gauges.peak()  # of the analyses
    assert account is not None
    change = problem.change(account.log_probabilities, account.start, account.stop)
    left = change - account.contributions.sum(1) - account.others
    np.save(Path(task["run"]) / f"{entry.name}.npy", account.contributions.numpy())
    steps = account.stop - account.start
    return {
        "ms_per_step": [1e3 * value / steps for value in seconds],
        "cpu_ms_per_step": [1e3 * value / steps for value in processor],
        "steps": steps,
        "residual": float(left.abs().max()),
        "change": float(change.abs().max()),
        "unattributed": account.unattributed,
        "evaluations": account.evaluations,
        "rounding": account.rounding,
        "peak_bytes": max(peak, started),
        "peak_above_bytes": peak - before,
    }


TASKS: dict[str, Callable[[Workload, dict], dict]] = {
    "analyze": _analyze,
    "with_training": training.measure,
    "recording": recording.measure,
}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
