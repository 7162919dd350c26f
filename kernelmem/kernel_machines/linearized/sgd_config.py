"""Hyperparameters of torch.optim.SGD and the learning rate at which it becomes unstable."""

import math
from dataclasses import dataclass

from kernelmem.core.checks import as_flag, as_number
from kernelmem.core.errors import InputError, NumericalError


@dataclass(frozen=True)
class SGDConfig:
    """Hyperparameters of torch.optim.SGD.

    With g_t = ∇L(w_t) + λ w_t, b_0 = g_0 and b_t = μ b_{t−1} + (1 − τ) g_t, a step is w ← w − h b_t, or with Nesterov
    momentum w ← w − h (g_t + μ b_t).

    Attributes:
        lr: learning rate h >= 0.
        momentum: μ in [0, 1).
        dampening: τ in [0, 1).
        nesterov: True for Nesterov momentum, which needs μ > 0 and τ = 0.
        weight_decay: λ >= 0.

    Raises:
        InputError: values that are negative or not finite, or that torch rejects together.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            object.__setattr__(self, name, as_number(getattr(self, name), name))
        object.__setattr__(self, "nesterov", as_flag(self.nesterov, "nesterov"))
        mu, tau = self.momentum, self.dampening
        if mu >= 1 or tau >= 1 or (self.nesterov and (mu == 0 or tau != 0)):
            raise InputError(
                f"momentum={mu!r}, dampening={tau!r}, nesterov={self.nesterov!r}",
                expected="momentum and dampening in [0, 1); with nesterov=True a momentum > 0 and dampening 0",
                hint="pass the hyperparameters of your torch.optim.SGD",
            )

    @property
    def limit(self) -> float:
        """The stability limit: the squared error does not shrink in directions where lr times curvature is at or above it.

        Let q = lr times curvature. The characteristic polynomial of one mode, z² − (1 + μ − (1 − τ) q) z + μ, has all roots
        inside the unit circle iff 0 < (1 − τ) q < 2 (1 + μ); that of Nesterov momentum iff q (1 + 2 μ) < 2 (1 + μ). Without
        momentum the limit is 2.
        """
        mu = self.momentum
        if mu == 0:  # torch then applies no dampening either
            return 2.0
        if self.nesterov:
            return 2 * (1 + mu) / (1 + 2 * mu)
        return 2 * (1 + mu) / (1 - self.dampening) if self.dampening < 1 else math.inf


def check_stability(sgd: SGDConfig, kappa_max: float, n: int) -> None:
    """Raise an error if training on the squared error is at or above its stability limit.

    Args:
        sgd: hyperparameters of the optimizer.
        kappa_max: largest eigenvalue κ_max of the kernel.
        n: number of training rows, over which the loss is a mean.

    Raises:
        NumericalError: lr (κ_max / n + weight_decay) >= limit; the message states the largest stable learning rate.
    """
    stability = sgd.lr * (kappa_max / n + sgd.weight_decay)
    if stability >= sgd.limit:
        raise NumericalError(
            f"learning rate {sgd.lr:.4g} on a kernel with κ_max / n = {kappa_max / n:.4g}: lr (κ_max / n + weight_decay)"
            f" = {stability:.4g}",
            expected=f"below {sgd.limit:.4g}, where SGD on the squared error is stable",
            hint=f"use a learning rate below {sgd.limit * sgd.lr / stability:.4g}",
        )
