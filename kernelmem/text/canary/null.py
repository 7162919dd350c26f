"""Mean and standard deviation of the exposure of a canary that was not inserted."""

import math

import numpy as np

DIRECT = 10**6  # number of ranks up to which moments are summed; the limit differs by (log2 R)² / R from there on


def rank_moments(candidates: int) -> tuple[float, float]:
    """Return mean and standard deviation of log2 R − log2 rank, rank uniform in 1..R.

    The mean is log2 R − log2(R!) / R; both tend to log2 e = 1.4427.

    >>> [round(value, 3) for value in rank_moments(100)]
    [1.396, 1.332]
    """
    if candidates > DIRECT:
        return math.log2(math.e), math.log2(math.e)
    bits = math.log2(candidates) - np.log2(np.arange(1, candidates + 1))
    return float(bits.mean()), float(bits.std())


def refined_moments(samples: int) -> tuple[float, float]:
    """Return mean and standard deviation of a sampled exposure that is replaced by the exact one if no reference is above.

    With no reference above, an event of probability 1 / (m + 1), the relative rank has the distribution Beta(1, m + 1).
    """
    from scipy.special import polygamma  # slow to import

    m = samples
    bits = math.log2(m + 1) - np.log2(np.arange(1, m + 2))
    harmonic = float((1 / np.arange(1, m + 2)).sum())
    first = harmonic / math.log(2)  # mean of −log2 of the relative rank
    variance = float(polygamma(1, 1) - polygamma(1, m + 2)) / math.log(2) ** 2
    mean = (float(bits[1:].sum()) + first) / (m + 1)
    square = (float((bits[1:] ** 2).sum()) + first**2 + variance) / (m + 1)
    return mean, math.sqrt(square - mean**2)
