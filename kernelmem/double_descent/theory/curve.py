"""Theoretical risk curves, and their comparison with simulations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_seed, as_tensor, check_callable, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.argument_checks import spawn_generators

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RCOND = 1e-13  # singular values below RCOND times the largest are rounding errors; the peak comes from larger ones
PRINTED_ROWS = 25
ROUNDING_TOLERANCE = 1e-12  # relative difference below which simulation and theory agree to rounding
MAX_REPETITIONS = 1_000_000


@dataclass(frozen=True, eq=False, repr=False)
class Curve(Result):
    """Expected risk along one axis; tensors are (G,) float64 on the CPU.

    Attributes:
        name: estimator and setting that the curve describes.
        axis_name: quantity that varies along the axis.
        axis: values of this quantity, increasing.
        test: mean squared error on a new example with a new noisy target, summed over outputs; includes ``noise``.
        noise: variance of the target given the input (irreducible error).
        exact: True if the curve holds for every n; False if it is a limit or assumes Gaussian features.
        source: authors and year of the theory.
        train: mean squared error on the (noisy) training examples, if known.
        clean: mean squared error with respect to noiseless targets, if it differs from ``test - noise`` (label flips).
        threshold: interpolation threshold on the axis (training error 0), if there is one.
    """

    name: str
    axis_name: str
    axis: Tensor
    test: Tensor
    noise: float
    exact: bool
    source: str
    train: Tensor | None = None
    clean: Tensor | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Check that all risks have the shape of the axis; raise an InputError otherwise."""
        for name in ("test", "train", "clean"):
            values = getattr(self, name)
            if values is not None and values.shape != self.axis.shape:
                raise InputError(
                    f"{name} of shape {tuple(values.shape)} for an axis of shape {tuple(self.axis.shape)}",
                    expected="one value for each value of the axis",
                    hint="compute both on the same axis",
                )

    @property
    def excess(self) -> Tensor:
        """Excess risk test − noise at each of the G values of the axis, (G,)."""
        return self.test - self.noise

    def to_frame(self) -> "pd.DataFrame":
        """Return a table indexed by the axis: test and excess risk, and training and clean risk if they are known."""
        import pandas as pd

        columns = {"test": self.test, "excess": self.excess, "train": self.train, "clean": self.clean}
        known_columns = {name: values.numpy() for name, values in columns.items() if values is not None}
        return pd.DataFrame(known_columns, index=pd.Index(self.axis.numpy(), name=self.axis_name))

    def plot(self) -> "Figure":
        """Return a figure of test and training risk against the axis, with the threshold; infinite values are not drawn."""
        from kernelmem.plotting.double_descent import curve_figure

        return curve_figure(self)

    def __str__(self) -> str:
        """Return a table of the risks along the axis, preceded by the source and the interpolation threshold."""
        kind = "exact for every n" if self.exact else "asymptotic"
        lines = [f"{self.name} ({self.source}; {kind}), noise {self.noise:.4g}"]
        if self.threshold is not None:
            lines.append(f"interpolation threshold: {self.axis_name} = {self.threshold:g}")
        columns = {"test": self.test, "excess": self.excess}
        columns |= {} if self.train is None else {"train": self.train}
        columns |= {} if self.clean is None else {"clean": self.clean}
        return "\n".join(lines + _format_table(self.axis_name, self.axis, columns))


@dataclass(frozen=True, eq=False, repr=False)
class Simulation(Result):
    """Simulated test risk and the theory that predicts it; tensors are (G,) float64.

    Attributes:
        theory: predicted curve, on the same axis.
        mean: mean test risk over the draws, noise included.
        se: standard error of ``mean`` over the draws.
        repetitions: number of draws.
        seed: seed of the draws.
    """

    theory: Curve
    mean: Tensor
    se: Tensor
    repetitions: int
    seed: int

    @property
    def axis(self) -> Tensor:
        """The G values of the axis of the theory, (G,)."""
        return self.theory.axis

    @property
    def z(self) -> Tensor:
        """Deviation (mean − theory) / se at each of the G values, (G,).

        It is NaN where the theory is infinite, and 0 where both agree to rounding.
        """
        difference = self.mean - self.theory.test
        agrees = difference.abs() <= ROUNDING_TOLERANCE * self.theory.test
        z = torch.where(agrees, 0.0, difference / torch.where(agrees, 1.0, self.se))
        return torch.where(torch.isfinite(self.theory.test), z, torch.nan)

    @property
    def relative(self) -> Tensor:
        """Relative error of the theory, theory / mean − 1, at each of the G values of the axis, (G,)."""
        return self.theory.test / self.mean - 1

    def _columns(self) -> dict[str, Tensor]:
        return {"theory": self.theory.test, "mean": self.mean, "se": self.se, "z": self.z}

    def to_frame(self) -> "pd.DataFrame":
        """Return a table indexed by the axis: theory, simulated mean, its standard error and z."""
        import pandas as pd

        index = pd.Index(self.axis.numpy(), name=self.theory.axis_name)
        return pd.DataFrame({name: values.numpy() for name, values in self._columns().items()}, index=index)

    def plot(self) -> "Figure":
        """Return a figure of the simulated means, with bars of two standard errors, and of the theory."""
        from kernelmem.plotting.double_descent import simulation_figure

        return simulation_figure(self.theory, self.mean, self.se, repetitions=self.repetitions)

    def __str__(self) -> str:
        title = f"{self.theory.name} ({self.theory.source}), simulated with {self.repetitions} draws"
        return "\n".join([title, *_format_table(self.theory.axis_name, self.axis, self._columns())])


