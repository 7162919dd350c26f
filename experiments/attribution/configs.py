"""Settings of the experiment: data, network, training of each; options of the command."""

from dataclasses import dataclass
from pathlib import Path

from kernelmem.training import Recipe

__all__ = ["SETTINGS", "Options", "Setting"]


@dataclass(frozen=True)
class Setting:
    """One data set, network and training."""

    data: str  # "breast cancer", "wine", "digits"
    n_train: int
    widths: tuple[int, ...]
    epochs: int
    recipe: Recipe


SETTINGS = {
    "breast cancer, Adam .003": Setting("breast cancer", 400, (16, 16), 30, Recipe(optimizer="adam", lr=0.003)),
    "breast cancer, SGD .1": Setting("breast cancer", 400, (16, 16), 30, Recipe(optimizer="sgd", lr=0.1, momentum=0.9)),
    "breast cancer, Adam .02": Setting("breast cancer", 400, (16, 16), 30, Recipe(optimizer="adam", lr=0.02)),
    "wine, Adam .01": Setting("wine", 118, (16, 16), 30, Recipe(optimizer="adam", lr=0.01)),
    "digits, Adam .003": Setting("digits", 500, (32,), 30, Recipe(optimizer="adam", lr=0.003)),
}


@dataclass(frozen=True)
class Options:
    """Compare attributions of one recorded network with networks retrained on random halves of the training rows."""

    settings: tuple[str, ...] = tuple(SETTINGS)
    """Names of the settings."""
    seed: int = 0
    """Seed of split, flips, networks and subsets."""
    flips: float = 0.1
    """Share of wrong training labels."""
    batch: int = 64
    """Rows per batch."""
    n_test: int = 40
    """Explained test rows."""
    n_subsets: int = 50
    """Random halves."""
    models_per_subset: int = 2
    """Networks trained on each."""
    share: float = 0.05
    """Share of the training rows that is left out for the query-loss difference."""
    pairs: int = 10
    """Pairs of trainings of the query-loss difference."""
    out: Path = Path("out/attribution")
    """Directory for results.json and figure.{svg,png}."""
