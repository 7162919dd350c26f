"""Run every engine on every row in fresh processes, in turn; write results.json after each row, print the table."""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from experiments import machine
from experiments.benchmarks.loss_gradients.configs import ENGINES, QUICK, ROWS, SETUP, Options, Row
from experiments.benchmarks.loss_gradients.peers_setup import FOLDER, NEEDED, PEERS
from experiments.benchmarks.ntk.engines import ROOT
from experiments.benchmarks.ntk.processes import KEEP_MEMORY
from experiments.benchmarks.ntk.rounds import CORRECT
from kernelmem.core import InputError, write_file

__all__ = ["run", "select", "table"]

SLOW = 5.0  # seconds a call, from where one round is enough


def run(options: Options) -> dict:
    """Everything the options name."""
    rows = select(options)
    if options.quick:
        options = dataclasses.replace(options, rounds=1, calls=0, threads=1)
    results = {
        "machine": machine.describe() | {"threads": options.threads},
        "peers": [*PEERS, *NEEDED],
        "dtype": "float32",
        "rounds": options.rounds,
        "calls": options.calls,
        "allocator": "keeps freed memory" if options.keep_memory else "default",
        "rows": {},
    }
    _start("problems", [row.name for row in rows], options, timeout=None)
    for row in rows:
        results["rows"][row.name] = _measure_row(row, options)
        write_file(options.out / "results.json", json.dumps(results, indent=1) + "\n")
    print(table(results))
    return results


def select(options: Options) -> list[Row]:
    """Rows by name.

    >>> [row.name for row in select(Options(only=("W1", "GPT-layers-128")))]
    ['W1-all-512', 'GPT-layers-128']
    """
    known = QUICK if options.quick else ROWS
    names = {row.workload for row in known} | {row.name for row in known}
    if unknown := sorted(set(options.only) - names):
        raise InputError(f"only={unknown}", expected=f"some of {', '.join(sorted(names))}", hint="check the names")
    if unknown := sorted(set(options.engines) - set(ENGINES)):
        raise InputError(f"engines={unknown}", expected=f"some of {', '.join(ENGINES)}", hint="check the names")
    return [row for row in known if not options.only or {row.workload, row.name} & set(options.only)]


def _measure_row(row: Row, options: Options) -> dict:
    found: dict[str, list[dict]] = {name: [] for name in options.engines}
    with ThreadPoolExecutor(2 if options.quick else 1) as pool:
        for turn in range(options.rounds):
            left = [name for name, results in found.items() if not results or _again(results[-1])]
            for name, result in zip(left, pool.map(lambda name: _measure(row, name, options), left), strict=True):
                found[name].append(result)
                print(f"{row.name}  round {turn + 1}  {ENGINES[name].title}: {_short(result)}", flush=True)
    engines = {name: _merged(results) for name, results in found.items()}
    right = {name: result["median"] for name, result in engines.items() if result.get("correct")}
    peers = [name for name in right if not ENGINES[name].own]
    best = min(peers, key=lambda name: right[name]) if peers else None

    def ratio(own: str) -> float | None:
        return right[best] / right[own] if best and own in right else None

    memory = engines["ours"]["peak_bytes"] / max(1, engines[best]["peak_bytes"]) if best and "ours" in right else None
    return dataclasses.asdict(row) | {
        "best_peer": best,
        "times_faster": ratio("ours"),
        "times_faster_unverified": ratio("ours-unverified"),
        "peak_over_best_peer": memory,
        "engines": engines,
    }


def _again(result: dict) -> bool:
    return result["status"] == "ok" and statistics.median(result["seconds"]) < SLOW


def _measure(row: Row, engine: str, options: Options) -> dict:
    """What child.py prints, or why it printed nothing."""
    if ENGINES[engine].installed and not FOLDER.exists():
        return {"status": "not installed", "reason": f"see `{SETUP}`"}
    arguments = ["--engine", engine, "--workload", row.workload, "--n", str(row.n), "--covers", row.covers]
    arguments += ["--calls", str(options.calls), "--limit", str(options.limit), "--threads", str(options.threads)]
    try:
        done = _start("child", arguments, options, timeout=2 * options.limit + 60)
    except subprocess.TimeoutExpired:
        return {"status": "over time", "reason": f"more than {2 * options.limit + 60:.0f} s"}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        died = "killed by the system" if error.returncode < 0 else lines[-1]
        return {"status": "failed", "reason": _without_paths(died)}
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return result | ({"reason": _without_paths(result["reason"])} if "reason" in result else {})


def _start(
    module: str, arguments: list[str], options: Options, timeout: float | None
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
    kept |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    kept |= KEEP_MEMORY if options.keep_memory else {}
    command = [sys.executable, "-m", f"experiments.benchmarks.loss_gradients.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept, check=True, capture_output=True, text=True, timeout=timeout)


def _without_paths(text: str) -> str:
    """Results are published: no directory of this machine in them."""
    return re.sub(r"(?<![\w.])/[\w./+-]*/", "", text)[:300]


def _merged(results: list[dict]) -> dict:
    """All rounds of one engine: every time, the largest peak, the largest error; a failure in any round is the result."""
    failed = [result for result in results if result["status"] != "ok"]
    if failed:
        return failed[0]
    seconds = [value for result in results for value in result["seconds"]]
    error = max(max(result["error_rows"], result["error_all"]) for result in results)
    return {
        "status": "ok",
        "seconds": seconds,
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "warm": all(result["warm"] for result in results),
        "warm_up": [result["warm_up"] for result in results],
        "peak_bytes": max(result["peak_bytes"] for result in results),
        "parameters": results[0]["parameters"],
        "error": error,
        "correct": error < CORRECT,
    }


def _short(result: dict) -> str:
    if "seconds" not in result:
        return f"{result['status']}: {result['reason']}"
    error = max(result["error_rows"], result["error_all"])
    wrong = "" if error < CORRECT else f"  WRONG by {error:.1g}"
    return f"{statistics.median(result['seconds']):.4g} s, {result['peak_bytes'] / 1e6:.0f} MB{wrong}"


def table(results: dict) -> str:
    """A block a row, one line an engine."""
    return "\n\n".join(_block(name, row) for name, row in results["rows"].items())


def _block(name: str, row: dict) -> str:
    lines = [f"{name:<44} {'seconds':>9} {'(range)':>17} {'peak MB':>8} {'error':>8} {'parameters':>11}"]
    for engine, result in row["engines"].items():
        title = ENGINES[engine].title
        if "median" not in result:
            lines.append(f"  {title:<42} {result['status']}: {result['reason']}")
            continue
        span = f"({result['min']:.3g}-{result['max']:.3g})"
        note = ("" if result["warm"] else "  cold") + ("" if result["correct"] else "  WRONG")
        lines.append(
            f"  {title:<42} {result['median']:>9.4g} {span:>17} {result['peak_bytes'] / 1e6:>8.0f}"
            f" {result['error']:>8.0e} {result['parameters']:>11,}{note}"
        )
    if row["times_faster"]:
        best, unverified = ENGINES[row["best_peer"]].title, row["times_faster_unverified"]
        without = f" ({unverified:.2f} without verification)" if unverified else ""
        lines.append(
            f"  {row['times_faster']:.2f} times faster than {best}{without}; memory {row['peak_over_best_peer']:.2f}"
        )
    return "\n".join(lines)
