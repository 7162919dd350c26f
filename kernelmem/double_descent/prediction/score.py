"""Score of a prediction: relative errors, and rank correlation with the measured errors against a permutation null."""

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.double_descent.prediction.predict import Prediction

if TYPE_CHECKING:
    import pandas as pd

EXACT = 7  # number of values up to which all permutations are tried


@dataclass(frozen=True, eq=False, repr=False)
class PredictionScore(Result):
    """Comparison of a prediction with the errors measured in R runs at its A values.

    Attributes:
        axis: (A,) values of the axis.
        relative_error: (A,) expected / mean measured − 1; positive where the prediction is too high.
        measured: (A,) means over runs.
        se: (A,) their standard errors; NaN for one run.
        rank_correlation: Spearman correlation of expected and mean measured errors; 1: the same order.
        rank_se: its jackknife standard error over runs; NaN below three runs.
        p_value: fraction of the permutations of the values with at least this rank correlation.
        null_spread: standard deviation of the rank correlation over these permutations.
        peak: axis values of the largest expected and of the largest measured error.
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
        """Median of |relative error| over the axis."""
        return float(self.relative_error.abs().quantile(0.5))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per value of the axis."""
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
        seed: seed of these.

    Returns:
        PredictionScore.

    Raises:
        InputError: fewer than three values, wrong shapes, errors that are not positive and finite, an infinite prediction.

    Cost: O(n_permutations · A log A).

    Source: Spearman 1904; permutation null with one added to both counts: Phipson and Smyth 2010.
    """
    runs = as_tensor(measured, "measured", dtype=torch.float64).cpu()
    runs = runs[None] if runs.ndim == 1 else runs
    A = len(prediction.axis)
    if runs.ndim != 2 or runs.shape[1] != A or len(runs) == 0 or A < 3:
        raise InputError(
            f"measured of shape {tuple(runs.shape)} for a prediction at {A} values",
            expected=f"({A},) or (runs, {A}), with at least three values",
            hint="measure at the values of the prediction",
        )
    if not bool((runs > 0).all()):
        raise InputError("measured errors <= 0", expected="squared errors > 0", hint="pass sums over classes")
    if not bool(torch.isfinite(prediction.expected).all()):
        infinite = prediction.axis[~torch.isfinite(prediction.expected)].tolist()
        raise InputError(
            f"a prediction that is infinite at {infinite}",
            expected="finite values",
            hint="remove this value of the axis, or predict with a ridge",
        )
    n_permutations = as_count(n_permutations, "n_permutations", minimum=99)
    mean = runs.mean(0)
    expected, R = prediction.expected.numpy(), len(runs)
    rank_correlation, rank_se = _spearman(expected, mean.numpy()), math.nan
    if R >= 3:
        jackknife = [_spearman(expected, ((runs.sum(0) - run) / (R - 1)).numpy()) for run in runs]
        rank_se = float(torch.tensor(jackknife).var(correction=0) * (R - 1)) ** 0.5
    null, added = _null(expected, mean.numpy(), n_permutations, as_count(seed, "seed", minimum=0))
    return PredictionScore(
        axis=prediction.axis,
        relative_error=prediction.expected / mean - 1,
        measured=mean,
        se=runs.std(0, correction=1) / R**0.5 if R > 1 else torch.full_like(mean, math.nan),
        rank_correlation=rank_correlation,
        rank_se=rank_se,
        p_value=float((np.count_nonzero(null >= rank_correlation - 1e-12) + added) / (len(null) + added)),
        null_spread=float(null.std()),
        peak=(prediction.peak, float(prediction.axis[mean.argmax()])),
    )


def _null(expected: np.ndarray, mean: np.ndarray, n_permutations: int, seed: int) -> tuple[np.ndarray, int]:
    """Rank correlations under permutations, and the number added to the counts: 1 if not all permutations are tried."""
    A = len(mean)
    if A <= EXACT:
        return np.array([_spearman(expected, mean[list(order)]) for order in permutations(range(A))]), 0
    rng = np.random.default_rng(seed)
    return np.array([_spearman(expected, mean[rng.permutation(A)]) for _ in range(n_permutations)]), 1


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of ranks, ties at their mean rank; 0 if one side is constant (SciPy returns NaN)."""
    from scipy.stats import rankdata  # slow to import

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else 0.0
