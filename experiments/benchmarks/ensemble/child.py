"""Measure in this process the time of all engines, the peak memory of one, or the sweep; print JSON."""

import json
import re
import sys
import time
from pathlib import Path

import torch

from experiments.benchmarks.ensemble.configs import WORKLOADS
from experiments.benchmarks.ensemble.engines import ENGINES, problem
from kernelmem.label_noise import corrupt_labels
from kernelmem.training import Member, Recipe, digits, train_mlps

COMPARED = 50  # steps after which outputs in float64 are compared with those of the loop
SWEEP_WIDTHS = (5, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 36, 50, 72, 110)


def timed(workload: str, threads: int, rounds: int, seconds: float) -> dict:
    """Measure milliseconds per step of all networks, for each engine and round after a warm-up round."""
    torch.set_num_threads(threads)
    double = problem(*WORKLOADS[workload], torch.float64)
    outputs_of = {}
    for name, make in ENGINES.items():
        engine = make(double)
        for _ in range(COMPARED):
            engine.step()
        outputs_of[name] = engine.outputs(double.x_test)
    reference = next(iter(outputs_of.values()))
    single = problem(*WORKLOADS[workload], torch.float32)
    engines = {name: make(single) for name, make in ENGINES.items()}
    ms: dict[str, list[float]] = {name: [] for name in engines}
    gemm = []
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            began, steps = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                engine.step()
                steps += 1
            ms[name].append(round(1e3 * (time.perf_counter() - began) / steps, 3))
        gemm.append(_gemm_flops())
    task = single
    rows = task.recipe.batch_size or len(task.rows[0])
    units = sum(member.width for member in task.members)
    operations = 2 * rows * units * (2 * task.x.shape[1] + 3 * task.C)
    return {
        "ms": {name: values[1:] for name, values in ms.items()},
        "difference_float64": {name: float((f - reference).abs().max()) for name, f in outputs_of.items()},
        "floor_ms": round(1e3 * operations / max(gemm), 3),
        "gemm_gflops": round(max(gemm) / 1e9, 1),
    }


def _gemm_flops() -> float:
    a = torch.randn(1024, 1024)
    began = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * 1024**3 / (time.perf_counter() - began)


def memory(workload: str, name: str) -> dict:
    """Measure the peak resident memory of 20 steps, in bytes above that before the engine is created."""
    torch.set_num_threads(1)
    single = problem(*WORKLOADS[workload], torch.float32)
    torch.nn.functional.cross_entropy(mlp_warm(single.x[:8]), torch.zeros(8, dtype=torch.int64)).backward()
    before = _status("VmRSS")
    engine = ENGINES[name](single)
    for _ in range(20):
        engine.step()
    return {"peak_bytes": _status("VmHWM") - before}


def mlp_warm(x: torch.Tensor) -> torch.Tensor:
    """Run one small network, so that threads and libraries are loaded before memory is measured."""
    return torch.nn.Sequential(torch.nn.Linear(x.shape[1], 10), torch.nn.ReLU())(x)


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(match[1]) * 1024 if match else 0


def sweep(threads: int) -> dict:
    """Train a model-wise double descent: 15 widths, 6 seeds, 950 rows with 20 % wrong labels, 5,000 steps of 200 rows."""
    torch.set_num_threads(threads)
    data = digits(n_train=997, seed=0)
    x, x_test = (data.x_train - 0.3) * 2, (data.x_test - 0.3) * 2
    members = []
    for seed in range(6):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:950]
        labels = corrupt_labels(data.y_train[rows], 0.2, "symmetric", seed=seed).y
        members += [Member(width, rows, labels, seed, seed) for width in SWEEP_WIDTHS]
    recipe = Recipe(lr=0.01, schedule="wsd", batch_size=200, steps=5000)
    ensemble = train_mlps(members, x, test=(x_test, data.y_test), recipe=recipe)
    errors = ensemble.metrics[-1].test_error.view(6, len(SWEEP_WIDTHS)).mean(0)
    trained = ensemble.metrics[-1].train_error.view(6, len(SWEEP_WIDTHS)).mean(0)
    return {
        "threads": threads,
        "networks": len(members),
        "steps": recipe.steps,
        "seconds": round(ensemble.seconds, 2),
        "widths": SWEEP_WIDTHS,
        "test_error": [round(float(value), 4) for value in errors],
        "train_error": [round(float(value), 4) for value in trained],
    }


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "time":
        result = timed(rest[0], int(rest[1]), int(rest[2]), float(rest[3]))
    else:
        result = memory(*rest) if task == "memory" else sweep(int(rest[0]))
    print(json.dumps(result))
