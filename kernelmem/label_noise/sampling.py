"""Sampling of noisy labels from transition matrices: which examples change, and to which label."""

import numpy as np

CHUNK = 4096  # examples per block, which bounds the (examples, C) table of cumulative sums


def draw_labels(distributions: np.ndarray, distribution_index: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Draw k labels from given distributions by inverting their cumulative sums, and return them, (k,) int64.

    Label i is drawn from ``distributions[distribution_index[i]]`` (any positive sum) with the uniform number ``uniforms[i]``.
    """
    labels = np.empty(len(distribution_index), dtype=np.int64)
    for start in range(0, len(distribution_index), CHUNK):
        block = slice(start, start + CHUNK)
        cumulative = np.cumsum(distributions[distribution_index[block]], axis=1)
        totals = cumulative[:, -1]
        # Strictly below the total even if the product rounds up to it, so that no label of probability 0 is drawn.
        thresholds = np.minimum(uniforms[block] * totals, np.nextafter(totals, 0))
        labels[block] = (cumulative <= thresholds[:, None]).sum(1)
    return labels


def systematic_rounding(expected: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Round the k numbers ``expected`` to whole numbers with the sum ``total``, and return them, (k,) int64.

    ``total`` must be the sum of ``expected`` rounded down or up.

    Every block of neighbors, not only every entry, sums to its expectation rounded down or up; if the sum is a whole
    number, the mean of every entry over draws is its expectation. Systematic sampling (Madow 1949): the increments of
    floor(cumulative sum + u) for one uniform u.
    """
    cumulative = np.round(np.cumsum(expected), 9)  # three thirds must sum to 1
    fraction = cumulative[-1] % 1
    offset = rng.uniform(0, 1 - fraction) if total <= cumulative[-1] else rng.uniform(1 - fraction, 1)
    rounded = np.minimum(np.floor(cumulative + offset), total)
    rounded[cumulative == cumulative[-1]] = total
    return np.diff(rounded, prepend=0).astype(np.int64)


def choose_by_propensity(propensities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose round(Σ q_i) examples at random and return their numbers.

    Example i is chosen with probability q_i = ``propensities[i]``.
    """
    examples = rng.permutation(len(propensities))
    return examples[systematic_rounding(propensities[examples], round(float(propensities.sum())), rng) > 0]


def flip_by_quota(
    noisy: np.ndarray, wrong_probabilities: np.ndarray, rate: float | None, rng: np.random.Generator
) -> None:
    """Change labels in the array ``noisy`` (n,) in place, by a fixed number of flips for each pair of classes.

    With n_i labels of class i, ``wrong_probabilities[i, j]`` times n_i of them become j, rounded down or up.

    The number of labels that leave class i is also its expectation rounded down or up. The total number of flips is
    round(rate n), or the expected total rounded to the nearest whole number if the rate is None.
    """
    n_classes = len(wrong_probabilities)
    class_counts = np.bincount(noisy, minlength=n_classes)
    classes = rng.permutation(n_classes)  # otherwise rounding would favor the first pairs
    expected = (class_counts[:, None] * wrong_probabilities)[np.ix_(classes, classes)].ravel()
    expected_total = round(float(expected.sum()), 9)
    requested_total = round(expected_total if rate is None else rate * len(noisy))
    total = min(max(requested_total, int(np.floor(expected_total))), int(np.ceil(expected_total)))
    flip_counts = np.empty((n_classes, n_classes), dtype=np.int64)
    flip_counts[np.ix_(classes, classes)] = systematic_rounding(expected, total, rng).reshape(n_classes, n_classes)
    shuffled_examples = rng.permutation(len(noisy))
    examples_by_class = shuffled_examples[np.argsort(noisy[shuffled_examples], kind="stable")]
    for true_class, examples in enumerate(np.split(examples_by_class, np.cumsum(class_counts)[:-1])):
        noisy[examples[: flip_counts[true_class].sum()]] = np.repeat(np.arange(n_classes), flip_counts[true_class])
