"""A kernel in a file that does not fit into the memory allowed: written, then solved in a fresh process."""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from experiments.benchmarks.audit.child import peak_bytes
from experiments.benchmarks.machines.configs import NOISE, OUTPUTS
from experiments.benchmarks.machines.direct import kernel_of_rows
from kernelmem.kernel_machines import solve

BLOCK = 1000


def write(path: Path, n: int) -> None:
    """The kernel of n rows in float32, block by block."""
    K = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, n))
    for i in range(0, n, BLOCK):
        K[i : i + BLOCK] = kernel_of_rows(n, columns=slice(i, i + BLOCK), dtype=np.float32)
    K.flush()


def measure(path: Path) -> dict:
    """Seconds of one pass over the file and of the solve; what the solve says of itself; memory."""
    K = np.load(path, mmap_mode="r")
    n = len(K)
    rng = np.random.default_rng(1)
    y = np.sin(9 * K[:OUTPUTS].T) + NOISE**0.5 * rng.standard_normal((n, OUTPUTS))
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(2**26)
        while file.readinto(buffer):
            pass
    once = time.perf_counter() - began
    began = time.perf_counter()
    found = solve(K, y, NOISE, tolerance=1e-6)
    seconds = time.perf_counter() - began
    return {
        "read_once_s": once,
        "solve_s": seconds,
        "products": found.iterations,
        "code": found.code.value,
        "solver": found.solver,
        "residual": found.residual,
        "condition": found.condition,
        "detail": found.detail,
        "peak_bytes": peak_bytes(),
        "file_bytes": path.stat().st_size,
    }


def beat() -> None:
    """A line a minute on the error stream: the solve itself reports nothing until it ends."""
    began = time.perf_counter()
    while True:
        time.sleep(60)
        print(f"  {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    threading.Thread(target=beat, daemon=True).start()
    print(json.dumps(measure(Path(sys.argv[1]))))
