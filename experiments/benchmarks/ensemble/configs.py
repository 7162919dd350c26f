"""What is measured: the networks, the batches, rounds, where to write."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SEEDS", "WIDTHS", "WORKLOADS", "Options"]

WIDTHS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 26, 34, 48, 64, 90, 128)
SEEDS = 4
WORKLOADS = {"batch 64": (900, 64), "all 400 rows": (400, None), "all 900 rows": (900, None)}  # rows, batch size


@dataclass(frozen=True)
class Options:
    """Time and memory of training many MLPs of different widths at once, beside what people use."""

    only: tuple[str, ...] = tuple(WORKLOADS)
    """Workloads by name."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads."""
    rounds: int = 5
    """Rounds of all engines in turn, after one that is not counted."""
    seconds: float = 0.5
    """About how long an engine runs in a round."""
    sweep: bool = True
    """Also one model-wise sweep by train_mlps: 15 widths, 6 seeds, 5,000 steps."""
    out: Path = Path("out/benchmarks/ensemble")
    """Directory for results.json."""
