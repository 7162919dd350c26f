"""Theory of a random-feature sweep: finite-pool eigenframework with the kernel that the features approximate."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.sweeps.result import Sweep, as_json
from kernelmem.double_descent.theory.kernel_ridge.curves import feature_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import flip_noise, pool_task
from kernelmem.training.datasets import LabeledDataLike, as_labeled_data


@dataclass(frozen=True, eq=False, repr=False)
class FeatureTheory(Result):
    """Expected squared error on clean labels, and the error measured by a sweep, (A,) each.

    Attributes:
        axis: numbers of features.
        expected: error expected from the equations for a finite pool; infinite at the interpolation threshold if the ridge
            is 0.
        control: error expected from the same equations without label noise.
        population: error expected from the equations that treat the pool as the population.
        measured: test loss of the sweep, averaged over seeds.
    """

    axis: Tensor
    expected: Tensor
    control: Tensor
    population: Tensor
    measured: Tensor

    @property
    def relative_error(self) -> Tensor:
        """Relative error expected / measured − 1 at each of the A values, (A,); NaN where ``expected`` is infinite."""
        return torch.where(torch.isfinite(self.expected), self.expected / self.measured - 1, torch.nan)

    @property
    def peak(self) -> float:
        """Number of features with the largest expected error."""
        return float(self.axis[self.expected.argmax()])

    def summary(self) -> dict[str, object]:
        """Return the theory as a dictionary of JSON values for summary.json."""
        largest_error = self.relative_error.abs().nan_to_num(0).max()
        return {
            "source": "eigenframework of random features, finite pool",
            "expected": as_json(self.expected),
            "population": as_json(self.population),
            "relative_error": as_json(self.relative_error),
            "largest_relative_error": float(largest_error),
            "peak": self.peak,
        }

    def plot_curves(self) -> list[tuple[list[float], list[float], str]]:
        """Return a list of (axis, values, label), the ``theory`` that :meth:`kernelmem.double_descent.Sweep.plot` draws."""
        finite = torch.where(torch.isfinite(self.expected), self.expected, torch.nan)
        return [(self.axis.tolist(), finite.tolist(), "theory, finite pool")]

    def __str__(self) -> str:
        table = self.to_frame().to_string(index=False, float_format="{:.4g}".format, max_rows=30)
        return f"squared error of random features, expected and measured\n{table}"


def feature_theory(data: LabeledDataLike, sweep: Sweep) -> FeatureTheory:
    """Predict a sweep of cosine features over their number, without simulation or training.

    The features approximate the kernel exp(−scale² |x − x'|² / 2); its matrix on all examples of ``data``, training and
    test, with their true labels, is the pool of :func:`kernelmem.double_descent.theory.feature_curve`.

    Raises:
        InputError: the sweep is not over the number of features, or its features are not cosine features.

    Cost: one eigendecomposition of all N examples, O(N³).

    Source: Simon et al. 2023; finite pools: see ``feature_curve``.
    """
    data = as_labeled_data(data)
    check_instance(sweep, "sweep", Sweep, hint="pass the result of feature_sweep")
    config = sweep.config
    if sweep.kind != "features" or config.get("features") != "cosine":
        raise InputError(
            f"a sweep of kind {sweep.kind!r}, features {config.get('features')!r}",
            expected="cosine features over their number",
            hint='pass the result of feature_sweep(data, "width", ...)',
        )
    x = torch.cat([data.x_train, data.x_test]).to(torch.float64).flatten(1)
    y = torch.cat([data.y_train, data.y_test])
    C = data.n_classes
    K = torch.exp(-(config["scale"] ** 2) * torch.cdist(x, x).square() / 2)
    pool = pool_task((K + K.T) / 2, torch.eye(C, dtype=torch.float64)[y] - 1 / C)
    with_noise, without_noise = flip_noise(float(config["noise"]), C), flip_noise(0.0, C)
    expected_errors = []
    for task, flip_moments in ((pool, with_noise), (pool, without_noise), (pool.as_population(), with_noise)):
        curve = feature_curve(
            task, np.asarray(sweep.axis), n=int(config["n"]), ridge=float(config["ridge"]), noise=flip_moments
        )
        expected_errors.append(
            torch.full((len(sweep.axis),), math.nan, dtype=torch.float64) if curve.clean is None else curve.clean
        )
    axis = torch.tensor(sweep.axis, dtype=torch.float64)
    return FeatureTheory(axis, *expected_errors, measured=sweep.curves.test_loss.mean(0))
