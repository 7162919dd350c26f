"""Score of a prediction: relative errors, and rank correlation with the measured errors against a permutation null."""

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_seed, as_tensor, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.prediction.predict import Prediction

if TYPE_CHECKING:
    import pandas as pd

MAX_EXACT_VALUES = 7  # for up to this number of values all permutations are used, 7! = 5,040

MAX_PERMUTATIONS = 10_000_000


@dataclass(frozen=True, eq=False, repr=False)
class PredictionScore(Result):
    """Comparison of a prediction with the errors measured in R runs at its A values.

    Attributes:
        axis: (A,) values of the axis.
        relative_error: (A,) expected / mean measured − 1; positive where the prediction is too high.
        measured: (A,) measured errors, means over runs.
        se: (A,) standard errors of ``measured`` over runs; NaN for one run.
        rank_correlation: Spearman correlation of expected and mean measured errors; 1 if their order is the same.
        rank_se: jackknife standard error of ``rank_correlation`` over runs; NaN for fewer than three runs.
        p_value: fraction of the permutations of the values with at least this rank correlation.
        null_spread: standard deviation of the rank correlation over these permutations.
        peak: axis value of the largest expected error, and axis value of the largest measured error.
    """

    axis: Tensor
    relative_error: Tensor
    measured: Tensor
    se: Tensor
    rank_correlation: float
    rank_se: float
    p_value: float
    null_spread: float
    peak: tuple[float, float]

    @property
    def median_error(self) -> float:
        """Median over the axis of the absolute value of the relative error."""
        return float(self.relative_error.abs().quantile(0.5))

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per value of the axis: measured error, its standard error and the relative error."""
        import pandas as pd  # slow to import

        names = ("measured", "se", "relative_error")
        return pd.DataFrame({name: getattr(self, name).numpy() for name in names}, index=self.axis.numpy())

    def __str__(self) -> str:
        return (
            f"median |relative error| {self.median_error:.1%}; rank correlation {self.rank_correlation:.3f}"
            f" ± {self.rank_se:.2g} (by chance 0 ± {self.null_spread:.2g}, p = {self.p_value:.2g});"
            f" peak expected at {self.peak[0]:g}, measured at {self.peak[1]:g}"
        )


def score_prediction(
    prediction: Prediction, measured: ArrayLike, *, n_permutations: int = 9999, seed: int = 0
) -> PredictionScore:
    """Score a prediction against squared errors on clean labels, measured at the same values of the axis.

    Args:
        prediction: result of :func:`kernelmem.double_descent.predict_curve`.
        measured: (A,), or (R, A) for R runs (seeds) that each cover the whole axis: their differences are paired, and the
            standard error of the rank correlation leaves out one run at a time. In units of ``prediction.expected``:
            Σ_c (f_c − Y_c)², Y = one_hot − 1/C.
        n_permutations: random permutations for the null; for up to 7 values all permutations are used.
        seed: seed of the random permutations.

    Returns:
        PredictionScore.

    Raises:
        InputError: there are fewer than three values, the shapes do not match, errors are not positive and finite, or
            the prediction is infinite.

    Cost: O(n_permutations · A log A).

    Source: Spearman 1904; permutation null with one added to both counts: Phipson and Smyth 2010.
    """
    check_instance(prediction, "prediction", Prediction, hint="pass the result of predict_curve")
    seed = as_seed(seed)
    measured_runs = as_tensor(measured, "measured", dtype=torch.float64).cpu()
    measured_runs = measured_runs[None] if measured_runs.ndim == 1 else measured_runs
    A = len(prediction.axis)
    if measured_runs.ndim != 2 or measured_runs.shape[1] != A or len(measured_runs) == 0 or A < 3:
        raise InputError(
            f"measured of shape {tuple(measured_runs.shape)} for a prediction at {A} values",
            expected=f"({A},) or (runs, {A}), with at least three values",
            hint="measure at the values of the prediction",
        )
    if not bool((measured_runs > 0).all()):
        raise InputError("measured errors <= 0", expected="squared errors > 0", hint="pass sums over classes")
    if not bool(torch.isfinite(prediction.expected).all()):
        infinite = prediction.axis[~torch.isfinite(prediction.expected)].tolist()
        raise InputError(
            f"a prediction that is infinite at {infinite}",
            expected="finite values",
            hint="remove this value of the axis, or predict with a ridge",
        )
    n_permutations = as_count(n_permutations, "n_permutations", minimum=99, maximum=MAX_PERMUTATIONS)
    mean_measured = measured_runs.mean(0)
    expected, R = prediction.expected.numpy(), len(measured_runs)
    rank_correlation, rank_se = _spearman(expected, mean_measured.numpy()), math.nan
    if R >= 3:
        jackknife = [_spearman(expected, ((measured_runs.sum(0) - run) / (R - 1)).numpy()) for run in measured_runs]
        rank_se = float(torch.tensor(jackknife, dtype=torch.float64).var(correction=0) * (R - 1)) ** 0.5
    null_correlations, pseudocount = _null_correlations(expected, mean_measured.numpy(), n_permutations, seed)
    return PredictionScore(
        axis=prediction.axis,
        relative_error=prediction.expected / mean_measured - 1,
        measured=mean_measured,
        se=measured_runs.std(0, correction=1) / R**0.5 if R > 1 else torch.full_like(mean_measured, math.nan),
        rank_correlation=rank_correlation,
        rank_se=rank_se,
        p_value=float(
            (np.count_nonzero(null_correlations >= rank_correlation - 1e-12) + pseudocount)
            / (len(null_correlations) + pseudocount)
        ),
        null_spread=float(null_correlations.std()),
        peak=(prediction.peak, float(prediction.axis[mean_measured.argmax()])),
    )


def _null_correlations(
    expected: np.ndarray, mean: np.ndarray, n_permutations: int, seed: int
) -> tuple[np.ndarray, int]:
    """Return the rank correlations of ``expected`` (A,) with permutations of ``mean`` (A,), one for each permutation.

    All permutations are used for few values, otherwise ``n_permutations`` random ones. The second result is the number to
    add to numerator and denominator of the p-value: 0 if all permutations are used, and 1 for random ones.
    """
    A = len(mean)
    if A <= MAX_EXACT_VALUES:
        return np.array([_spearman(expected, mean[list(permutation)]) for permutation in permutations(range(A))]), 0
    rng = np.random.default_rng(seed)
    return np.array([_spearman(expected, mean[rng.permutation(A)]) for _ in range(n_permutations)]), 1


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation of x and y, (A,) each.

    Equal values have the mean of their ranks. The correlation is 0 if x or y is constant (SciPy returns NaN).
    """
    from scipy.stats import rankdata  # slow to import

    x_ranks, y_ranks = rankdata(x), rankdata(y)
    x_ranks, y_ranks = x_ranks - x_ranks.mean(), y_ranks - y_ranks.mean()
    norm = math.sqrt(float(x_ranks @ x_ranks) * float(y_ranks @ y_ranks))
    return float(x_ranks @ y_ranks) / norm if norm else 0.0
