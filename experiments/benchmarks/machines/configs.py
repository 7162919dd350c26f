"""Options: sizes, rounds, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "OUTPUTS", "RIDGE", "SYSTEMS", "Options"]

KINDS = ("direct", "streamed", "noticed")
OUTPUTS = 10  # columns of the targets
RIDGE = 1e-3  # the diagonal of the kernels is 1
NOISE = 0.1  # noise variance of the targets for the kernel in a file, and its ridge
SYSTEMS = 50  # systems of each invalid and solvable kind


@dataclass(frozen=True)
class Options:
    """Time and memory of kernel machines compared with SciPy, scikit-learn and torch; detection of invalid systems."""

    only: tuple[str, ...] = KINDS
    """Some of: direct, streamed, noticed."""
    rows: tuple[int, ...] = (2000, 5000, 10000)
    """Rows of the kernels that are factorized."""
    streamed_rows: int = 50000
    """Rows of the kernel in a file: float32, 10 GB at 50,000."""
    rounds: int = 5
    """Rounds of the direct engines, in turn; the first call of each round is not counted."""
    out: Path = Path("out/benchmarks/machines")
    """Directory for results.json."""
    scratch: Path = Path("out")
    """Directory for the kernel in a file, removed afterwards."""
