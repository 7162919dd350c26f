"""Write a kernel that does not fit into memory to a file, and solve with it in a fresh process."""

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
    """Write the kernel of n rows in float32, block by block."""
    K = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, n))
    for i in range(0, n, BLOCK):
        K[i : i + BLOCK] = kernel_of_rows(n, columns=slice(i, i + BLOCK), dtype=np.float32)
    K.flush()


def measure(path: Path) -> dict:
    """Return seconds of one pass over the file and of the solve, the fields of the solution, and memory."""
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
    solution = solve(K, y, NOISE, tolerance=1e-6)
    seconds = time.perf_counter() - began
    return {
        "read_once_s": once,
        "solve_s": seconds,
        "products": solution.iterations,
        "code": solution.code.value,
        "solver": solution.solver,
        "residual": solution.residual,
        "condition": solution.condition,
        "detail": solution.detail,
        "peak_bytes": peak_bytes(),
        "file_bytes": path.stat().st_size,
    }


def beat() -> None:
    """Print one line per minute to the error stream, because the solve reports nothing until it ends."""
    began = time.perf_counter()
    while True:
        time.sleep(60)
        print(f"  {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    threading.Thread(target=beat, daemon=True).start()
    print(json.dumps(measure(Path(sys.argv[1]))))
