"""Scores of unusualness: one number per row, larger for more unusual rows."""

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
    """Kernel of training rows, of test rows with training rows, and its diagonal on test rows; float64."""

    train: Tensor  # (n, n)
    cross: Tensor  # (m, n)
    diagonal: Tensor  # (m,), of each test row with itself

    @property
    def size(self) -> float:
        """Mean of the training diagonal: the unit of the ridge."""
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
    """Return regression targets of labels: one-hot − 1/C, (n, C)."""
    return F.one_hot(labels, 10).double() - 0.1


def deviations(kernel: Kernel, labels: Tensor, ridge: float) -> Tensor:
    """Posterior standard deviation of the Gaussian process at every test row, (m,)."""
    process = km.KernelMachineGP(kernel="precomputed", ridge=ridge)
    process.fit(kernel.train.numpy(), targets_of(labels).numpy())
    _, std = process.predict(kernel.cross.numpy(), return_std=True, K_test_diag=kernel.diagonal.numpy())
    return torch.from_numpy(std)


def loo_ridge(kernel: Kernel, labels: Tensor) -> float:
    """Return the ridge with the smallest leave-one-out error on the training labels."""
    return km.choose_ridge(kernel.train, targets_of(labels)).ridge


def evidence_ridge(kernel: Kernel, labels: Tensor) -> float:
    """Return the ridge with the largest evidence on the training labels, maximized over the scale s of the kernel, too.

    For s (K + ridge I) the best s is q / (n C), q = Σ_c y_cᵀ (K + ridge I)⁻¹ y_c; it remains to minimize
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
    """Return the posterior deviation, and its ratio to the prior deviation √k(x, x), in 0..1; both (m,)."""
    std = deviations(kernel, labels, ridge)
    return std, std / kernel.diagonal.sqrt()


def of_network(outputs: Tensor) -> dict[str, Tensor]:
    """Return the scores of logits (m, C): 1 − max softmax, −margin of the two largest, energy −log Σ exp."""
    log_sum = outputs.logsumexp(1)
    two = outputs.topk(2, dim=1).values
    # 1 − max p as the sum of the other probabilities: near certainty the difference would round to 0 and create ties
    rest = outputs.scatter(1, outputs.argmax(1, keepdim=True), -math.inf).logsumexp(1)
    return {"softmax": (rest - log_sum).exp(), "margin": two[:, 1] - two[:, 0], "energy": -log_sum}


def scores(problem: Problem, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Return every score of rows x; those of ``gp_tangent`` with other ridges, by name; the chosen ridges."""
    x_train, labels = problem.data.x_train, problem.data.y_train
    with torch.no_grad():
        outputs = problem.trained(x).double()
    by_name: dict[str, Tensor] = {}
    chosen: dict[str, float] = {}
    kernels = {
        "tangent": tangent_kernel(problem.trained, x_train, x),
        "initial": tangent_kernel(problem.initial, x_train, x),
        "rbf": pixel_kernel(x_train, x),
    }
    for name, kernel in kernels.items():
        ridge = loo_ridge(kernel, labels)
        chosen[f"log10 ridge, {name}"] = math.log10(ridge / kernel.size)
        by_name[f"gp_{name}"], by_name[f"gp_{name}_relative"] = of_kernel(kernel, labels, ridge)
    del by_name["gp_rbf_relative"]  # its prior deviation is 1 everywhere
    tangent = kernels["tangent"]
    trained = tangent.train.diagonal()
    flat = (x_train.double().flatten(1), x.double().flatten(1))
    return (
        by_name
        | of_network(outputs)
        | {
            "neighbor_pixels": torch.cdist(flat[1], flat[0]).amin(1),
            "neighbor_tangents": kernel_distances(tangent.cross, tangent.diagonal, trained).amin(1).sqrt(),
            "length": tangent.diagonal.sqrt(),
        },
        _other_ridges(tangent, labels, chosen),
        chosen,
    )


def _other_ridges(kernel: Kernel, labels: Tensor, chosen: dict[str, Any]) -> dict[str, Tensor]:
    by_name = {}
    for name in RIDGES:
        ridge = evidence_ridge(kernel, labels) if name == "evidence" else float(name) * kernel.size
        if name == "evidence":
            chosen["log10 ridge, tangent, evidence"] = math.log10(ridge / kernel.size)
        by_name[f"gp_tangent at {name}"], by_name[f"gp_tangent_relative at {name}"] = of_kernel(kernel, labels, ridge)
    return by_name
