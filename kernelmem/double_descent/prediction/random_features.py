"""The theory of a random-feature sweep: the eigenframework of the finite pool, from the kernel that the features tend to."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.result import Sweep, plain
from kernelmem.double_descent.theory.kernel_ridge.curves import feature_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import flip_noise, pool_task
from kernelmem.training.datasets import LabeledData

__all__ = ["FeatureTheory", "feature_theory"]


@dataclass(frozen=True, eq=False)
class FeatureTheory:
    """Expected squared error on clean labels beside what a sweep measured, (A,) each.

    Attributes:
        axis: numbers of features.
        expected: of the pool's equations; infinite at the threshold of ridge 0.
        control: the same without noise.
        plain: of the equations that take the pool for the population.
        measured: mean loss of the sweep.
    """

    axis: Tensor
    expected: Tensor
    control: Tensor
    plain: Tensor
    measured: Tensor

    @property
    def relative_error(self) -> Tensor:
        """Expected / measured − 1, NaN where infinity is expected."""
        return torch.where(torch.isfinite(self.expected), self.expected / self.measured - 1, torch.nan)

    @property
    def peak(self) -> float:
        """Where the largest error is expected."""
        return float(self.axis[self.expected.argmax()])

    def summary(self) -> dict:
        """As summary.json has it."""
        worst = self.relative_error.abs().nan_to_num(0).max()
        return {
            "source": "eigenframework of random features, finite pool",
            "expected": plain(self.expected),
            "plain": plain(self.plain),
            "relative_error": plain(self.relative_error),
            "largest_relative_error": float(worst),
            "peak": self.peak,
        }

    def plot_curves(self) -> list[tuple[list[float], list[float], str]]:
        """Return the curves for the ``theory`` argument of :meth:`kernelmem.double_descent.Sweep.plot`."""
        finite = torch.where(torch.isfinite(self.expected), self.expected, torch.nan)
        return [(self.axis.tolist(), finite.tolist(), "theory, finite pool")]


def feature_theory(data: LabeledData, sweep: Sweep) -> FeatureTheory:
    """Predict a sweep of cosine features over their number, with no simulation and no training.

    The features tend to the kernel exp(-scale² |x - x'|² / 2); its matrix on all rows of ``data``, training and test, with
    their true labels, is the pool. :func:`kernelmem.double_descent.theory.kernel_ridge.curves.feature_curve` gives the rest.

    Raises:
        InputError: a sweep over something else, or of other features.

    Cost: one eigendecomposition of all rows.

    Source: Simon et al. 2023; the finite pool: see ``feature_curve``.
    """
    config = sweep.config
    if sweep.kind != "features" or config.get("features") != "cosine":
        raise InputError(
            f"a sweep of kind {sweep.kind!r}, features {config.get('features')!r}",
            expected="cosine features over their number",
            hint='pass what feature_sweep(data, "width", ...) gave',
        )
    x = torch.cat([data.x_train, data.x_test]).to(torch.float64).flatten(1)
    y = torch.cat([data.y_train, data.y_test])
    C = data.n_classes
    K = torch.exp(-(config["scale"] ** 2) * torch.cdist(x, x).square() / 2)
    pool = pool_task((K + K.T) / 2, torch.eye(C, dtype=torch.float64)[y] - 1 / C)
    options = {"n": int(config["n"]), "ridge": float(config["ridge"])}
    noise = flip_noise(float(config["noise"]), C)
    curves = [
        feature_curve(task, np.asarray(sweep.axis), noise=own, **options).clean
        for task, own in ((pool, noise), (pool, flip_noise(0.0, C)), (pool.as_population(), noise))
    ]
    expected, control, simple = (torch.full((len(sweep.axis),), math.nan) if c is None else c for c in curves)
    axis = torch.tensor(sweep.axis, dtype=torch.float64)
    return FeatureTheory(axis, expected, control, simple, sweep.curves.test_loss.mean(0))
