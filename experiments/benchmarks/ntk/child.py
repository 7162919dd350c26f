"""One engine on one problem in a process of its own; the last line of its output is the result as JSON.

    python -m experiments.benchmarks.ntk.child --engine ours --workload W1 --n 512 --outputs trace --rounds 1 --json

The materials of the problem must be there (`materials.py` writes them). Imports at the top are the standard library and NumPy
alone: threads are set before any numerical library is loaded, and JAX peers run where there is no torch.
"""

import argparse
import importlib
import json
import os
import sys
import time

from experiments.benchmarks.ntk import gauges
from experiments.benchmarks.ntk.engines import ENGINES, TORCH_PACKAGES, Entry
from experiments.benchmarks.ntk.materials import load
from experiments.benchmarks.ntk.peers.interface import Engine, attempt

__all__ = ["main", "measure"]


def main(arguments: list[str] | None = None) -> dict:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--outputs", choices=("trace", "full"), default="trace")
    parser.add_argument("--memory", help="the memory= of km.ntk")
    parser.add_argument("--rounds", type=int, default=1, help="timed calls after the warm-up")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    options = parser.parse_args(arguments)
    _set_threads(options.threads)
    result = measure(options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    return result


def measure(options: argparse.Namespace) -> dict:
    """Prepare, call, weigh, compare; whatever goes wrong is the result."""
    problem = load(options.workload, options.n, options.outputs)
    entry = ENGINES[options.engine]
    return attempt(lambda: _run(_prepare(entry, problem, options), problem, options))


def _prepare(entry: Entry, problem, options: argparse.Namespace) -> Engine:
    if entry.needs == TORCH_PACKAGES:
        sys.path.append(str(TORCH_PACKAGES))
    if not entry.jax:
        import torch

        torch.set_num_threads(options.threads)
    prepare = getattr(importlib.import_module(f"experiments.benchmarks.ntk.peers.{entry.module}"), entry.function)
    memory = options.memory or entry.memory
    return prepare(problem, **({"memory": memory} if memory else {}))


def _run(engine: Engine, problem, options: argparse.Namespace) -> dict:
    """Two rows first, so that libraries load what they load late; then a warm-up and the timed calls."""
    engine.kernel(engine.inputs[:2])
    gauges.reset_peak()
    gauges.forbid_more_than(int(0.8 * gauges.available()))
    before = gauges.resident()
    started = time.perf_counter()
    kernel = engine.kernel(engine.inputs)
    warm_up = time.perf_counter() - started
    cold_peak = gauges.peak() - before
    gauges.reset_peak()
    seconds: list[float] = []
    while len(seconds) < options.rounds and time.perf_counter() - started + warm_up < options.limit:
        kernel = None  # the last result is not this call's memory
        begun = time.perf_counter()
        kernel = engine.kernel(engine.inputs)
        seconds.append(time.perf_counter() - begun)
    warm_peak = gauges.peak() - before
    return {
        "status": "ok",
        "seconds": seconds or [warm_up],
        "warm": bool(seconds),
        "warm_up": warm_up,
        "peak_bytes": max(cold_peak, warm_peak),
        "warm_peak_bytes": warm_peak,
        **gauges.errors(kernel, problem.reference),
    }


def _set_threads(threads: int) -> None:
    gauges.pin(threads)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


if __name__ == "__main__":
    main()
