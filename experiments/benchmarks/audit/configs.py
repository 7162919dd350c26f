"""What is measured: numbers of training rows, runs, where to write."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_ROWS", "Options"]

DEFAULT_ROWS = 1000  # of `kernelmem audit` without options: the digits as they are


@dataclass(frozen=True)
class Options:
    """Time and peak memory of `kernelmem audit`, every run in a fresh process."""

    rows: tuple[int, ...] = (DEFAULT_ROWS, 2000, 4000)
    """Training rows; beyond 1,000 the digits are repeated with noise, so that no two rows are equal."""
    runs: int = 5
    """Runs of each; median and range are reported."""
    out: Path = Path("out/benchmarks/audit")
    """Directory for results.json."""
