"""Audit of many rows within a limited memory: peak memory and time of each stage, by the kernel method and by retraining.

The data are ten Gaussian classes in 40 dimensions, a tenth of the labels wrong, and the network is a small MLP. Each audit
runs in a process of its own; the peak is that of the whole process, imports and training included. Times are those of the
processor with one thread.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

import kernelmem as km
from experiments.benchmarks.ntk import gauges
from experiments.machine import describe
from kernelmem.training import Recipe, train_classifier

__all__ = ["METHODS", "Options", "measure", "run"]

DIMENSIONS, CLASSES, WIDTH = 40, 10, 256
SPREAD = 0.55  # of the class centers, in standard deviations of a class
NOISE = 0.1  # share of wrong labels
EPOCHS = 60
MODELS = 32  # networks of the audit by retraining
STAGES = ("outputs", "kernel", "leave-one-out", "method", "findings and attacks", "label bits", "report")
METHODS = ("kernel", "retraining")


@dataclass(frozen=True)
class Options:
    """Audit of many rows within a limited memory."""

    n: int = 10_000
    """Training rows."""
    n_test: int = 500
    """Test rows."""
    memory: str = "1200MiB"
    """Memory of the audit."""
    methods: tuple[str, ...] = METHODS
    """Methods: kernel, retraining."""
    out: Path = Path("out/benchmarks/large")
    """Directory for audits.json."""


def run(options: Options) -> None:
    """Measure, print and write the results after each method."""
    results: dict = {"machine": describe(), "load": round(os.getloadavg()[0], 2)}
    for method in options.methods:
        results[method] = _child(method, options.n, options.n_test, options.memory)
        print(json.dumps({method: results[method]}, indent=1), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "audits.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _child(*arguments: object) -> dict:
    call = f"audits.measure({', '.join(map(repr, arguments))})"
    code = f"import json\nfrom experiments.benchmarks.large import audits\nprint(json.dumps({call}))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, env=environment).stdout
    return json.loads(output.decode().splitlines()[-1])


def data(n: int, n_test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x_train, y_train, x_test, y_test with true labels."""
    generator = torch.Generator().manual_seed(0)
    centers = SPREAD * torch.randn(CLASSES, DIMENSIONS, generator=generator)
    y = torch.randint(CLASSES, (n + n_test,), generator=generator)
    x = centers[y] + torch.randn(n + n_test, DIMENSIONS, generator=generator)
    return x[:n], y[:n], x[n:], y[n:]


def measure(method: str, n: int, n_test: int, memory: str) -> dict:
    """Train a network, audit it, and return peak memory and processor seconds of each stage and the findings."""
    torch.set_num_threads(1)
    x, y, x_test, y_test = data(n, n_test)
    noisy = km.corrupt_labels(y, NOISE, seed=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIMENSIONS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    train_classifier(model, x, noisy.y, epochs=EPOCHS, lr=3e-3, seed=0)
    retrain = km.EnsembleTraining(Recipe(steps=500, lr=3e-3), (WIDTH,)) if method == "retraining" else None
    options = km.AuditOptions(retrain=retrain, n_models=MODELS if retrain else None, n_verified=0)
    before, overall = gauges.resident(), gauges.peak()
    stages: dict[str, dict[str, float]] = {}
    clock = [time.process_time()]
    gauges.reset_peak()

    def stage(done: int, _total: int) -> None:
        nonlocal overall
        now, peak = time.process_time(), gauges.peak()
        stages[STAGES[done]] = {"peak_bytes": peak, "processor_seconds": round(now - clock[0], 1)}
        print(STAGES[done], stages[STAGES[done]], file=sys.stderr, flush=True)
        clock[0], overall = now, max(overall, peak)
        gauges.reset_peak()

    started = time.perf_counter()
    audit = km.audit(
        model, (x, noisy.y), (x_test, y_test), flipped=noisy.flipped, memory=memory, progress=stage, options=options
    )
    document = audit.document
    assert document.flips is not None
    return {
        "n": n,
        "n_test": n_test,
        "memory": memory,
        "resident_before_bytes": before,
        "peak_bytes": overall,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(sum(value["processor_seconds"] for value in stages.values()), 1),
        "stages": stages,
        "verdict": document.verdict.status,
        "flagged_rows": document.how_much.n_flagged,
        "memorized_share": [document.how_much.fraction.low, document.how_much.fraction.high],
        "flips_auroc": None if document.flips.auroc is None else document.flips.auroc.value,
        "label_bits": document.compression.status,
    }


if __name__ == "__main__":
    run(tyro.cli(Options))
