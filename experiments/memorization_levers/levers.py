"""Levers of memorization: one setting that is varied, the others at their base value."""

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BASE", "LEVERS", "Options", "Setting"]


@dataclass(frozen=True)
class Setting:
    """Data and training of one ensemble: digits with symmetric flips, a one-layer MLP, AdamW on the cross-entropy.

    Attributes:
        n_train: training rows that subsets are drawn from.
        width: hidden units.
        weight_decay: decoupled weight decay of AdamW.
        steps: optimizer steps of at most 250 rows.
        copies: each row is trained on together with this number of copies, shifted by one pixel.
    """

    n_train: int = 1000
    width: int = 64
    weight_decay: float = 0.0
    steps: int = 300
    copies: int = 0


BASE = Setting()
LEVERS: dict[str, tuple[Setting, ...]] = {
    "weight decay": tuple(Setting(weight_decay=value) for value in (0.0, 0.3, 1.0, 3.0)),
    "hidden units": tuple(Setting(width=value) for value in (8, 16, 64, 256)),
    "training rows": tuple(Setting(n_train=value) for value in (250, 500, 1000)),
    "optimizer steps": tuple(Setting(steps=value) for value in (30, 100, 300, 1000)),
    "shifted copies": tuple(Setting(copies=value, steps=300 * (1 + value)) for value in (0, 2, 4)),  # equal epochs
}
FIELDS = {
    "weight decay": "weight_decay",
    "hidden units": "width",
    "training rows": "n_train",
    "optimizer steps": "steps",
    "shifted copies": "copies",
}


@dataclass(frozen=True)
class Options:
    """Train shadow ensembles with one lever at a time changed, and measure what is memorized and what leaks."""

    seeds: int = 6
    """Number of seeds 0, 1, ... of rows, flips, subsets, initial weights and batches; the same for every setting."""
    models: int = 48
    """Models in an ensemble; each is trained on a random half of the rows."""
    noise: float = 0.15
    """Share of training labels that are flipped."""
    levers: tuple[str, ...] = field(default_factory=lambda: tuple(LEVERS))
    """Levers to measure."""
    out: Path = Path("out/memorization_levers")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
