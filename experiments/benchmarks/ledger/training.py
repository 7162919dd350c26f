"""The ledger compared with the training that it explains: one process, steps of training before every analysis."""

import copy
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from experiments.benchmarks.ledger.floors import carried_numbers, ledger_operations
from experiments.benchmarks.ledger.workloads import Problem, Workload
from experiments.benchmarks.ntk import gauges
from kernelmem.trajectory import ledger

__all__ = ["gemm_gflops", "measure"]

STEPS = 40  # of training, before every analysis
PATIENCE = 3.0  # seconds; an analysis that takes longer is timed once
COPIED = 2**25  # numbers
SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2048, 1024, 1024), (500, 2048, 256))


def measure(workload: Workload, task: dict) -> dict:
    """Milliseconds of a step of training, of a step's analysis; peak memory; operations, and the rate of products."""
    problem = Problem.open(workload, Path(task["run"]))
    model, x = workload.model(), problem.x
    target = {} if task["outputs"] == "all" else {"target": ("logit", 0)}
    step = _training_step(problem)
    for _ in range(STEPS // 2):
        step()
    ledger(problem.run, model, x[:2], **target)
    started = gauges.peak()
    gauges.reset_peak()
    before = gauges.resident()
    analysis: list[float] = []
    training: list[float] = []
    own = None
    while len(analysis) < task["calls"] and sum(analysis) < PATIENCE:
        own = None
        training += [_seconds(step) for _ in range(STEPS)]
        started = time.perf_counter()
        own = ledger(problem.run, model, x, **target)
        analysis.append(time.perf_counter() - started)
    peak = gauges.peak()
    assert own is not None
    nodes, residual = float(own.evaluations.mean()), own.largest_residual
    ms_per_step = [1e3 * value / workload.steps for value in analysis]
    ms_training = 1e3 * statistics.median(training)
    k = own.contributions.shape[2]
    operations = ledger_operations(workload, outputs=k, nodes=nodes)
    carried = carried_numbers(workload, outputs=k, nodes=nodes)
    own, rate = None, gemm_gflops()
    return {
        "ms_per_step": ms_per_step,
        "training_ms": ms_training,
        "steps": workload.steps,
        "nodes": nodes,
        "per_step": [value / ms_training for value in ms_per_step],
        "per_node": [value / ms_training / nodes for value in ms_per_step],
        "residual": residual,
        "peak_bytes": max(peak, started),
        "peak_above_bytes": peak - before,
        "gflop": operations / 1e9,
        "gemm_gflops": rate,
        "floor_ms": 1e3 * operations / 1e9 / rate,
        "carried_bytes": 8 * carried,
        "traffic_ms": 1e3 * carried * _copy_seconds() if carried else 0.0,
    }


def gemm_gflops() -> float:
    """Most GFLOP/s of a float64 product, at a few shapes."""
    best = 0.0
    for m, k, n in SHAPES:
        a, b = torch.ones(m, k, dtype=torch.float64), torch.ones(k, n, dtype=torch.float64)
        out = torch.empty(m, n, dtype=torch.float64)
        fastest = min(_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for _ in range(8))
        best = max(best, 2e-9 * m * k * n / fastest)
    return best


def _copy_seconds() -> float:
    """Seconds to read and write one float64 number, in a copy that no cache holds."""
    source, target = torch.ones(COPIED, dtype=torch.float64), torch.ones(COPIED, dtype=torch.float64)
    return min(_seconds(lambda: target.copy_(source)) for _ in range(4)) / COPIED


def _training_step(problem: Problem):
    """A step of training as the run had it: forward, backward, optimizer, on one batch."""
    workload, (x, y, _) = problem.workload, problem.data
    x, y = x[: workload.batch], y[: workload.batch]
    model = copy.deepcopy(workload.model())
    optimizer = workload.make_optimizer(model)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
