"""Configuration of the ensemble benchmark: networks, batches, rounds, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SEEDS", "WIDTHS", "WORKLOADS", "Options"]

WIDTHS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 26, 34, 48, 64, 90, 128)
SEEDS = 4
WORKLOADS = {"batch 64": (900, 64), "all 400 rows": (400, None), "all 900 rows": (900, None)}  # rows, batch size


@dataclass(frozen=True)
class Options:
    """Time and memory of training many MLPs of different widths at once, compared with common alternatives."""

    only: tuple[str, ...] = tuple(WORKLOADS)
    """Names of the workloads to run."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads."""
    rounds: int = 5
    """Number of rounds over all engines, after one warm-up round."""
    seconds: float = 0.5
    """Approximate time per engine and round, in seconds."""
    sweep: bool = True
    """Run also one model-wise sweep by train_mlps: 15 widths, 6 seeds, 5,000 steps."""
    out: Path = Path("out/benchmarks/ensemble")
    """Directory for results.json."""
