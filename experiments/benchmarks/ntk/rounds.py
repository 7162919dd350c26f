"""Interleaved rounds, A B C A B C, and what is made of them."""

import statistics
from collections.abc import Callable

from experiments.benchmarks.ntk.configs import Options, Row
from experiments.benchmarks.ntk.engines import ENGINES
from experiments.benchmarks.ntk.floors import gflop
from experiments.benchmarks.ntk.processes import measure, write_materials

__all__ = ["CORRECT", "best_peer", "compare", "measure_row"]

SLOW = 5.0  # seconds a call, from where one round is enough
CORRECT = 1e-3  # largest relative error of a float32 kernel that counts as right
OWN = ("ours", "ours-1GiB", "ours-unverified", "torch_func_improved")  # no peer as published


def measure_row(row: Row, options: Options, peak_gflops: float, say: Callable[[str], None]) -> dict:
    """All engines on one row."""
    write_materials(row, options.threads)
    found: dict[str, dict] = {}
    for turn in range(options.rounds):
        for name in options.engines:
            if turn and (found[name]["status"] != "ok" or found[name]["median"] > SLOW):
                continue
            result = measure(row, name, options)
            if result["status"] == "over time":
                result = _extrapolated(row, name, options) or result
            found[name] = _merged(found.get(name), result)
            say(f"{row.name}  round {turn + 1}  {ENGINES[name].title}: {_short(found[name])}")
    if not options.quick:
        _default_allocator(row, options, found)
    operations = gflop(row.workload, row.n, row.outputs)
    floor = operations / peak_gflops
    for result in found.values():
        if "median" in result:
            result["fraction_of_peak"] = floor / result["median"]
    return {
        "workload": row.workload,
        "n": row.n,
        "outputs": row.outputs,
        "gflop": operations,
        "floor_s": floor,
        **compare(found, row.target),
        "engines": found,
    }


def _merged(before: dict | None, result: dict) -> dict:
    """All rounds of one engine: every time, the largest peak, the largest error; a later failure is told."""
    if "seconds" not in result:
        return result
    if before is None:
        before = {"seconds": [], "warm_up": [], "peak_bytes": 0, "error_rows": 0.0, "error_all": 0.0}
    seconds = before["seconds"] + result["seconds"]
    largest = {name: max(before[name], result[name]) for name in ("peak_bytes", "error_rows", "error_all")}
    return {
        "status": result["status"],
        "seconds": seconds,
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "warm": result["warm"],
        "warm_up": [*before["warm_up"], result["warm_up"]],
        **largest,
        "correct": max(largest["error_rows"], largest["error_all"]) < CORRECT,
        **({"reason": result["reason"]} if "reason" in result else {}),
    }


def _extrapolated(row: Row, engine: str, options: Options) -> dict | None:
    """Time of a quarter of the rows, times 16."""
    quarter = Row(row.workload, max(8, row.n // 4), row.outputs)
    write_materials(quarter, options.threads)
    result = measure(quarter, engine, options)
    if result["status"] != "ok":
        return None
    seconds = [value * (row.n / quarter.n) ** 2 for value in result["seconds"]]
    return result | {
        "status": "extrapolated",
        "seconds": seconds,
        "reason": f"over {options.limit:.0f} s; n = {quarter.n} took {min(result['seconds']):.1f} s, scaled by n²",
    }


def _default_allocator(row: Row, options: Options, found: dict[str, dict]) -> None:
    """One process more as a user would start it: its time, and its peak memory, which is the one reported."""
    for name, result in found.items():
        if result["status"] == "ok" and result["median"] < SLOW:
            again = measure(row, name, options, tuned=False)
            if again["status"] == "ok":
                result["tuned_peak_bytes"] = result["peak_bytes"]
                result["peak_bytes"] = again["peak_bytes"]
                result["default_allocator_s"] = statistics.median(again["seconds"])


def best_peer(found: dict[str, dict]) -> str | None:
    """The fastest published engine with a right result."""
    right = {name: r["median"] for name, r in found.items() if r.get("correct") and name not in OWN}
    return min(right, key=right.get) if right else None


def compare(found: dict[str, dict], target: float | None) -> dict:
    """Ratios that the issue asks for; None where one side is missing."""
    best = best_peer(found)

    def ratio(above: str | None, below: str, field: str = "median") -> float | None:
        values = [found.get(name or "", {}) for name in (above, below)]
        return values[0][field] / values[1][field] if all(v.get("correct") for v in values) else None

    return {
        "best_peer": best,
        "times_faster": ratio(best, "ours"),
        "target": target,
        "times_faster_than_improved": ratio("torch_func_improved", "ours"),
        "peak_over_best_peer": ratio("ours", best, "peak_bytes") if best else None,
        "bounded_over_unbounded": ratio("ours-1GiB", "ours"),
        "verified_over_unverified": ratio("ours", "ours-unverified"),
    }


def _short(result: dict) -> str:
    if "median" not in result:
        return f"{result['status']} ({result['reason']})"
    wrong = "" if result["correct"] else f"  WRONG by {max(result['error_rows'], result['error_all']):.1g}"
    return f"{result['median']:.4g} s, {result['peak_bytes'] / 1e6:.0f} MB{wrong}"
