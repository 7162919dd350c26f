"""Solve and leave-one-out on a stored kernel of many rows: peak memory, time, and agreement of the two.

The kernel is the trace kernel of W1 of the tangent benchmark, an MLP 784-512-512-10, on random rows. It is computed, solved
by conjugate gradients, and factorized for leave-one-out, each in a process of its own. Times are those of the processor with
one thread. The two methods share nothing but the file: conjugate gradients also solve for a few unit vectors, whose
solutions give the leave-one-out residuals of these rows; and of a few hundred rows, rows are literally left out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import kernelmem as km
from experiments.benchmarks.large.run import network, rows
from experiments.benchmarks.ntk import gauges
from experiments.machine import describe
from kernelmem.kernel_machines import solve

__all__ = ["Options", "build", "by_factor", "by_gradients", "refits", "run"]

RIDGE = 0.01  # of the mean diagonal
CHECKED = 4  # rows whose leave-one-out residuals are computed by both methods
SMALL = 300  # rows of the kernel of which some are literally left out


@dataclass(frozen=True)
class Options:
    """Solve and leave-one-out on a stored kernel of W1."""

    n: int = 20_000
    """Rows."""
    memory: str = "2.5GiB"
    """Memory of leave-one-out."""
    out: Path = Path("out/benchmarks/large")
    """Directory for solves.json."""


def run(options: Options) -> None:
    """Measure, print and write the results."""
    results: dict = {"machine": describe(), "load": round(os.getloadavg()[0], 2), "ridge_over_diagonal": RIDGE}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = str(Path(folder) / "kernel")
        results["store"] = _child("build", path, options.n)
        cg, factor = _child("by_gradients", path), _child("by_factor", path, options.memory)
        first, second = (torch.tensor(part.pop("left_out"), dtype=torch.float64) for part in (cg, factor))
        results |= {"cg": cg, "leave_one_out": factor | {"memory": options.memory}}
        results["difference_of_both"] = float((first - second).abs().max() / second.abs().max())
        results["difference_from_refits"] = _child("refits", str(Path(folder) / "small"))["difference"]
    print(json.dumps(results, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "solves.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _child(function: str, *arguments: object) -> dict:
    """Return the result of a function of this module in a fresh process, with its peak memory and processor seconds."""
    call = f"solves.{function}({', '.join(map(repr, arguments))})"
    code = f"import json\nfrom experiments.benchmarks.large import solves\nprint(json.dumps({call}))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, env=environment).stdout
    result = json.loads(output.decode().splitlines()[-1])
    print(function, {name: value for name, value in result.items() if name != "left_out"}, flush=True)
    return result


@dataclass
class _Measured:
    """Peak of the whole process, and what a call took."""

    resident_before_bytes: int
    peak_bytes: int = 0
    wall_seconds: float = 0.0
    processor_seconds: float = 0.0

    @classmethod
    def started(cls) -> "_Measured":
        return cls(gauges.resident(), wall_seconds=-time.perf_counter(), processor_seconds=-time.process_time())

    def stopped(self) -> dict:
        self.wall_seconds = round(self.wall_seconds + time.perf_counter(), 2)
        self.processor_seconds = round(self.processor_seconds + time.process_time(), 2)
        self.peak_bytes = gauges.peak()
        return asdict(self)


def build(path: str, n: int) -> dict:
    """Compute the stored kernel of n rows."""
    measured = _Measured.started()
    with km.ntk_store(network(), rows(n), path=path, memory="2GiB", progress=False) as store:
        return measured.stopped() | {"n": n, "tile": store.layout.tile, "store_bytes": Path(path).stat().st_size}


def labels(n: int) -> Tensor:
    """Return labels of the rows that depend on them, with noise."""
    x = rows(n)[:, :10] + torch.randn(n, 10, generator=torch.Generator().manual_seed(2))
    return x.argmax(1)


def by_gradients(path: str) -> dict:
    """Solve for ten outputs, and for a few unit vectors, by conjugate gradients."""
    with km.KernelStore.open(path) as store:
        n = store.shape[0]
        ridge, y = RIDGE * float(store.diagonal().double().mean()), labels(n)
        targets = torch.nn.functional.one_hot(y, 10).double() - 0.1
        some = checked_rows(n)
        unit = torch.zeros(n, len(some), dtype=torch.float64)
        unit[some, torch.arange(len(some))] = 1
        measured = _Measured.started()
        solution = solve(store, targets, ridge, solver="cg")
        result = measured.stopped()
        inverse = solve(store, unit, ridge, solver="cg").require().coefficients
        alpha = solution.require().coefficients
        residual = float((store @ alpha + ridge * alpha - targets).norm() / targets.norm())
    left_out = alpha[some] / inverse[some, torch.arange(len(some))][:, None]
    return result | {"iterations": solution.iterations, "residual": residual, "left_out": left_out.tolist()}


def by_factor(path: str, memory: str) -> dict:
    """Compute leave-one-out by a Cholesky factor in panels."""
    with km.KernelStore.open(path) as store:
        n = store.shape[0]
        ridge, y = RIDGE * float(store.diagonal().double().mean()), labels(n)
        measured = _Measured.started()
        result = km.leave_one_out(store, y, ridge, memory=memory)
        figures = measured.stopped()
    return figures | {
        "residual": result.residual,
        "condition": result.condition,
        "mean_margin": float(result.margin.mean()),
        "left_out": result.errors[checked_rows(n)].tolist(),
    }


def checked_rows(n: int) -> list[int]:
    """Return the rows that both methods leave out."""
    return [n * k // CHECKED + 1 for k in range(CHECKED)]


def refits(path: str) -> dict:
    """Compare leave-one-out of a small stored kernel with regressions fitted without a row."""
    options = km.StoreOptions(tile=64)
    with km.ntk_store(network(), rows(SMALL), path=path, progress=False, options=options) as store:
        K, y = store.rows(0, SMALL).double(), labels(SMALL)
        ridge, targets = RIDGE * float(K.diagonal().mean()), torch.nn.functional.one_hot(y, 10).double() - 0.1
        predictions = km.leave_one_out(store, y, ridge, memory="64MiB").predictions
    difference = 0.0
    for row in checked_rows(SMALL):
        others = torch.arange(SMALL) != row
        inside = K[others][:, others] + ridge * torch.eye(SMALL - 1, dtype=torch.float64)
        refit = K[row, others] @ torch.linalg.solve(inside, targets[others])
        difference = max(difference, float((refit - predictions[row]).abs().max()))
    return {"difference": difference}


if __name__ == "__main__":
    run(tyro.cli(Options))
