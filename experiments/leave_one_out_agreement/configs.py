"""Options of the experiment: data, training, scores, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CLAIMS", "SCORES", "Options"]

SCORES = {
    "unrolled": "unrolled influence",
    "ledger": "path contributions",
    "tracin": "TracIn",
    "last": "last checkpoint",
}
CLAIMS = {"self": 0.98, "test": 0.75}  # mean Spearman correlation of the unrolled influence with retraining


@dataclass(frozen=True)
class Options:
    """Train a small network on digits with wrong labels, retrain it without each example, and compare with scores."""

    seeds: int = 10
    """Seeds 0, 1, ... of split, flips, initial weights and batches."""
    n_train: int = 128
    """Training rows; as many networks are retrained."""
    n_test: int = 50
    """Test rows."""
    rate: float = 0.15
    """Share of wrong training labels."""
    steps: int = 150
    """Steps of stochastic gradient descent with momentum and decay."""
    batch: int = 32
    """Rows per batch."""
    lr: float = 0.04
    """Learning rate."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 1e-3
    """Coupled weight decay."""
    out: Path = Path("out/leave_one_out_agreement")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
