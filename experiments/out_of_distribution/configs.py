"""Options: shifts of the images, scores, ridges, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BASELINES", "ERRORS_ON", "RIDGES", "SCORES", "SHIFTS", "Options", "Shift"]


@dataclass(frozen=True)
class Shift:
    """One way to change images, and its size."""

    kind: str
    size: int = 0

    @property
    def name(self) -> str:
        """Name in tables."""
        unit = {"rotated": f" {self.size}°", "shifted": f" {self.size} px"}
        return self.kind + unit.get(self.kind, "")


SHIFTS = (
    Shift("unchanged"),  # null: other held-out rows, unchanged
    *(Shift("rotated", angle) for angle in (15, 30, 45, 60, 90)),
    *(Shift("shifted", pixels) for pixels in (1, 2, 3)),
    Shift("rotated and back"),  # 45° and back: the effect of interpolation alone
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

# In addition to the ridge with the smallest leave-one-out error (used elsewhere): in mean diagonals, or by evidence.
RIDGES = ("1e-06", "1e-04", "1e-02", "1e+00", "evidence")


@dataclass(frozen=True)
class Options:
    """Train a network on digits; measure how well scores detect changed digits and errors of the network."""

    seeds: int = 10
    """Number of seeds 0, 1, ... of split, initial weights, batches and changes of images."""
    n_train: int = 1000
    """Training rows; half of the other rows stay in distribution, half are changed."""
    n_test: int = 797
    """Maximal number of held-out rows."""
    width: int = 128
    """Units of both hidden layers."""
    epochs: int = 40
    """Passes over the training rows."""
    out: Path = Path("out/out_of_distribution")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
