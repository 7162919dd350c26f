"""What the recorder costs: the same loop without it, with it, and with it and fewer checkpoints, in turn."""

import tempfile
import time
from pathlib import Path

from experiments.benchmarks.ledger.workloads import Workload, record, train

__all__ = ["measure"]


def measure(workload: Workload, task: dict) -> dict:
    """Milliseconds of a step of each, and the bytes on disk."""
    found: dict[str, list[float]] = {"plain_ms": [], "all_ms": [], "sqrt_ms": []}
    size = 0.0
    _plain(workload)
    for _ in range(task["calls"]):
        found["plain_ms"].append(_timed(lambda: _plain(workload), workload))
        for keep in ("all", "sqrt"):
            with tempfile.TemporaryDirectory() as folder:
                found[f"{keep}_ms"].append(_timed(lambda: record(workload, Path(folder) / "run", keep), workload))  # noqa: B023
                if keep == "all":
                    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return found | {"bytes_per_step": size / workload.steps}


def _plain(workload: Workload) -> None:
    model = workload.model()
    optimizer = workload.make_optimizer(model)
    train(workload, lambda *_: optimizer.step(), model, optimizer)


def _timed(function, workload: Workload) -> float:
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started) / workload.steps
