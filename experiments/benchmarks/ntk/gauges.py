"""Memory, errors and GEMM peak, measured the same for every engine; NumPy alone, since JAX peers have no torch."""

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

import numpy as np

__all__ = ["available", "errors", "forbid_more_than", "peak", "pin", "reset_peak", "resident"]


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes. Unlike ru_maxrss, VmHWM is this program's own, not its parent's."""
    path = Path("/proc/self/status")
    if not path.is_file():  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(re.search(rf"{field}:\s+(\d+) kB", path.read_text()).group(1)) * 1024


def resident() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes resident since the start or the last reset."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Start counting the peak from here; where the system cannot, the peak since the start stands."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available() -> int:
    """Bytes that can be had without swapping."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return 8 * 2**30
    return int(re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()).group(1)) * 1024


def forbid_more_than(extra: int) -> None:
    """Let allocations fail beyond ``extra`` bytes from here, so that a wrong estimate cannot exhaust the machine."""
    if Path("/proc/self/status").is_file():
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + extra, hard))


def pin(threads: int) -> None:
    """Keep to as many cores as threads: some peers' thread pools follow no option but the cores they see."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def errors(kernel: np.ndarray, reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative errors: the worst row (on the anchor columns), and all entries together, both in Frobenius norm.

    The latter is estimated: |(K − K₀) s|² has the mean |K − K₀|² over random signs s, and |K₀|² is read off the anchor
    columns. A kernel of another shape, or with NaN, has infinite error.
    """
    rows, products = reference["anchors"], reference["products"]
    full = reference["columns"].ndim == 4
    n = len(reference["columns"])
    if kernel.shape != (n, n, *reference["columns"].shape[2:]) or not np.isfinite(kernel).all():
        return {"error_rows": float("inf"), "error_all": float("inf")}
    gap = np.abs(kernel[:, rows].astype(np.float64) - reference["columns"]).reshape(n, -1)
    worst = np.linalg.norm(gap, axis=1) / np.linalg.norm(reference["columns"].reshape(n, -1), axis=1)
    found = np.empty_like(products)
    for start in range(0, n, 500):
        part = kernel[start : start + 500].astype(np.float64)
        rule = "nmab,mpb->npa" if full else "nm,mp->np"
        found[start : start + 500] = np.einsum(rule, part, reference["signs"], optimize=True)
    norm = np.linalg.norm(reference["columns"]) * np.sqrt(n / len(rows) * products.shape[1])
    overall = np.linalg.norm(found - products) / norm
    return {"error_rows": float(worst.max()), "error_all": float(overall)}
