"""Interleaved rounds of one row, A B C A B C, and what is made of them."""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks.ledger.configs import Options, Row
from experiments.benchmarks.ledger.engines import ENGINES
from experiments.benchmarks.ledger.processes import measure
from experiments.benchmarks.ledger.workloads import Problem, Workload

__all__ = ["compare", "measure_row"]

ROUNDING = 1e-15  # of float64: no residual is called smaller than that
SLOW = 1.5  # seconds per call, from where one round is enough
THREADS = (1, 2)  # of ours compared with training
PUBLISHED = ("explaind", "explaind-100", "explaind-2", "explaind-2-2")  # the whole ledger of a run


def measure_row(row: Row, options: Options, say: Callable[[str], None]) -> dict:
    """Everything that is measured on one run."""
    measured = {"training": _with_training, "recorder": _recorder}.get(row.kind, _engines)(row, options, say)
    return {"kind": row.kind, "network": row.workload.network, **_facts(row.workload), "target": row.target, **measured}


def _facts(workload: Workload) -> dict:
    names = ("optimizer", "steps", "dtype", "n", "batch", "tests", "flipped")
    return {"classes": workload.sizes[-1], **{name: getattr(workload, name) for name in names}}


def _engines(row: Row, options: Options, say: Callable[[str], None]) -> dict:
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        problem = Problem.make(row.workload, run)
        for turn in range(options.rounds):
            for name in row.engines:
                if turn and _done(found[name]):
                    continue
                if reason := ENGINES[name].missing():
                    found[name] = {"status": "not installed", "reason": reason}
                    continue
                threads = ENGINES[name].threads
                result = measure("analyze", row.workload, threads=threads, run=run, engine=name, calls=options.calls)
                found[name] = _merged(found.get(name), result)
                say(f"{row.name}  round {turn + 1}  {ENGINES[name].title}: {_short(found[name])}")
        _compare_contributions(row, problem, found)
    return {"engines": found, **compare(found)}


def _done(result: dict) -> bool:
    return result["status"] != "ok" or result["ms_per_step"]["median"] * result["steps"] > 1e3 * SLOW


def _merged(before: dict | None, result: dict) -> dict:
    """All rounds: every time, the largest peak and residual; a later failure is told."""
    if result["status"] != "ok":
        return result
    merged = dict(result)
    for name, value in result.items():
        if isinstance(value, list):
            values = (before[name]["values"] if before else []) + value
            merged[name] = summary(values)
        elif before is not None and isinstance(value, int | float) and name != "steps":
            merged[name] = max(before[name], value)
    return merged


def summary(values: list[float]) -> dict:
    """Median and range, and every value."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": [float(f"{value:.5g}") for value in values],
    }


def _compare_contributions(row: Row, problem: Problem, found: dict[str, dict]) -> None:
    """Largest difference of an engine's contributions to those of our ledger of the same outputs, and the largest one."""
    folder = problem.run.path
    for name, result in found.items():
        if result["status"] != "ok" or name in ("ours", "ours-log") or "steps" in name:
            continue
        own = np.load(folder / f"{name}.npy")
        if row.kind == "groups":
            reference = _summed_by_group(problem)
        else:
            path = folder / ("ours-log.npy" if ENGINES[name].peer else "ours.npy")
            if not path.exists():
                continue
            reference = np.load(path)
        result["contributions_differ"] = float(np.abs(own - reference).max())
        result["largest_contribution"] = float(np.abs(reference).max())


def _summed_by_group(problem: Problem) -> np.ndarray:
    from kernelmem.trajectory import LedgerOptions, ledger

    x, y, flipped = problem.data
    own = ledger(problem.run, problem.workload.model(), problem.x, options=LedgerOptions(data=(x, y)))
    groups = y.clone()
    groups[flipped] = problem.workload.sizes[-1]
    return own.by_group(groups).numpy()


def compare(found: dict[str, dict]) -> dict:
    """How many times faster and closer ours, with one thread, is than each of the peer's settings; None where one is missing."""
    ours = found.get("ours", {})
    ratios = {}
    for name in PUBLISHED:
        other = found.get(name, {})
        if ours.get("status") == "ok" and other.get("status") == "ok":
            ratios[name] = {
                "times_faster": other["ms_per_step"]["median"] / ours["ms_per_step"]["median"],
                "times_closer": other["residual"] / max(ours["residual"], ROUNDING),
            }
    return {"compared": ratios} if ratios else {}


def _with_training(row: Row, options: Options, say: Callable[[str], None]) -> dict:
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        Problem.make(row.workload, run)
        for turn in range(options.rounds):
            for threads in THREADS:
                key = f"threads-{threads}"
                if turn and _done(found[key]):
                    continue
                given = {"outputs": row.outputs, "calls": options.calls}
                result = measure("with_training", row.workload, threads=threads, run=run, **given)
                result = result if result["status"] != "ok" else {**result, "training_ms": [result["training_ms"]]}
                found[key] = _merged(found.get(key), result)
                say(f"{row.name}  round {turn + 1}  {threads} thread(s): {_short(found[key])}")
    return {"outputs": row.outputs, "engines": found}


def _recorder(row: Row, options: Options, say: Callable[[str], None]) -> dict:
    result = _merged(None, measure("recording", row.workload, threads=1, calls=options.calls))
    if result["status"] == "ok":
        shown = ", ".join(
            f"{name.removesuffix('_ms')} {result[name]['median']:.3g}" for name in result if name[-3:] == "_ms"
        )
        say(f"{row.name}: {shown} ms per step")
    return {"engines": {"recorder": result}}


def _short(result: dict) -> str:
    if result["status"] != "ok":
        return f"{result['status']} ({result['reason']})"
    own = result["ms_per_step"]
    ratio = f", {result['per_node']['median']:.2f} training steps per node" if "per_node" in result else ""
    return f"{own['median']:.4g} ms per step, residual {result['residual']:.1e}, {result['peak_bytes'] / 1e6:.0f} MB{ratio}"
