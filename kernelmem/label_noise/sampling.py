"""Sampling of noisy labels from transition matrices: which examples change, and to which label."""

import numpy as np

CHUNK = 4096  # examples per block, which bounds the (examples, C) table of cumulative sums


def targets(rows: np.ndarray, index: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Draw labels (k,): label i from the distribution ``rows[index[i]]`` (any positive sum) with the uniform number ``u[i]``."""
    drawn = np.empty(len(index), dtype=np.int64)
    for start in range(0, len(index), CHUNK):
        block = slice(start, start + CHUNK)
        cumulative = np.cumsum(rows[index[block]], axis=1)
        total = cumulative[:, -1]
        # Strictly below the total even if the product rounds up to it, so that no label of probability 0 is drawn.
        point = np.minimum(u[block] * total, np.nextafter(total, 0))
        drawn[block] = (cumulative <= point[:, None]).sum(1)
    return drawn


def systematic(expected: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Round ``expected`` (k,) to whole numbers that sum to ``total``, its own sum rounded down or up.

    Every block of neighbors, not only every entry, sums to its expectation rounded down or up; if the sum is a whole
    number, the mean of every entry over draws is its expectation. Systematic sampling (Madow 1949): the increments of
    floor(cumulative sum + u) for one uniform u.
    """
    bounds = np.round(np.cumsum(expected), 9)  # three thirds must sum to 1
    fraction = bounds[-1] % 1
    u = rng.uniform(0, 1 - fraction) if total <= bounds[-1] else rng.uniform(1 - fraction, 1)
    steps = np.minimum(np.floor(bounds + u), total)
    steps[bounds == bounds[-1]] = total
    return np.diff(steps, prepend=0).astype(np.int64)


def by_propensity(q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose round(Σ q) examples, example i with probability q_i."""
    order = rng.permutation(len(q))
    return order[systematic(q[order], round(float(q.sum())), rng) > 0]


def by_quota(noisy: np.ndarray, wrong: np.ndarray, rate: float | None, rng: np.random.Generator) -> None:
    """Change ``noisy`` (n,) in place: n_i wrong_ij labels of class i become j, rounded down or up.

    The number of labels that leave class i is also rounded down or up; the total is round(rate n), or without a rate the
    nearest whole number.
    """
    n_classes = len(wrong)
    by_class = np.bincount(noisy, minlength=n_classes)
    shuffled = rng.permutation(n_classes)  # otherwise rounding would favor the first pairs
    expected = (by_class[:, None] * wrong)[np.ix_(shuffled, shuffled)].ravel()
    mean = round(float(expected.sum()), 9)
    requested = round(mean if rate is None else rate * len(noisy))
    total = min(max(requested, int(np.floor(mean))), int(np.ceil(mean)))
    counts = np.empty((n_classes, n_classes), dtype=np.int64)
    counts[np.ix_(shuffled, shuffled)] = systematic(expected, total, rng).reshape(n_classes, n_classes)
    order = rng.permutation(len(noisy))
    grouped = order[np.argsort(noisy[order], kind="stable")]
    for i, examples in enumerate(np.split(grouped, np.cumsum(by_class)[:-1])):
        noisy[examples[: counts[i].sum()]] = np.repeat(np.arange(n_classes), counts[i])
