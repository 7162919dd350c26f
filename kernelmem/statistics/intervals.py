"""Confidence intervals of a proportion and of a mean."""

import math
from dataclasses import dataclass

import torch

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_tensor
from kernelmem.core.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        level: confidence level, e.g. 0.95.
    """

    value: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        """Return the estimate and its interval, e.g. "0.9312 (0.8841 to 0.9610)"."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def as_level(level: float) -> float:
    """Return a confidence level strictly between 0 and 1.

    Raises:
        InputError: another value.
    """
    level = as_number(level, "level", maximum=1.0, exclusive=True)
    if level == 1.0:
        raise InputError("level=1", expected="a confidence level below 1", hint="pass level=0.95")
    return level


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Return the exact interval of a binomial proportion p, from k successes in n independent trials.

    Its ends are the quantiles α/2 of Beta(k, n − k + 1) and 1 − α/2 of Beta(k + 1, n − k), α = 1 − level; the lower end is 0
    at k = 0, the upper end 1 at k = n. It covers p with probability at least ``level`` for every n and p, and each end alone
    with probability at least 1 − α/2.

    Args:
        successes: number k of successes, in 0..n.
        trials: number n of trials, at least 1.
        level: confidence level, between 0 and 1.

    Raises:
        InputError: a count or level out of range.

    Source: Clopper and Pearson 1934.

    >>> print(clopper_pearson(0, 10))
    0 (0 to 0.3085)
    """
    from scipy.stats import beta  # slow to import

    trials = as_count(trials, "trials")
    successes = as_count(successes, "successes", minimum=0, maximum=trials)
    tail = (1 - as_level(level)) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return Interval(successes / trials, low, high, level)


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the mean of n independent values with the interval mean ± t s / √n.

    t is the quantile (1 + level) / 2 of Student's distribution with n − 1 degrees of freedom and s the standard deviation of
    the values (n − 1 in the denominator). It is exact for Gaussian values.

    Args:
        values: real numbers (n,), n ≥ 2.
        level: confidence level, between 0 and 1.

    Raises:
        InputError: fewer than two values, NaN or infinite values, another shape.

    Source: Student 1908.

    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2 (-0.4841 to 4.484)
    """
    from scipy.stats import t  # slow to import

    level = as_level(level)
    x = as_tensor(values, "values", dtype=torch.float64, squared=True).cpu()
    if x.ndim != 1 or len(x) < 2:
        raise InputError(
            f"values of shape {tuple(x.shape)}",
            expected="at least two numbers, shape (n,)",
            hint="pass one number per independent repetition; one repetition has no interval",
        )
    mean = float(x.mean())
    half_width = float(t.isf((1 - level) / 2, len(x) - 1)) * float(x.std(correction=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half_width, mean + half_width, level)
