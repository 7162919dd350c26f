"""Stored kernel of many rows: peak memory, time relative to the products of its tiles, store overhead, and Dask workers.

The network is W1 of the tangent benchmark, an MLP 784-512-512-10. Each part runs in a process of its own. Times are those of
the processor with one thread, which other programs on the machine change least; products are timed alone between the tiles
that use them, every few tiles. The main thread sweeps and multiplies while another one hashes and writes: its time is that of
the call where a second core is idle. Times on Dask workers are by the wall clock, which needs an idle machine, and those of
the processor for each worker.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kernelmem as km
from experiments.benchmarks.ntk import gauges
from experiments.machine import describe
from kernelmem.kernels.large import Worker

__all__ = ["Options", "measure_dask", "measure_store", "run"]

PRODUCTS_EVERY = 6  # tiles


@dataclass(frozen=True)
class Options:
    """Peak memory and time of a stored kernel of W1."""

    n: int = 20_000
    """Rows."""
    memory: str = "2GiB"
    """Memory of the call."""
    threads: int = 1
    """Threads of torch."""
    unverified: bool = False
    """Measure also without the comparison of passes with autograd."""
    dask_rows: int = 6000
    """Rows of the kernel on one and on two Dask workers; 0 leaves this out."""
    out: Path = Path("out/benchmarks/large")
    """Directory for results.json."""


def run(options: Options) -> None:
    """Measure, print and write the results."""
    results = {"machine": describe(), "load": round(os.getloadavg()[0], 2)}
    for verify in (True, False) if options.unverified else (True,):
        name = "store" if verify else "store, passes not compared with autograd"
        results[name] = _child("measure_store", options.n, options.memory, options.threads, verify)
        print(json.dumps(results[name], indent=1), flush=True)
    if options.dask_rows:
        results["dask"] = _child("measure_dask", options.dask_rows)
        print(json.dumps(results["dask"], indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _child(function: str, *arguments: object) -> dict:
    call = f"run.{function}({', '.join(map(repr, arguments))})"
    code = "import json\nfrom experiments.benchmarks.large import run\n"
    code += f"if __name__ == '__main__':\n    print(json.dumps({call}))\n"
    with tempfile.TemporaryDirectory() as folder:  # a file: spawned workers import it
        script = Path(folder) / "child.py"
        script.write_text(code, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
        output = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, env=environment).stdout
    return json.loads(output.decode().splitlines()[-1])


def network() -> nn.Module:
    """Return W1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def rows(n: int) -> Tensor:
    """Return n rows for W1."""
    return torch.randn(n, 784, generator=torch.Generator().manual_seed(1))


class _Clock:
    """Processor seconds of the calls of some methods, and of the products alone of every few tiles."""

    def __init__(self) -> None:
        self.seconds = {"sweeps": 0.0, "tiles": 0.0, "products": 0.0, "tiles_with_products": 0.0, "extra": 0.0}
        self.n_tiles = 0

    def install(self) -> None:
        clock, sweep, tile = self, Worker.sweep, Worker.tile

        def timed_sweep(self, side, index):
            started = time.process_time()
            try:
                return sweep(self, side, index)
            finally:
                clock.seconds["sweeps"] += time.process_time() - started

        def timed_tile(self, i, j):
            started = time.thread_time()
            result = tile(self, i, j)
            spent = time.thread_time() - started
            clock.seconds["tiles"] += spent
            if i != j:
                clock.n_tiles += 1
                if clock.n_tiles % PRODUCTS_EVERY == 1:
                    started = time.process_time()
                    clock.seconds["tiles_with_products"] += spent
                    clock.seconds["products"] += _products(self, i, j)
                    clock.seconds["extra"] += time.process_time() - started
            return result

        Worker.sweep, Worker.tile = timed_sweep, timed_tile


