"""Options: kinds and rates of label noise, seeds, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CELLS", "Cell", "Options"]


@dataclass(frozen=True)
class Cell:
    """One kind of noise at one rate."""

    kind: str
    rate: float
    claim: float | None = None  # claimed lower bound of the AUROC of every seed

    @property
    def name(self) -> str:
        """Name in tables and options."""
        return f"{self.kind}-{self.rate:.2f}" if self.rate else "clean"


CELLS = (
    Cell("symmetric", 0.0),  # control: what is memorized without wrong labels
    Cell("symmetric", 0.15, claim=0.99),
    Cell("symmetric", 0.20),
    Cell("instance", 0.20, claim=0.99),
    Cell("pair", 0.20),
    Cell("pair", 0.40),
)


@dataclass(frozen=True)
class Options:
    """Flip training labels of the digits, train the default network, audit it, and measure the detection of the flips."""

    seeds: int = 10
    """Number of seeds 0, 1, ... of split, flips, initial weights and batches."""
    cells: tuple[str, ...] = tuple(cell.name for cell in CELLS)
    """Cells to run."""
    epochs: int = 80
    """Passes over the data; the default is that of `kernelmem audit`."""
    out: Path = Path("out/flip_detection")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
