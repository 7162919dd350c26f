"""How good a prediction was: its error at every place, and whether it ranks the places better than chance."""

import math
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.prediction.predict import Prediction

if TYPE_CHECKING:
    import pandas

__all__ = ["PredictionScore", "score_prediction"]

EXACT = 7  # places up to which all orders are tried


@dataclass(frozen=True, eq=False)
class PredictionScore:
    """A prediction beside what was measured in R runs at its A places.

    Attributes:
        relative_error: (A,), expected / mean measured − 1; positive where too much error was expected.
        measured: (A,), means over runs.
        se: (A,), their standard errors; NaN for one run.
        rank_correlation: Spearman's, of expected with mean measured; 1: the same order.
        rank_se: jackknife over runs; NaN below three.
        p_value: share of orders of the places with at least this rank correlation: the null of no relation.
        null_spread: standard deviation of the rank correlation over those orders.
        peak: where the largest error was expected, and where it was measured.
    """

    axis: Tensor = field(repr=False)
    relative_error: Tensor = field(repr=False)
    measured: Tensor = field(repr=False)
    se: Tensor = field(repr=False)
    rank_correlation: float
    rank_se: float
    p_value: float
    null_spread: float
    peak: tuple[float, float]

    @property
    def median_error(self) -> float:
        """Median over places of |relative error|."""
        return float(self.relative_error.abs().quantile(0.5))

    def to_frame(self) -> "pandas.DataFrame":
        """One line a place."""
        import pandas  # slow to import

        names = ("measured", "se", "relative_error")
        return pandas.DataFrame({name: getattr(self, name).numpy() for name in names}, index=self.axis.numpy())

    def __str__(self) -> str:
        return (
            f"median |relative error| {self.median_error:.1%}; rank correlation {self.rank_correlation:.3f}"
            f" ± {self.rank_se:.2g} (by chance 0 ± {self.null_spread:.2g}, p = {self.p_value:.2g});"
            f" peak expected at {self.peak[0]:g}, measured at {self.peak[1]:g}"
        )


def score_prediction(prediction: Prediction, measured: Any, *, orders: int = 9999, seed: int = 0) -> PredictionScore:
    """Score a prediction against mean squared errors on clean labels, measured at the same places.

    Args:
        prediction: what :func:`predict_curve` gave.
        measured: (A,), or (R, A) for R runs (seeds) that each went through all places: their differences are paired, and
            the standard error of the rank correlation leaves out one run at a time. In units of ``prediction.expected``:
            Σ_c (f_c − Y_c)², Y = one_hot − 1/C.
        orders: random orders of the places for the null; all of them up to 7 places.
        seed: of these.

    Returns:
        PredictionScore.

    Raises:
        InputError: fewer than three places, another number of them, values that are not positive and finite, a prediction
            that is infinite at a place.

    Source: Spearman 1904; permutation null with one added to both counts: Phipson and Smyth 2010.
    """
    runs = as_tensor(measured, "measured", dtype=torch.float64).cpu()
    runs = runs[None] if runs.ndim == 1 else runs
    A = len(prediction.axis)
    if runs.ndim != 2 or runs.shape[1] != A or len(runs) == 0 or A < 3:
        raise InputError(
            f"measured of shape {tuple(runs.shape)} for a prediction at {A} places",
            expected=f"(runs, {A}), of at least three places",
            hint="measure where it was predicted",
        )
    if not bool((runs > 0).all()):
        raise InputError("measured errors that are not positive", expected="mean squared errors > 0", hint="check them")
    if not bool(torch.isfinite(prediction.expected).all()):
        bad = prediction.axis[~torch.isfinite(prediction.expected)].tolist()
        raise InputError(
            f"a prediction that is infinite at {bad}",
            expected="finite ones",
            hint="leave the place out, or give a ridge",
        )
    orders = as_count(orders, "orders", minimum=99)
    mean = runs.mean(0)
    expected, R = prediction.expected.numpy(), len(runs)
    found = _spearman(expected, mean.numpy())
    if R >= 3:
        without = torch.tensor([_spearman(expected, ((runs.sum(0) - own) / (R - 1)).numpy()) for own in runs])
        rank_se = float(without.var(correction=0) * (R - 1)) ** 0.5
    else:
        rank_se = math.nan
    null, added = _null(expected, mean.numpy(), orders, as_count(seed, "seed", minimum=0))
    return PredictionScore(
        axis=prediction.axis,
        relative_error=prediction.expected / mean - 1,
        measured=mean,
        se=runs.std(0, correction=1) / R**0.5 if R > 1 else torch.full_like(mean, math.nan),
        rank_correlation=found,
        rank_se=rank_se,
        p_value=float((np.count_nonzero(null >= found - 1e-12) + added) / (len(null) + added)),
        null_spread=float(null.std()),
        peak=(prediction.peak, float(prediction.axis[mean.argmax()])),
    )


def _null(expected: np.ndarray, mean: np.ndarray, orders: int, seed: int) -> tuple[np.ndarray, int]:
    """Rank correlations over orders of the places, and what is added to the counts: 1 where not all were tried."""
    A = len(mean)
    if A <= EXACT:
        return np.array([_spearman(expected, mean[list(order)]) for order in permutations(range(A))]), 0
    rng = np.random.default_rng(seed)
    return np.array([_spearman(expected, mean[rng.permutation(A)]) for _ in range(orders)]), 1


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Correlation of ranks, ties sharing their mean rank; 0 where one side is constant."""
    a, b = _ranks(left), _ranks(right)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal + 1) / 2
