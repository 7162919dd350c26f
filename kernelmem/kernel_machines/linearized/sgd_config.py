"""The constants of one descent, as torch.optim.SGD has them, and where it stops being stable."""

import math
from dataclasses import dataclass
from typing import Any

from kernelmem.core.errors import InputError, NumericalError

__all__ = ["SGDConfig", "as_number", "as_sgd_config", "refuse_divergence"]


@dataclass(frozen=True)
class SGDConfig:
    """The constants of torch.optim.SGD."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    @property
    def limit(self) -> float:
        """Of lr times curvature: from here on the squared error along that direction does not shrink.

        Of the polynomial of one mode, z² − (1 + μ − (1−τ) q) z + μ with q = lr times curvature, all roots lie inside the unit
        circle iff 0 < (1−τ) q < 2 (1 + μ); of Nesterov's, iff q (1 + 2 μ) < 2 (1 + μ). Without momentum the limit is 2.
        """
        mu = self.momentum
        if mu == 0:  # torch then applies no dampening either
            return 2.0
        if self.nesterov:
            return 2 * (1 + mu) / (1 + 2 * mu)
        return 2 * (1 + mu) / (1 - self.dampening) if self.dampening < 1 else math.inf


def refuse_divergence(descent: SGDConfig, largest: float, n: int) -> None:
    """Refuse descent on the squared error at or above its limit of stability.

    Raises:
        NumericalError: with the figure, and the learning rate below which it is stable.
    """
    found = descent.lr * (largest / n + descent.weight_decay)
    if found >= descent.limit:
        raise NumericalError(
            f"learning rate {descent.lr:.4g} on a kernel with κ_max / n = {largest / n:.4g}: lr (κ_max / n + weight_decay)"
            f" = {found:.4g}",
            expected=f"below {descent.limit:.4g}, where descent on the squared error is stable",
            hint=f"take a learning rate below {descent.limit * descent.lr / found:.4g}",
        )


def as_sgd_config(lr: Any, momentum: Any, dampening: Any, nesterov: bool, weight_decay: Any) -> SGDConfig:
    """Read the constants of torch.optim.SGD.

    Raises:
        InputError: not finite, negative, or what torch refuses.
    """
    found = SGDConfig(
        as_number(lr, "lr", least=0.0),
        as_number(momentum, "momentum", least=0.0),
        as_number(dampening, "dampening", least=0.0),
        bool(nesterov),
        as_number(weight_decay, "weight_decay", least=0.0),
    )
    if found.momentum >= 1 or found.dampening >= 1 or (nesterov and (found.momentum == 0 or found.dampening != 0)):
        raise InputError(
            f"momentum={momentum!r}, dampening={dampening!r}, nesterov={nesterov!r}",
            expected="both in [0, 1); with nesterov a momentum > 0 and no dampening, as torch asks",
            hint="pass the constants of torch.optim.SGD",
        )
    return found


def as_number(value: Any, name: str, *, least: float) -> float:
    """Read a finite number.

    Raises:
        InputError: not a number, NaN, infinite, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise InputError(f"{name}={value!r}", expected=f"a finite number >= {least:g}", hint=f"pass {name}=0.1")
    return float(value)
