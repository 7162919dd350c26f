"""What is measured: rules and activations, seeds, where to write."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

__all__ = ["ACTIVATIONS", "EVERY", "EXACT_ROWS", "N_TEST", "N_TRAIN", "RULES", "SCALES", "STEPS", "TIME", "Options"]

N_TRAIN, N_TEST = 128, 32
TIME = 10.0  # learning rate times steps
STEPS = (25, 50, 100, 200, 400)
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}
# Order at which the residual of a smooth network is to shrink with the learning rate.
RULES = {"left": 1, "trapezoid": 2, "midpoint": 2, "GL1": 2, "GL2": 4, "GL3": 6, "GL4": 8, "GL5": 10}
EXACT_ROWS = 8  # of the test rows: of these km.ledger accounts for every example
EVERY = 4  # steps for which one stands in the mean path kernel of the machines
SCALES = {"rich": 1.0, "lazy": 16.0}  # of the outputs; the learning rate is divided by its square


@dataclass(frozen=True)
class Options:
    """Measure how exact the path ledger is, and which kernel machine a trained network is."""

    seeds: int = 5
    """Seeds 0, 1, ... of digits and initial weights."""
    steps: int = 200
    """Steps of full-batch gradient descent in the comparison of machines."""
    learning_rate: float = 0.18
    """Of the comparison of machines, at output scale 1."""
    exact_seeds: int = 1
    """Seeds for which the exact ledger of relu networks is computed."""
    out: Path = Path("out/path_equivalence")
    """Directory for results.json and the figures, each as .svg and .png."""
