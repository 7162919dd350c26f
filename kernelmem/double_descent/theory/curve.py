"""Curve: the risk that a theory predicts along one axis; Simulated: the same curve next to a simulation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import generators

__all__ = []

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Curve"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Expected risk along one axis; tensors are (G,) float64 on the CPU.

    Attributes:
        name: what was computed.
        axis_name: what varies.
        axis: its values, increasing.
        test: mean squared error on a new row with a new noisy target, summed over outputs. It includes ``noise``.
        noise: variance of the target given the input, which no predictor can remove.
        exact: True if it holds for every n; False if it is a limit, or takes features for Gaussian ones.
        source: whose result it is.
        train: mean squared error on the (noisy) training rows, where it is known.
        clean: mean squared error against noiseless targets, where it is not ``test - noise`` (labels that flip).
        threshold: where on the axis the training error reaches 0 first, if there is such a place.
    """

    name: str
    axis_name: str
    axis: Tensor
    test: Tensor = field(repr=False)
    noise: float
    exact: bool
    source: str
    train: Tensor | None = field(default=None, repr=False)
    clean: Tensor | None = field(default=None, repr=False)
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("test", "train", "clean"):
            values = getattr(self, name)
            if values is not None and values.shape != self.axis.shape:
                raise InputError(
                    f"{name} of shape {tuple(values.shape)} beside an axis of shape {tuple(self.axis.shape)}",
                    expected="one value for each place of the axis",
                    hint="compute both on the same axis",
                )

    @property
    def excess(self) -> Tensor:
        """(G,): test - noise, the distance from the mean target."""
        return self.test - self.noise

    def to_frame(self) -> "pandas.DataFrame":
        """One line a place: test, excess, and train and clean where they are known."""
        import pandas  # slow to import

        columns = {"test": self.test, "excess": self.excess, "train": self.train, "clean": self.clean}
        known = {name: values.numpy() for name, values in columns.items() if values is not None}
        return pandas.DataFrame(known, index=pandas.Index(self.axis.numpy(), name=self.axis_name))

    def plot(self) -> "Figure":
        """Test and training risk against the axis; the threshold is marked, infinite values are left out."""
        from kernelmem.plotting.theory import curve_figure  # matplotlib is slow to import

        return curve_figure(self)


if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["RCOND", "Simulation", "least_squares", "simulate"]

RCOND = 1e-13  # singular values below RCOND times the largest count as 0: rounding, and nothing of the peak


@dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated test risk beside a theory's; tensors are (G,) float64.

    Attributes:
        theory: the curve that was simulated, on the same axis.
        mean: mean over the draws of the test risk, noise included.
        se: its standard error.
        repetitions: number of draws.
        seed: what they were drawn from.
    """

    theory: Curve
    mean: Tensor = field(repr=False)
    se: Tensor = field(repr=False)
    repetitions: int
    seed: int

    @property
    def axis(self) -> Tensor:
        """(G,): the theory's axis."""
        return self.theory.axis

    @property
    def z(self) -> Tensor:
        """(G,): (mean - theory) / se; NaN where the theory is infinite, 0 where both agree to rounding."""
        gap = self.mean - self.theory.test
        equal = gap.abs() <= 1e-12 * self.theory.test
        z = torch.where(equal, 0.0, gap / torch.where(equal, 1.0, self.se))
        return torch.where(torch.isfinite(self.theory.test), z, torch.nan)

    @property
    def relative(self) -> Tensor:
        """(G,): theory / mean - 1, how much the theory is too high."""
        return self.theory.test / self.mean - 1

    def to_frame(self) -> "pandas.DataFrame":
        """One line a place: the theory, the simulated mean, its standard error, z."""
        import pandas  # slow to import

        columns = {"theory": self.theory.test, "mean": self.mean, "se": self.se, "z": self.z}
        index = pandas.Index(self.axis.numpy(), name=self.theory.axis_name)
        return pandas.DataFrame({name: values.numpy() for name, values in columns.items()}, index=index)

    def plot(self) -> "Figure":
        """The simulated means with bars of two standard errors over the theory's curve."""
        from kernelmem.plotting.theory import simulation_figure  # matplotlib is slow to import

        return simulation_figure(self.theory, self.mean, self.se, repetitions=self.repetitions)

    def __str__(self) -> str:
        rows = [
            f"{self.theory.name}: {self.repetitions} draws",
            f"{self.theory.axis_name:>24}{'theory':>12}{'mean':>12}",
        ]
        rows[1] += f"{'se':>10}{'z':>7}"
        for place in zip(self.axis, self.theory.test, self.mean, self.se, self.z, strict=True):
            at, theory, mean, se, z = (float(value) for value in place)
            rows.append(f"{at:>24g}{theory:>12.5g}{mean:>12.5g}{se:>10.2g}{z:>7.2f}")
        return "\n".join(rows)


def simulate(theory: Curve, draw: Callable[[np.random.Generator], Any], *, repetitions: int, seed: int) -> Simulation:
    """Average ``draw(generator)``, which returns the test risk at each place of the axis, over independent draws.

    Each draw has its own generator, so that more repetitions only add draws. A standard error means nothing where the
    risk has no variance: at least-squares fits of p Gaussian features that is |p - n| <= 3.

    Raises:
        InputError: fewer than 2 repetitions; a seed that is not a whole number >= 0.
    """
    repetitions = as_count(repetitions, "repetitions", minimum=2)
    seed = as_count(seed, "seed", minimum=0)
    risks = np.stack([np.asarray(draw(rng), dtype=float) for rng in generators(seed, repetitions)])
    se = risks.std(0, ddof=1) / np.sqrt(repetitions)
    return Simulation(theory, torch.from_numpy(risks.mean(0)), torch.from_numpy(se), repetitions, seed)


def least_squares(X: np.ndarray, Y: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Return argmin |X w - Y|² + ridge |w|², of least norm at ridge 0, by the singular values of X.

    X (n, p), Y (n,) or (n, C). Singular values below ``RCOND`` times the largest count as 0. Cost O(n p min(n, p)).
    """
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    kept = s > RCOND * s[0]
    filtered = np.where(kept, s / (np.where(kept, s, 1.0) ** 2 + ridge), 0.0)
    projected = U.T @ Y
    return Vt.T @ (filtered.reshape(-1, *[1] * (Y.ndim - 1)) * projected)
