"""Measure every workload in separate processes, print tables, write results.json."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from experiments import machine
from experiments.benchmarks.ensemble.configs import SEEDS, WIDTHS, WORKLOADS, Options
from kernelmem.core import write_file

__all__ = ["run"]

ENGINES = ("loop, Adam", "loop, Adam(fused=True)", "vmap by width", "padded to the widest", "train_mlps")


def run(options: Options) -> None:
    """Measure the chosen workloads, and keep the other entries of an existing results.json."""
    path = options.out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results |= {"machine": machine.describe(), "widths": WIDTHS, "seeds": SEEDS}
    for workload in options.only:
        results[workload] = _workload(workload, options)
        write_file(path, json.dumps(results, indent=1) + "\n")
    if options.sweep:
        results["sweep"] = [_child("sweep", str(threads)) for threads in options.threads]
        for sweep in results["sweep"]:
            print(
                f"\nsweep, {sweep['networks']} networks, {sweep['steps']} steps, {sweep['threads']} threads:"
                f" {sweep['seconds']} s"
            )
        write_file(path, json.dumps(results, indent=1) + "\n")


def _workload(workload: str, options: Options) -> dict:
    peaks = {name: _child("memory", workload, name)["peak_bytes"] for name in ENGINES}
    result: dict = {"rows": WORKLOADS[workload][0], "batch_size": WORKLOADS[workload][1], "peak_bytes": peaks}
    for threads in options.threads:
        load = os.getloadavg()[0]
        timing = _child("time", workload, str(threads), str(options.rounds), str(options.seconds))
        ours = timing["ms"]["train_mlps"]
        print(
            f"\n{workload}, {threads} threads{'ms per step':>24}{'range':>18}{'/ ours':>9}{'difference':>12}{'memory':>10}"
        )
        timing["times_ours"] = {}
        for name, values in timing["ms"].items():
            ratio = statistics.median(a / b for a, b in zip(values, ours, strict=True))
            timing["times_ours"][name] = round(ratio, 2)
            span = f"{min(values):.2f} .. {max(values):.2f}"
            print(
                f"{name:<34}{statistics.median(values):>9.2f}{span:>18}{ratio:>9.2f}"
                f"{timing['difference_float64'][name]:>12.1e}{peaks[name] / 1e6:>7.0f} MB"
            )
        print(
            f"floor by operations {timing['floor_ms']} ms at {timing['gemm_gflops']} GFLOP/s; load before {load:.1f}",
            flush=True,
        )
        result[f"{threads} threads"] = timing | {"load": round(load, 2)}
    return result


def _child(*arguments: str) -> dict:
    command = [sys.executable, "-m", "experiments.benchmarks.ensemble.child", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path.cwd(), env=environment)
    return json.loads(done.stdout.splitlines()[-1])
