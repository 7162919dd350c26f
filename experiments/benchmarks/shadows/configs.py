"""Configuration of the shadow benchmark: models, rounds, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Time of a shadow ensemble of MLPs on the digits, compared with a plain loop over its models in the same process."""

    models: int = 128
    """Models, each trained on 70 % of the rows."""
    looped: int = 16
    """Models that the loop trains per round; its time is multiplied to that of all models."""
    n_train: int = 1000
    """Training rows."""
    width: int = 64
    """Hidden units."""
    steps: int = 300
    """Steps of Adam with all rows of a subset."""
    threads: int = 1
    """Threads of torch."""
    processes: int = 2
    """Worker processes of the run with an executor."""
    rounds: int = 3
    """Rounds over all engines; the smallest time is reported, and all of them are kept."""
    out: Path = Path("out/benchmarks/shadows")
    """Directory for results.json."""
