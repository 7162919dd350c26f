"""Rank correlation with its interval, reliability of repeated measurements, correction for attenuation."""

import math

import torch

from kernelmem.core.checks import ArrayLike, as_number, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.statistics.intervals import Interval, as_level


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of two vectors: Pearson's correlation of their midranks.

    Args:
        a: real numbers (n,), n ≥ 2.
        b: real numbers (n,), of the same rows.

    Raises:
        InputError: NaN or infinite values, shapes that differ, fewer than two values, or a constant vector, whose correlation
            is undefined.

    Cost: O(n log n).

    Source: Spearman 1904.

    >>> spearman([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.5
    """
    from scipy.stats import rankdata  # slow to import

    x = as_tensor(a, "a", dtype=torch.float64).cpu()
    y = as_tensor(b, "b", dtype=torch.float64).cpu()
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise InputError(
            f"a of shape {tuple(x.shape)} and b of shape {tuple(y.shape)}",
            expected="two vectors of the same n >= 2 rows",
            hint="pass one value per row in each",
        )
    for name, values in (("a", x), ("b", y)):
        if bool((values == values[0]).all()):
            raise InputError(
                f"{name} with {len(values)} equal values",
                expected="at least two distinct values",
                hint="a constant vector has no rank correlation: leave it out",
            )
    ranks = [torch.from_numpy(rankdata(values.numpy())) - (len(x) + 1) / 2 for values in (x, y)]
    correlation = float(ranks[0] @ ranks[1]) / math.sqrt(float(ranks[0].square().sum() * ranks[1].square().sum()))
    return min(1.0, max(-1.0, correlation))


def spearman_interval(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return Spearman's correlation r of n independent rows with its interval tanh(artanh r ± z √((1 + r²/2) / (n − 3))).

    Args and errors: those of :func:`spearman`, with n ≥ 4. At |r| = 1, where artanh is infinite, r is moved to
    ±(1 − 1 / n²) for the width of the interval.

    Source: Bonett and Wright 2000.
    """
    from scipy.stats import norm

    level = as_level(level)
    r = spearman(a, b)
    n = len(as_tensor(a, "a"))
    if n < 4:
        raise InputError(f"{n} rows", expected="at least 4 rows", hint="use spearman, which has no interval")
    inside = max(-1 + n**-2.0, min(1 - n**-2.0, r))
    half_width = float(norm.isf((1 - level) / 2)) * math.sqrt((1 + inside**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(inside) - half_width), math.tanh(math.atanh(inside) + half_width)
    return Interval(r, min(r, low), max(r, high), level)


def spearman_brown(r: float, *, factor: float = 2.0) -> float:
    """Return the reliability k r / (1 + (k − 1) r) of k times as many repetitions, given the correlation r of two sets of them.

    At k = 2, the default, r is the correlation of two halves, and the result is the reliability of their mean. A negative r
    shows no reliability, and the result is 0.

    Raises:
        InputError: r outside [−1, 1], or factor not positive.

    Source: Spearman 1910, Brown 1910.

    >>> spearman_brown(0.5)
    0.6666666666666666
    """
    r = as_number(r, "r", minimum=-1.0, maximum=1.0)
    factor = as_number(factor, "factor", exclusive=True)
    return factor * r / (1 + (factor - 1) * r) if r > 0 else 0.0


def attenuation_corrected(r: float, reliability_a: float, reliability_b: float = 1.0) -> float:
    """Return r / √(reliability_a · reliability_b), the correlation that two measurements without noise would have.

    It can exceed 1 by chance, and is not cut there.

    Args:
        r: measured correlation.
        reliability_a: reliability of the first measurement, in (0, 1].
        reliability_b: reliability of the second measurement, in (0, 1]; 1 if it is exact.

    Raises:
        InputError: a value out of range.

    Source: Spearman 1904.

    >>> round(attenuation_corrected(0.6, 0.81), 4)
    0.6667
    """
    r = as_number(r, "r", minimum=-1.0, maximum=1.0)
    first = as_number(reliability_a, "reliability_a", maximum=1.0, exclusive=True)
    second = as_number(reliability_b, "reliability_b", maximum=1.0, exclusive=True)
    return r / math.sqrt(first * second)
