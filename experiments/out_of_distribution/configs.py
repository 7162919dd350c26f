"""Which rows are unusual, which scores are asked, which ridges are tried beside, where to write."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BASELINES", "ERRORS_ON", "RIDGES", "SCORES", "SHIFTS", "Options", "Shift"]


@dataclass(frozen=True)
class Shift:
    """One way to change pictures, and how much."""

    kind: str
    size: int = 0

    @property
    def name(self) -> str:
        """As tables call it."""
        unit = {"rotated": f" {self.size}°", "shifted": f" {self.size} px"}
        return self.kind + unit.get(self.kind, "")


SHIFTS = (
    Shift("unchanged"),  # null: other held-out rows, as they are
    *(Shift("rotated", angle) for angle in (15, 30, 45, 60, 90)),
    *(Shift("shifted", pixels) for pixels in (1, 2, 3)),
    Shift("rotated and back"),  # 45° and back: what interpolation alone does
    Shift("pixels permuted"),
    Shift("uniform pixels"),
)

SCORES = {
    "gp_tangent": "GP, trained tangents",
    "gp_tangent_relative": "GP, trained tangents, relative",
    "gp_initial": "GP, initial tangents",
    "gp_initial_relative": "GP, initial tangents, relative",
    "gp_rbf": "GP, RBF of pixels",
    "softmax": "1 - max softmax",
    "margin": "- logit margin",
    "energy": "energy",
    "neighbor_pixels": "nearest pixels",
    "neighbor_tangents": "nearest tangents",
    "length": "length of the tangent",  # control: the prior deviation of gp_tangent alone
}
BASELINES = ("softmax", "neighbor_pixels")
ERRORS_ON = ("held out", "rotated 30°")

# Tried beside the ridge of least leave-one-out error, which all other figures have: in mean diagonals, or by evidence.
RIDGES = ("1e-06", "1e-04", "1e-02", "1e+00", "evidence")


@dataclass(frozen=True)
class Options:
    """Train a network on digits, and ask scores which of changed digits it was not made for, and where it errs."""

    seeds: int = 10
    """Seeds 0, 1, ... of split, initial weights, batches and changes of pictures."""
    n_train: int = 1000
    """Training rows; of the others one half is in distribution, one half is changed."""
    n_test: int = 797
    """Held-out rows, at most."""
    width: int = 128
    """Units of both hidden layers."""
    epochs: int = 40
    """Passes over the training rows."""
    out: Path = Path("out/out_of_distribution")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
