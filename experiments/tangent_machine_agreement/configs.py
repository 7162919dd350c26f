"""Options: kernel machines and their targets, the claim, output directory."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CLAIM", "MACHINES", "Machine", "Options"]


@dataclass(frozen=True)
class Machine:
    """Kernel ridge regression with one kernel, one prior and one kind of targets on the training rows."""

    title: str
    kernel: str = "trained"  # tangent kernel of the "trained" or "initial" network, or "rbf" of pixels
    outputs: str = "trace"
    layers: str = "all"  # layers whose parameters are differentiated: "all", only the "last", only the "hidden" ones
    prior: bool = False  # starts from the network at initialization, learns the change
    targets: str = "logits"  # of the trained network; "permuted": over rows; "labels": one-hot - 1/C
    ridge: str = "loo"  # or a number, in mean diagonals of the kernel


MACHINES = {
    "trained": Machine("trained tangents"),
    "trained_prior": Machine("trained tangents, prior", prior=True),
    "trained_pseudo": Machine("trained tangents, pseudo", outputs="pseudo"),
    "trained_pseudo_prior": Machine("trained tangents, pseudo, prior", outputs="pseudo", prior=True),
    # Logits are linear in the input of the last layer, so its tangents alone represent the network.
    "last": Machine("trained tangents, last layer", layers="last"),
    "hidden": Machine("trained tangents, hidden layers", layers="hidden"),
    "initial": Machine("initial tangents", kernel="initial"),
    "initial_prior": Machine("initial tangents, prior", kernel="initial", prior=True),
    "rbf": Machine("RBF of pixels", kernel="rbf"),
    "labels": Machine("trained tangents, labels", targets="labels"),
    "labels_rbf": Machine("RBF of pixels, labels", kernel="rbf", targets="labels"),
    "permuted": Machine("trained tangents, logits permuted", targets="permuted"),
    "permuted_prior": Machine("the same with prior", prior=True, targets="permuted"),
    "ridge_1e-06": Machine("trained tangents, ridge 1e-6", ridge="1e-6"),
    "ridge_1e-04": Machine("trained tangents, ridge 1e-4", ridge="1e-4"),
    "ridge_1e-02": Machine("trained tangents, ridge 1e-2", ridge="1e-2"),
}
CLAIM = ("trained", 0.98)  # mean agreement with the network on held-out rows


@dataclass(frozen=True)
class Options:
    """Fit kernel machines to the outputs of a trained network and measure their agreement with it on held-out rows."""

    seeds: int = 10
    """Number of seeds 0, 1, ... of split, initial weights and batches."""
    n_train: int = 1000
    """Training rows of the network and of the machines."""
    n_test: int = 797
    """Maximal number of held-out rows."""
    width: int = 128
    """Units of both hidden layers."""
    epochs: int = 40
    """Passes over the training rows."""
    out: Path = Path("out/tangent_machine_agreement")
    """Directory for results.json, runs.csv and figure.{svg,png}."""
