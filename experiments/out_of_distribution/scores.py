"""The scores: for every row one number that is larger the more unusual the row is said to be."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor, nn

import kernelmem as km
from experiments.out_of_distribution.configs import RIDGES
from experiments.out_of_distribution.training import Problem
from kernelmem.kernel_machines import kernel_distances

__all__ = [
    "Kernel",
    "deviations",
    "evidence_ridge",
    "of_kernel",
    "of_network",
    "pixel_kernel",
    "scores",
    "tangent_kernel",
]


@dataclass(frozen=True)
class Kernel:
    """A kernel of training rows, of test rows with them, and of each row with itself; float64."""

    train: Tensor  # (n, n)
    cross: Tensor  # (m, n)
    own: Tensor  # (m,)

    @property
    def size(self) -> float:
        """Mean of the diagonal: the unit of the ridge."""
        return float(self.train.diagonal().mean())


def tangent_kernel(model: nn.Module, x_train: Tensor, x: Tensor) -> Kernel:
    """The tangent kernel of a network, summed over outputs."""
    kernel = km.TangentKernel(model, dtype=torch.float64)
    return Kernel(kernel(x_train), kernel(x, x_train), kernel.diagonal(x))


def pixel_kernel(x_train: Tensor, x: Tensor) -> Kernel:
    """The RBF kernel of pixels with gamma = 1 / (d var X), as ``gamma="scale"`` sets it."""
    train, test = x_train.double().numpy(), x.double().numpy()
    gamma = 1 / (train.shape[1] * train.var())
    K, cross = (torch.from_numpy(rbf_kernel(rows, train, gamma=gamma)) for rows in (train, test))
    return Kernel(K, cross, torch.ones(len(x), dtype=torch.float64))


def targets_of(labels: Tensor) -> Tensor:
    """Labels as a regression takes them: one-hot - 1/C, (n, C)."""
    return F.one_hot(labels, 10).double() - 0.1


def deviations(kernel: Kernel, labels: Tensor, ridge: float) -> Tensor:
    """Posterior standard deviation of the Gaussian process at every test row, (m,)."""
    machine = km.KernelMachineGP(kernel="precomputed", ridge=ridge)
    machine.fit(kernel.train.numpy(), targets_of(labels).numpy())
    _, found = machine.predict(kernel.cross.numpy(), return_std=True, K_test_diag=kernel.own.numpy())
    return torch.from_numpy(found)


def loo_ridge(kernel: Kernel, labels: Tensor) -> float:
    """The ridge of least leave-one-out error on the training labels: it sees no test row."""
    return km.choose_ridge(kernel.train, targets_of(labels)).ridge


def evidence_ridge(kernel: Kernel, labels: Tensor) -> float:
    """The ridge of most evidence on the training labels, where the scale s of the kernel is free, too.

    Of s (K + ridge I) the best s is q / (n C), q = Σ_c y_cᵀ (K + ridge I)⁻¹ y_c; what is left to minimize is
    n log q + log det (K + ridge I). The grid is that of ``choose_ridge``.
    """
    targets = targets_of(labels)
    values, V = torch.linalg.eigh(kernel.train)
    energy = (V.T @ targets).square().sum(1)  # of each eigenvector, over outputs
    ridges = kernel.size * torch.logspace(-9, 4, 53, dtype=torch.float64)
    regular = values.clamp_min(0)[:, None] + ridges
    costs = len(targets) * (energy[:, None] / regular).sum(0).log() + regular.log().sum(0)
    return float(ridges[costs.argmin()])


def of_kernel(kernel: Kernel, labels: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Posterior deviation, and its ratio to the prior deviation √k(x, x), in 0..1; both (m,)."""
    std = deviations(kernel, labels, ridge)
    return std, std / kernel.own.sqrt()


def of_network(outputs: Tensor) -> dict[str, Tensor]:
    """Scores that a network's logits (m, C) give: 1 - max softmax, - margin of the two largest, energy -log Σ exp."""
    all_of_them = outputs.logsumexp(1)
    two = outputs.topk(2, dim=1).values
    # 1 - max p from the other probabilities: near certainty the difference would round to 0, and ties would decide
    rest = outputs.scatter(1, outputs.argmax(1, keepdim=True), -math.inf).logsumexp(1)
    return {"softmax": (rest - all_of_them).exp(), "margin": two[:, 1] - two[:, 0], "energy": -all_of_them}


def scores(problem: Problem, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Every score of rows x; those of ``gp_tangent`` under other ridges, by name; the chosen ridges."""
    x_train, labels = problem.data.x_train, problem.data.y_train
    with torch.no_grad():
        outputs = problem.trained(x).double()
    found: dict[str, Tensor] = {}
    chosen: dict[str, float] = {}
    kernels = {
        "tangent": tangent_kernel(problem.trained, x_train, x),
        "initial": tangent_kernel(problem.initial, x_train, x),
        "rbf": pixel_kernel(x_train, x),
    }
    for name, kernel in kernels.items():
        ridge = loo_ridge(kernel, labels)
        chosen[f"log10 ridge, {name}"] = math.log10(ridge / kernel.size)
        found[f"gp_{name}"], found[f"gp_{name}_relative"] = of_kernel(kernel, labels, ridge)
    del found["gp_rbf_relative"]  # its prior deviation is 1 everywhere
    tangent = kernels["tangent"]
    trained = tangent.train.diagonal()
    flat = (x_train.double().flatten(1), x.double().flatten(1))
    return (
        found
        | of_network(outputs)
        | {
            "neighbor_pixels": torch.cdist(flat[1], flat[0]).amin(1),
            "neighbor_tangents": kernel_distances(tangent.cross, tangent.own, trained).amin(1).sqrt(),
            "length": tangent.own.sqrt(),
        },
        _other_ridges(tangent, labels, chosen),
        chosen,
    )


def _other_ridges(kernel: Kernel, labels: Tensor, chosen: dict[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name in RIDGES:
        ridge = evidence_ridge(kernel, labels) if name == "evidence" else float(name) * kernel.size
        if name == "evidence":
            chosen["log10 ridge, tangent, evidence"] = math.log10(ridge / kernel.size)
        found[f"gp_tangent at {name}"], found[f"gp_tangent_relative at {name}"] = of_kernel(kernel, labels, ridge)
    return found