def _products(worker: Worker, i: int, j: int) -> float:
    """Return the processor seconds of the products of a tile, without anything else."""
    total = 0.0
    for block in worker.blocks:
        for x, y in zip(worker.tangents(0, i, block), worker.tangents(0, j, block), strict=True):
            for name in x:
                a, b = x[name].flatten(1), y[name].flatten(1)
                out = torch.ones(len(a), len(b))  # ones: its pages exist
                started = time.thread_time()
                torch.mm(a, b.T, out=out)
                total += time.thread_time() - started
    return total


def measure_store(n: int, memory: str, threads: int, verify: bool) -> dict:
    """Compute the kernel of n rows once."""
    torch.set_num_threads(threads)
    model, x, clock = network(), rows(n), _Clock()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        km.ntk_store(model, x[:300], path=Path(folder) / "warm").close()
        plan = km.ntk_store_plan(model, x, memory=memory, path=Path(folder) / "kernel")
        clock.install()
        before = gauges.resident()
        gauges.reset_peak()
        wall, processor, main = time.perf_counter(), time.process_time(), time.thread_time()
        options = km.StoreOptions(verify=verify)
        store = km.ntk_store(model, x, memory=memory, path=Path(folder) / "kernel", progress=False, options=options)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor - clock.seconds["extra"]
        main = time.thread_time() - main - clock.seconds["extra"]
        peak = gauges.peak()
        reference = km.ntk(model, x[:200], x[-300:])
        error = float((store.rows(0, 200)[:, -300:] - reference).abs().max() / reference.abs().max())
        store_bytes = (Path(folder) / "kernel").stat().st_size
        store.close()
    seconds = clock.seconds
    # tiles on the diagonal cost half; their share is that of the tiles that were timed
    products = seconds["tiles"] * seconds["products"] / seconds["tiles_with_products"]
    return {
        "n": n,
        "memory": memory,
        "threads": threads,
        "plan": str(plan).splitlines(),
        "expected_bytes": plan.expected_bytes,
        "peak_above_bytes": peak - before,
        "peak_bytes": peak,
        "peak_over_plan": round((peak - before) / plan.expected_bytes, 3),
        "wall_seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
        "of_which": {
            "products": round(products, 2),
            "tiles": round(seconds["tiles"], 2),
            "sweeps": round(seconds["sweeps"], 2),
            "store, hashes of the rows, checks": round(processor - seconds["tiles"] - seconds["sweeps"], 2),
        },
        "main_thread_seconds": round(main, 2),
        "main_thread_over_products": round(main / products, 3),
        "all_threads_over_products": round(processor / products, 3),
        "expected_seconds": round(plan.seconds, 2),
        "store_bytes": store_bytes,
        "error": error,
    }


def measure_dask(n: int) -> dict:
    """Time the kernel of n rows on one and on two Dask workers, by the wall clock and by their processor time."""
    from distributed import Client, LocalCluster

    model, x, seconds = network(), rows(n), {}
    workers: dict[str, list[float]] = {}
    for count in (1, 2):
        with (
            tempfile.TemporaryDirectory(dir=".") as folder,
            LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            options = km.StoreOptions(tile=1000)
            executor = client.get_executor()
            km.ntk_store(model, x[:2000], path=Path(folder) / "warm", executor=executor, options=options).close()
            before: Any = client.run(time.process_time)
            started = time.perf_counter()
            store = km.ntk_store(
                model, x, path=Path(folder) / "kernel", executor=executor, options=options, progress=False
            )
            seconds[str(count)] = round(time.perf_counter() - started, 2)
            after: Any = client.run(time.process_time)
            workers[str(count)] = [round(after[name] - before[name], 2) for name in after]
            store.close()
    return {
        "n": n,
        "load": round(os.getloadavg()[0], 2),
        "wall_seconds": seconds,
        "speedup": round(seconds["1"] / seconds["2"], 2),
        "processor_seconds_of_workers": workers,
        "speedup_of_processor_seconds": round(max(workers["1"]) / max(workers["2"]), 2),
    }
