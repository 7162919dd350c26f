"""Run every engine in fresh processes, in turn; print tables, write results.json."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from experiments import machine
from experiments.benchmarks.machines import noticed, streamed
from experiments.benchmarks.machines.configs import OUTPUTS, RIDGE, Options
from experiments.benchmarks.machines.direct import ENGINES
from kernelmem.core import write_file

__all__ = ["run"]

REFERENCE = "scipy.linalg.cholesky"


def run(options: Options) -> None:
    """Measure the selected kinds and keep the others of an earlier results.json."""
    path = options.out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results |= {"outputs": OUTPUTS, "ridge": RIDGE}
    for name in options.only:
        measured = {"direct": _direct, "streamed": _streamed, "noticed": _noticed}[name](options)
        results[name] = {"machine": machine.describe(), **measured}
        write_file(path, json.dumps(results, indent=1) + "\n")


def _direct(options: Options) -> dict:
    found: dict = {}
    for n in options.rows:
        seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
        peaks: dict[str, int] = {}
        load = []
        for turn in range(options.rounds):
            for name in ENGINES:
                load.append(os.getloadavg()[0])
                one = _child("direct", name, str(n), "2")
                seconds[name].append(min(one["seconds"]))  # the first call has cold memory, and starts threads
                peaks[name] = one["peak_above_kernel"]
                print(
                    f"\r{n} rows, round {turn + 1} of {options.rounds}, {name:<36}", end="", file=sys.stderr, flush=True
                )
        print(file=sys.stderr)
        kernel = 8 * n * n
        print(
            f"\n{n} rows, {OUTPUTS} outputs{'':<20}{'median s':>10}{'range':>18}{'/ scipy Cholesky':>18}{'memory / K':>12}"
        )
        rows = {}
        for name, values in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(values, seconds[REFERENCE], strict=True))
            rows[name] = {
                "seconds": [round(value, 4) for value in values],
                "median": round(statistics.median(values), 4),
                "paired_ratio": round(ratio, 3),
                "peak_above_kernel": peaks[name],
            }
            middle, span = statistics.median(values), f"{min(values):.2f} .. {max(values):.2f}"
            print(f"{name:<38}{middle:>10.2f}{span:>18}{ratio:>18.2f}{peaks[name] / kernel:>12.2f}")
        pairs = zip(seconds["kernelmem leave_one_out"], seconds["kernelmem solve"], strict=True)
        rows["leave_one_out / solve"] = round(statistics.median(a / b for a, b in pairs), 3)
        print(f"leave_one_out / solve: {rows['leave_one_out / solve']}", flush=True)
        found[str(n)] = rows | {"load": [round(min(load), 2), round(max(load), 2)]}
    return found


def _streamed(options: Options) -> dict:
    options.scratch.mkdir(parents=True, exist_ok=True)
    path = options.scratch / "kernel.npy"
    try:
        began = time.perf_counter()
        streamed.write(path, options.streamed_rows)
        written = time.perf_counter() - began
        found = _child("streamed", str(path)) | {"rows": options.streamed_rows, "written_s": written}
    finally:
        path.unlink(missing_ok=True)
    print(
        f"\n{options.streamed_rows} rows from a file of {found['file_bytes'] / 1e9:.1f} GB: {found['code']} in"
        f" {found['solve_s']:.0f} s, {found['products']} products, residual {found['residual']:.1e}, peak memory"
        f" {found['peak_bytes'] / 1e9:.2f} GB; the file read once: {found['read_once_s']:.1f} s",
        flush=True,
    )
    return found


def _noticed(options: Options) -> dict:
    del options
    found = {name: noticed.count(name) for name in noticed.LIBRARIES}
    kinds = next(iter(found.values()))
    print(f"\n{'of 50 each':<38}" + "".join(f"{kind:>14}" for kind in kinds))
    for name, counts in found.items():
        print(f"{name:<38}" + "".join(f"{value:>14}" for value in counts.values()))
    return found


def _child(module: str, *arguments: str) -> dict:
    command = [sys.executable, "-m", f"experiments.benchmarks.machines.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path.cwd())
    return json.loads(done.stdout.splitlines()[-1])
