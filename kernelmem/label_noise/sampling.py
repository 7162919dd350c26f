"""Draws of noisy labels from transition rows: which examples change, and to what."""

import numpy as np

__all__ = ["by_propensity", "by_quota", "systematic", "targets"]

CHUNK = 4096  # examples at a time, so that the (examples, C) table of cumulated rows stays small


def targets(rows: np.ndarray, which: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Draw a label from ``rows[which[i]]`` (of any positive sum) with the uniform number ``u[i]``, (k,)."""
    drawn = np.empty(len(which), dtype=np.int64)
    for start in range(0, len(which), CHUNK):
        part = slice(start, start + CHUNK)
        cumulated = np.cumsum(rows[which[part]], axis=1)
        total = cumulated[:, -1]
        # below the total even where the product rounds up to it, so that no label of probability 0 is drawn
        point = np.minimum(u[part] * total, np.nextafter(total, 0))
        drawn[part] = (cumulated <= point[:, None]).sum(1)
    return drawn


def systematic(expected: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Round ``expected`` (k,) to whole numbers that sum to ``total``, its own sum rounded down or up.

    Every block of neighbors, not only every entry, sums to its expectation rounded down or up; if the sum is
    whole, the mean of every entry over draws is its expectation. Systematic sampling (Madow 1949): the steps
    of floor(cumulated sum + u) for one uniform u.
    """
    bounds = np.round(np.cumsum(expected), 9)  # so that thirds that add up to 1 reach it
    fraction = bounds[-1] % 1
    u = rng.uniform(0, 1 - fraction) if total <= bounds[-1] else rng.uniform(1 - fraction, 1)
    steps = np.minimum(np.floor(bounds + u), total)
    steps[bounds == bounds[-1]] = total
    return np.diff(steps, prepend=0).astype(np.int64)


def by_propensity(q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose round(sum q) examples, example i with probability q_i."""
    order = rng.permutation(len(q))
    return order[systematic(q[order], round(float(q.sum())), rng) > 0]


def by_quota(noisy: np.ndarray, wrong: np.ndarray, rate: float | None, rng: np.random.Generator) -> None:
    """Change ``noisy`` (n,) in place: n_i wrong_ij labels of class i become j, rounded down or up.

    So are the labels that leave class i, and all that change: to round(rate n), or without a rate to the
    nearest.
    """
    n_classes = len(wrong)
    by_class = np.bincount(noisy, minlength=n_classes)
    shuffled = rng.permutation(n_classes)  # else rounding would favor the pairs that stand first
    expected = (by_class[:, None] * wrong)[np.ix_(shuffled, shuffled)].ravel()
    mean = round(float(expected.sum()), 9)
    wanted = round(mean if rate is None else rate * len(noisy))
    total = min(max(wanted, int(np.floor(mean))), int(np.ceil(mean)))
    counts = np.empty((n_classes, n_classes), dtype=np.int64)
    counts[np.ix_(shuffled, shuffled)] = systematic(expected, total, rng).reshape(n_classes, n_classes)
    order = rng.permutation(len(noisy))
    grouped = order[np.argsort(noisy[order], kind="stable")]
    for i, mine in enumerate(np.split(grouped, np.cumsum(by_class)[:-1])):
        noisy[mine[: counts[i].sum()]] = np.repeat(np.arange(n_classes), counts[i])