def as_curve(
    name: str,
    axis_name: str,
    axis: np.ndarray,
    test: np.ndarray,
    *,
    noise: float,
    exact: bool,
    source: str,
    train: np.ndarray | None = None,
    threshold: float | None = None,
) -> Curve:
    """Return a :class:`Curve` whose tensors are the given float64 arrays, (G,) for G values of the axis."""
    return Curve(
        name=name,
        axis_name=axis_name,
        axis=torch.from_numpy(axis),
        test=torch.from_numpy(test),
        noise=noise,
        exact=exact,
        source=source,
        train=None if train is None else torch.from_numpy(train),
        threshold=threshold,
    )


def simulate(
    theory: Curve, draw: Callable[[np.random.Generator], Sequence[float] | np.ndarray], *, repetitions: int, seed: int
) -> Simulation:
    """Average the test risk of independent draws at every value of the axis of a theory.

    Every draw has its own generator: more repetitions only add draws. The standard error is meaningless where the risk
    has no variance, which is |p - n| <= 3 for least squares on p Gaussian features.

    Args:
        theory: curve to check.
        draw: function from a random generator to the test risk (G,) of one draw.
        repetitions: number of draws, >= 2.
        seed: seed of the draws, a whole number >= 0.

    Raises:
        InputError: there are fewer than 2 repetitions, or the seed is invalid.
    """
    check_instance(theory, "theory", Curve, hint="pass a curve of this package")
    check_callable(draw, "draw", ("rng",))
    repetitions = as_count(repetitions, "repetitions", minimum=2, maximum=MAX_REPETITIONS)
    shape = tuple(theory.axis.shape)
    draws: list[np.ndarray] = []
    for rng in spawn_generators(as_seed(seed), repetitions):
        draws.append(as_tensor(draw(rng), "the risks that draw returns", dtype=torch.float64).numpy())
        if draws[-1].shape != shape:
            raise InputError(
                f"draw that returns risks of shape {draws[-1].shape}",
                expected=f"one risk for each value of the axis, {shape}",
                hint="return a list of numbers",
            )
    risks = np.stack(draws)
    se = risks.std(0, ddof=1) / np.sqrt(repetitions)
    return Simulation(theory, torch.from_numpy(risks.mean(0)), torch.from_numpy(se), repetitions, seed)


def least_squares(X: np.ndarray, Y: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Return w = argmin |X w − Y|² + ridge |w|², (p,) or (p, C).

    X is (n examples, p features), and Y (n,) or (n, C outputs). If the ridge is 0, w is the solution of least norm. Singular
    values of X below ``RCOND`` times the largest are set to zero. Cost: O(n p min(n, p)).
    """
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    nonzero = s > RCOND * s[0]
    filtered = np.where(nonzero, s / (np.where(nonzero, s, 1.0) ** 2 + ridge), 0.0)
    return Vt.T @ (filtered.reshape(-1, *[1] * (Y.ndim - 1)) * (U.T @ Y))


def _format_table(axis_name: str, axis: Tensor, columns: dict[str, Tensor]) -> list[str]:
    """Return lines of text: a header, then one line for each of about PRINTED_ROWS values of the axis, the peak included.

    ``columns`` maps a title to (G,) values, one for each value of ``axis`` (G,); the peak is that of the first column.
    """
    width = max(len(axis_name), 12)
    lines = [f"{axis_name:>{width}}" + "".join(f"{name:>12}" for name in columns)]
    printed_indices = np.linspace(0, len(axis) - 1, min(len(axis), PRINTED_ROWS)).round().astype(int)
    printed_indices = np.union1d(printed_indices, int(next(iter(columns.values())).argmax()))  # always print the peak
    lines += [
        f"{float(axis[i]):>{width}g}" + "".join(f"{float(values[i]):>12.4g}" for values in columns.values())
        for i in printed_indices.tolist()
    ]
    if len(printed_indices) < len(axis):
        lines.append(f"{len(printed_indices)} of {len(axis)} values; all: .to_frame()")
    return lines
