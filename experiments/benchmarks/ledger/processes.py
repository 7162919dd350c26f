"""Start one measurement in a fresh process, with its threads set before any library is loaded."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks.ledger.engines import ROOT
from experiments.benchmarks.ledger.workloads import Workload

__all__ = ["measure"]

LIMIT = 120.0  # seconds


def measure(task: str, workload: Workload, *, threads: int, run: Path | None = None, **options) -> dict:
    """What child.py prints, or why it printed nothing."""
    given = {"task": task, "workload": dataclasses.asdict(workload), "threads": threads, **options}
    given |= {"run": str(run)} if run else {}
    command = [sys.executable, "-m", "experiments.benchmarks.ledger.child", json.dumps(given)]
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = kept | counts | {"PYTHONPATH": str(ROOT)}
    load = os.getloadavg()[0]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"status": "over time", "reason": f"more than {LIMIT:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"status": "failed", "reason": _without_paths(errors[-1])}
    result = json.loads(lines[-1]) | {"load_before": load}
    return result | ({"reason": _without_paths(result["reason"])} if "reason" in result else {})


def _without_paths(text: str) -> str:
    """Results are published: no directory of this machine in them."""
    return re.sub(r"(?<![\w.])/[\w./+-]*/", "", text)[:300]
