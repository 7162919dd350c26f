"""What is measured: sizes, rounds, where to write."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "OUTPUTS", "RIDGE", "SYSTEMS", "Options"]

KINDS = ("direct", "streamed", "noticed")
OUTPUTS = 10  # columns of the targets
RIDGE = 1e-3  # the diagonal of the kernels is 1
NOISE = 0.1  # variance of the noise of the targets of the kernel in a file, and its ridge
SYSTEMS = 50  # of each kind of bad and of good ones


@dataclass(frozen=True)
class Options:
    """Time and memory of kernel machines beside SciPy, scikit-learn and torch; which of them notice bad systems."""

    only: tuple[str, ...] = KINDS
    """Some of: direct, streamed, noticed."""
    rows: tuple[int, ...] = (2000, 5000, 10000)
    """Rows of the kernels that are factorized."""
    streamed_rows: int = 50000
    """Rows of the kernel that is read from a file: float32, 10 GB at 50,000."""
    rounds: int = 5
    """Rounds of the direct engines, in turn; the first of each is not counted."""
    out: Path = Path("out/benchmarks/machines")
    """Directory for results.json."""
    scratch: Path = Path("out")
    """Directory for the kernel in a file, removed afterwards."""
