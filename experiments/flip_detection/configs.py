"""Options: kinds and rates of label noise, scores with their claims, seeds, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CELLS", "KINDS", "SCORES", "Cell", "Options", "claim"]


@dataclass(frozen=True)
class Cell:
    """One kind of noise at one rate."""

    kind: str
    rate: float

    @property
    def name(self) -> str:
        """Name in tables and options."""
        return f"{self.kind}-{self.rate:.2f}"


KINDS = ("symmetric", "instance", "pair", "confusable")
CELLS = tuple(Cell(kind, rate) for kind in KINDS for rate in (0.1, 0.2, 0.4))
SCORES = {
    "suspicion": "posterior under estimated noise",
    "margin": "kernel leave-one-out margin",
    "memorization": "kernel leave-one-out memorization",
    "el2n": "EL2N",
    "gradient_norm": "GraNd",
    "cumulative_loss": "cumulative loss",
    "area_under_margin": "area under the margin",
    "learned_at": "learned at",
    "forgetting_events": "forgetting events",
}
TRAINING = ("el2n", "gradient_norm", "cumulative_loss", "area_under_margin")


def claim(score: str, cell: Cell) -> float | None:
    """Return the claimed lower bound of the mean AUROC over seeds, or None."""
    is_easy = cell.kind in ("symmetric", "instance") and cell.rate <= 0.2
    if score == "margin" and is_easy:
        return 0.99
    if score == "suspicion" and cell.kind == "pair" and cell.rate == 0.4:
        return 0.88
    return 0.97 if score in TRAINING and is_easy else None


@dataclass(frozen=True)
class Options:
    """Flip training labels of the digits, and measure which scores find the flips."""

    seeds: int = 5
    """Number of seeds of split, flips and initial weights."""
    first_seed: int = 100
    """The first of these seeds."""
    cells: tuple[str, ...] = tuple(cell.name for cell in CELLS)
    """Cells to run."""
    n_train: int = 1000
    """Number of training rows."""
    networks: int = 2
    """Number of networks per seed, over which the scores of training are averaged."""
    steps: int = 300
    """Full-batch steps of Adam, with 16 checkpoints."""
    out: Path = Path("out/flip_detection")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
