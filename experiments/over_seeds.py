"""Figures of several seeds as result files and tables hold them: mean, standard error, 95 % interval, extremes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

__all__ = ["plus_minus", "summary"]


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean over seeds, standard error (sample standard deviation / √n), Student's 95 % interval; None if one is NaN.

    Seeds that draw their rows from the same pictures are not independent: the error is of the draw, not of the data set.
    """
    own = np.asarray(values, dtype=np.float64)
    if np.isnan(own).any():
        return None
    count, mean = len(own), float(own.mean())
    se = float(own.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    reach = float(t.ppf(0.975, count - 1)) * se if count > 1 else math.nan
    figures = {"mean": mean, "se": se, "low": mean - reach, "high": mean + reach}
    figures |= {"min": float(own.min()), "max": float(own.max())}
    return {name: round(value, 6) for name, value in figures.items()}


def plus_minus(figures: dict[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """Mean ± standard error as tables print them."""
    if figures is None:
        return ""
    sign = "+" if signed else ""
    return f"{figures['mean']:{sign}.{digits}f} ± {figures['se']:.{digits}f}"
