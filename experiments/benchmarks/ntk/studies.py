"""Scaling of ours: time and peak memory along one size, the exponent by least squares on logarithms."""

import math
import statistics
from collections.abc import Callable

from experiments.benchmarks.ntk.configs import Options, Study
from experiments.benchmarks.ntk.processes import measure, write_materials

__all__ = ["exponent", "measure_study"]


def measure_study(study: Study, options: Options, say: Callable[[str], None]) -> dict:
    """Every size once a round, sizes interleaved."""
    for row in study.rows:
        write_materials(row, options.threads)
    seconds: dict[int, list[float]] = {size: [] for size in study.sizes}
    peaks: dict[int, int] = dict.fromkeys(study.sizes, 0)
    errors: dict[int, float] = dict.fromkeys(study.sizes, 0.0)
    failures: dict[int, str] = {}
    for turn in range(min(options.rounds, 3)):
        for size, row in zip(study.sizes, study.rows, strict=True):
            if size in failures:
                continue
            result = measure(row, "ours", options, memory=study.memory, tuned=False)
            if result["status"] != "ok":
                failures[size] = f"{result['status']}: {result.get('reason', '')}"
                continue
            seconds[size] += result["seconds"]
            peaks[size] = max(peaks[size], result["peak_bytes"])
            errors[size] = max(errors[size], result["error_rows"], result["error_all"])
            say(f"{study.name} {size}  round {turn + 1}: {seconds[size][-1]:.4g} s, {peaks[size] / 1e6:.0f} MB")
    points = [
        {
            "size": size,
            "median": statistics.median(seconds[size]),
            "min": min(seconds[size]),
            "max": max(seconds[size]),
            "peak_bytes": peaks[size],
            "error": errors[size],
        }
        for size in study.sizes
        if seconds[size] and size not in failures
    ]
    sizes, medians = [p["size"] for p in points], [p["median"] for p in points]
    return {
        "label": study.label,
        "memory": study.memory,
        "points": points,
        "exponent": exponent(sizes, medians),
        "last_exponent": exponent(sizes[-2:], medians[-2:]),
        "failures": failures,
    }


def exponent(sizes: list[int], seconds: list[float]) -> float | None:
    """Slope of log seconds against log size.

    >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    if len(sizes) < 2:
        return None
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope
