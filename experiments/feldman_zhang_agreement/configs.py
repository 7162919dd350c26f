"""Options of the experiment: label noise, models, seeds, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CELLS", "CLAIMS", "Options"]

CELLS = {  # name: kind and rate of the wrong labels
    "clean": ("symmetric", 0.0),
    "symmetric 10 %": ("symmetric", 0.1),
    "symmetric 20 %": ("symmetric", 0.2),
    "symmetric 40 %": ("symmetric", 0.4),
    "instance 20 %": ("instance", 0.2),
    "pair 20 %": ("pair", 0.2),
}
CLAIMS = {
    "auroc": 0.98,
    "spearman": 0.85,
    "spearman_clean_rows": 0.75,
}  # means, cells with at most 20 % symmetric noise


@dataclass(frozen=True)
class Options:
    """Memorization by retraining on random subsets of the digits, compared with wrong labels and kernel leave-one-out."""

    cells: tuple[str, ...] = tuple(CELLS)
    """Names of the cells to run."""
    seeds: int = 3
    """Number of seeds of split, wrong labels, subsets and initial weights."""
    first_seed: int = 1000
    """First of the seeds; no test uses these."""
    n_train: int = 1000
    """Training rows."""
    models: int = 128
    """Models trained on random subsets of 70 % of the rows."""
    width: int = 64
    """Hidden units."""
    steps: int = 300
    """Steps of Adam with all rows of a subset, learning rate .02."""
    out: Path = Path("out/feldman_zhang_agreement")
    """Directory for results.json and runs.csv."""
