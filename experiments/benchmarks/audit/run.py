"""Run the command in fresh processes, one after the other; print a table, write results.json."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments import machine
from experiments.benchmarks.audit.configs import DEFAULT_ROWS, Options
from kernelmem.core import write_file
from kernelmem.training import digits

__all__ = ["run"]

COLUMNS = {  # name: title, decimal places
    "command_s": ("command, s", 1),
    "cpu_s": ("its processor time, s", 1),  # less than the command where others use the machine, too
    "audit_s": ("audit proper, s", 2),
    "peak_mb": ("peak memory, MB", 0),
}


def run(options: Options) -> None:
    """Measure every size and print it."""
    results: dict = {"machine": machine.describe(), "rows": {}}
    print(f"{'rows':>6}" + "".join(f"  {title:>22}" for title, _ in COLUMNS.values()))
    with tempfile.TemporaryDirectory() as folder:
        for n in options.rows:
            arguments = [] if n == DEFAULT_ROWS else ["--data", str(_data(n, Path(folder))), "--noise", "0.15"]
            measured = [measure(arguments, Path(folder) / "report") for _ in range(options.runs)]
            row = {name: _summary([m[name] for m in measured]) for name in measured[0]}
            results["rows"][str(n)] = {"runs": options.runs, **row}
            columns = [
                f"{row[name]['median']:.{places}f} ({row[name]['min']:.{places}f} .. {row[name]['max']:.{places}f})"
                for name, (_, places) in COLUMNS.items()
            ]
            print(f"{n:>6}" + "".join(f"  {column:>22}" for column in columns), flush=True)
            write_file(options.out / "results.json", json.dumps(results, indent=1) + "\n")


def measure(arguments: list[str], out: Path) -> dict[str, float]:
    """One run: seconds of the whole process, of km.audit in it, peak memory, the load of the machine before it."""
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "experiments.benchmarks.audit.child", *arguments, "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    document = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    peak = int(done.stdout.splitlines()[-1]) / 1e6
    audit = document["seconds"]
    return {"command_s": seconds, "cpu_s": cpu, "audit_s": audit, "peak_mb": peak, "load_before": load}


def _summary(values: list[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in figures.items()}


def _data(n: int, folder: Path) -> Path:
    data, rng = digits(n_train=DEFAULT_ROWS, seed=0), np.random.default_rng(0)
    index = np.arange(n) % DEFAULT_ROWS
    x = data.x_train.numpy()[index] + rng.normal(0, 0.05, (n, 64)).astype(np.float32)
    path = folder / f"{n}.npz"
    np.savez(
        path,
        allow_pickle=False,
        x_train=x,
        y_train=data.y_train.numpy()[index],
        x_test=data.x_test.numpy(),
        y_test=data.y_test.numpy(),
        image_shape=np.array([8, 8]),
    )
    return path
