"""Start processes of the benchmark: one environment for all, a time limit, one line of JSON back."""

import json
import os
import re
import subprocess
import sys

from experiments.benchmarks.ntk.configs import Options, Row
from experiments.benchmarks.ntk.engines import ENGINES, ROOT

__all__ = ["gemm_peak", "measure", "write_materials"]

START = 60.0  # seconds for imports and the two-row call, beyond the limit
KEEP_MEMORY = {  # glibc hands no page back: faults are dear where the machine is virtual
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
}


def _environment(threads: int, tuned: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return kept | counts | {"PYTHONPATH": str(ROOT)} | (KEEP_MEMORY if tuned else {})


def write_materials(row: Row, threads: int) -> None:
    """Weights, inputs and reference of a row, by a process that is gone before anything is measured."""
    command = [sys.executable, "-m", "experiments.benchmarks.ntk.materials", row.workload, str(row.n), row.outputs]
    subprocess.run(command, cwd=ROOT, env=_environment(threads, tuned=False), check=True)


def gemm_peak(threads: int) -> float:
    """Most float32 GFLOP/s of any matrix product in torch."""
    command = [sys.executable, "-m", "experiments.benchmarks.ntk.peers.gemm", str(threads)]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(threads, tuned=True), check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def measure(row: Row, engine: str, options: Options, *, memory: str | None = None, tuned: bool = True) -> dict:
    """One engine on one row in a fresh process: what child.py prints, or why it printed nothing."""
    entry = ENGINES[engine]
    if reason := entry.missing():
        return {"status": "not installed", "reason": reason}
    command = [str(entry.python()), "-m", "experiments.benchmarks.ntk.child", "--json", "--engine", engine]
    command += ["--workload", row.workload, "--n", str(row.n), "--outputs", row.outputs]
    command += ["--rounds", str(options.calls), "--threads", str(options.threads), "--limit", str(options.limit)]
    command += ["--memory", memory] if memory else []
    environment = _environment(options.threads, tuned)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=options.limit + START
        )
    except subprocess.TimeoutExpired:
        return {"status": "over time", "reason": f"more than {options.limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        died = "killed by the system" if done.returncode < 0 else errors[-1]
        return {"status": "failed", "reason": _without_paths(died)}
    result = json.loads(lines[-1])
    return result | ({"reason": _without_paths(result["reason"])} if "reason" in result else {})


def _without_paths(text: str) -> str:
    """Results are published: no directory of this machine in them."""
    return re.sub(r"(?<![\w.])/[\w./+-]*/", "", text)[:300]
