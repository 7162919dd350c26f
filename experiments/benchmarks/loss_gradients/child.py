"""One engine on one row in a process of its own; the last line of its output is the result as JSON.

python -m experiments.benchmarks.loss_gradients.child --engine ours --workload W1 --n 32 --covers all

The reference of the row must be there (`problems.py` writes it).
"""

import argparse
import json
import sys
import time

import torch

from experiments.benchmarks.loss_gradients import engines
from experiments.benchmarks.loss_gradients.configs import ENGINES
from experiments.benchmarks.loss_gradients.peers_setup import FOLDER
from experiments.benchmarks.loss_gradients.problems import Problem, build, load_reference
from experiments.benchmarks.ntk import gauges
from experiments.benchmarks.ntk.peers.interface import attempt

__all__ = ["measure"]


def measure(options: argparse.Namespace) -> dict:
    """Prepare, call, weigh, compare; whatever goes wrong is the result."""
    gauges.pin(options.threads)
    torch.set_num_threads(options.threads)
    entry = ENGINES[options.engine]
    if entry.installed:
        sys.path.append(str(FOLDER))
    problem = build(options.workload, options.n, options.covers)
    return attempt(lambda: _run(getattr(engines, entry.function)(problem), problem, options))


def _run(gram: engines.Gram, problem: Problem, options: argparse.Namespace) -> dict:
    """Two examples first, so that libraries load what they load late; then a warm-up and the timed calls."""
    gram(2)
    gauges.reset_peak()
    gauges.forbid_more_than(int(0.8 * gauges.available()))
    before, started, found = gauges.resident(), time.perf_counter(), None
    seconds: list[float] = []
    while not seconds or (len(seconds) <= options.calls and time.perf_counter() - started < options.limit):
        found = None  # the last result is not this call's memory
        begun = time.perf_counter()
        found = gram(options.n)
        seconds.append(time.perf_counter() - begun)
    peak = gauges.peak() - before
    assert found is not None
    return {
        "status": "ok",
        "seconds": seconds[1:] or seconds,
        "warm": len(seconds) > 1,
        "warm_up": seconds[0],
        "peak_bytes": peak,
        "parameters": problem.size,
        **gauges.errors(found, load_reference(options.workload, options.n, options.covers)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--covers", default="all")
    parser.add_argument("--calls", type=int, default=1, help="timed calls after the warm-up")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    print(json.dumps(measure(parser.parse_args())))
