"""Transition matrices of label noise, T_ij = P(noisy label j | true label i), for classes or for examples."""

import numpy as np
import torch
from scipy.special import ndtr, ndtri, softmax

from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge

CONFUSION_ROWS = 1000  # leave-one-out is cubic in the rows; a sample suffices to find similar classes
PROPENSITY_SD = 0.1  # Xia et al. 2020
ROW_SUM_TOLERANCE = 1e-6  # a float32 matrix sums to 1 only to about this


def symmetric(n_classes: int, rate: float) -> np.ndarray:
    """Return the matrix T (C, C) of symmetric noise: with probability r a label becomes any other label, equally likely.

    With C = ``n_classes`` and r = ``rate``, T_ii = 1 − r and T_ij = r / (C − 1).
    """
    matrix = np.full((n_classes, n_classes), rate / (n_classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def uniform(n_classes: int, rate: float) -> np.ndarray:
    """Return the matrix T (C, C) of uniform noise: with probability r a label is drawn uniformly from all C classes.

    With C = ``n_classes`` and r = ``rate``, T = (1 − r) I + r / C.
    """
    return (1 - rate) * np.eye(n_classes) + rate / n_classes


def pair(n_classes: int, rate: float) -> np.ndarray:
    """Return the matrix T (C, C) of pair noise: with probability r a label becomes the next class.

    With C = ``n_classes`` and r = ``rate``, T_ii = 1 − r and T_{i, (i + 1) mod C} = r.
    """
    return _flip_to_partner(np.roll(np.arange(n_classes), -1), rate)


def confusable(x: ArrayLike, labels: np.ndarray, n_classes: int, rate: float) -> np.ndarray:
    """Return the matrix (C, C) of confusion noise for C classes.

    With probability ``rate`` a label becomes the class that :func:`most_confused` assigns to its class, by the features x
    (n, ...).
    """
    return _flip_to_partner(most_confused(_scaled_features(x, len(labels)), labels, n_classes), rate)


def _flip_to_partner(partners: np.ndarray, rate: float) -> np.ndarray:
    """Return the matrix (C, C) that replaces each of C classes by its partner with probability ``rate``.

    ``partners`` (C,) holds the partner of each class; a class that is its own partner is never changed.
    """
    classes = np.arange(len(partners))
    T = np.zeros((len(classes), len(classes)))
    T[classes, classes] = 1 - rate
    T[classes, partners] += rate
    without_partner = classes[partners == classes]  # classes without rows keep their label: exactly 1, not 1 - r + r
    T[without_partner, without_partner] = 1.0
    return T


def most_confused(features: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return for each of C classes the class with which its rows are most easily confused, (C,).

    For class a it is the class b != a with the largest mean leave-one-out prediction over the rows of class a.

    The predictions are those of kernel ridge regression with the kernel exp(−d² / (2 median d²)) and the ridge with the
    smallest leave-one-out error. They use at most about ``CONFUSION_ROWS`` rows, the same number from every class, evenly
    spaced in the given order. Scores that agree to nine digits are tied, and the lower class wins. A class without rows is
    its own partner, and not the partner of another class.
    """
    class_counts = np.bincount(labels, minlength=n_classes)
    has_rows = class_counts > 0
    if has_rows.sum() < 2:
        raise InputError(
            f"y with rows of one class only ({int(labels[0])})",
            expected='rows of at least two classes for kind="confusable"',
            hint='pass labels of more classes, or use kind="symmetric"',
        )
    sampled_rows = _evenly_spaced_rows(labels, has_rows, class_counts)
    kernel = _radial_kernel(features[sampled_rows])
    sampled_labels = torch.from_numpy(labels[sampled_rows])
    predictions = (
        leave_one_out(kernel, sampled_labels, choose_ridge(kernel, sampled_labels).ridge).predictions.cpu().numpy()
    )
    partners = np.arange(n_classes)
    for true_class in np.flatnonzero(has_rows):
        mean_prediction = np.round(predictions[labels[sampled_rows] == true_class].mean(0), 9)
        mean_prediction[~has_rows] = -np.inf
        mean_prediction[true_class] = -np.inf
        partners[true_class] = int(mean_prediction.argmax())
    return partners


def _evenly_spaced_rows(labels: np.ndarray, has_rows: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """Return the numbers of at most about ``CONFUSION_ROWS`` rows, ascending.

    Every class with rows contributes the same number (or all its rows), evenly spaced in the given order. ``has_rows`` and
    ``class_counts`` are (C,).
    """
    if len(labels) <= CONFUSION_ROWS:
        return np.arange(len(labels))
    rows_per_class = max(1, CONFUSION_ROWS // int(has_rows.sum()))
    sampled_rows = [
        np.flatnonzero(labels == label)[
            np.linspace(0, class_counts[label] - 1, min(rows_per_class, class_counts[label])).astype(np.int64)
        ]
        for label in np.flatnonzero(has_rows)
    ]
    return np.sort(np.concatenate(sampled_rows))


def _radial_kernel(features: np.ndarray) -> torch.Tensor:
    """Return the Gaussian kernel (n, n) of n rows of features, exp(−d² / (2 median d²)), with d the distance of two rows.

    If the median is zero, the mean of d² is used instead.

    Raises:
        InputError: all rows are equal.
    """
    if (features == features[0]).all():
        raise InputError(
            "x with rows that are all the same",
            expected='different rows, so that kind="confusable" can find similar classes',
            hint='pass the features of each row, or use kind="symmetric"',
        )
    centered = features - features.mean(0)  # reduces cancellation in the distances
    squared_norms = (centered**2).sum(1)
    squared_distances = np.maximum(squared_norms[:, None] + squared_norms[None] - 2 * centered @ centered.T, 0)
    np.fill_diagonal(squared_distances, 0)
    pair_distances = squared_distances[np.triu_indices(len(squared_distances), 1)]
    squared_width = np.median(pair_distances)
    if squared_width <= 1e-12 * pair_distances.max():  # more than half of the pairs are duplicates
        squared_width = pair_distances.mean()
    return torch.from_numpy(np.exp(-squared_distances / (2 * squared_width)))


def user_matrix(matrix: ArrayLike, labels: np.ndarray, rate: float | None) -> np.ndarray:
    """Check the transition matrix T (C, C) of the user, and return it with rows scaled to sum to 1 exactly.

    ``labels`` (n,) are the true labels, of which n_i belong to class i.

    Raises:
        InputError: not square, negative, rows that do not sum to 1, fewer classes than the labels, or a rate other than
            the share of labels that the matrix changes, Σ_i n_i (1 − T_ii) / n.
    """
    T = as_tensor(matrix, "matrix", dtype=torch.float64).cpu().numpy()
    description = f"matrix of shape {T.shape}"
    if T.ndim != 2 or T.shape[0] != T.shape[1] or len(T) < 2:
        raise InputError(
            description,
            expected="a square matrix (C, C) with C >= 2, row i the distribution of the noisy label of class i",
            hint="pass one row and one column for each class",
        )
    if int(labels.max()) >= len(T):
        raise InputError(
            f"y with label {int(labels.max())} outside 0..{len(T) - 1}, the classes of the {description}",
            expected="one row of the matrix for each class",
            hint="add the missing classes to the matrix, or renumber the labels",
        )
    if (T < 0).any():
        raise InputError(
            f"{description} with negative entries (the smallest is {T.min():.3g})",
            expected="probabilities",
            hint="clip negative rounding errors, then divide each row by its sum",
        )
    row_sums = T.sum(1)
    if np.abs(row_sums - 1).max() > ROW_SUM_TOLERANCE:
        worst_row = int(np.abs(row_sums - 1).argmax())
        raise InputError(
            f"{description} with row {worst_row} that sums to {row_sums[worst_row]:.6g}",
            expected="rows that sum to 1 (T_ij = P(noisy j | true i))",
            hint="divide each row by its sum; if the columns sum to 1, pass the transpose",
        )
    T = T / row_sums[:, None]
    implied_rate = float((1 - T.diagonal())[labels].mean())
    if rate is not None and abs(rate - implied_rate) > ROW_SUM_TOLERANCE:
        raise InputError(
            f"rate {rate:g} and a matrix that changes the share {implied_rate:.6g} of these labels",
            expected='rate=None, or that share, for kind="matrix"',
            hint="pass rate=None: the matrix determines the number of changed labels",
        )
    return T


def instance(
    x: ArrayLike, labels: np.ndarray, n_classes: int, rate: float, *, rng: np.random.Generator, n_flips: int | None
) -> np.ndarray:
    """Return the distribution of each row's noisy label, (n, C), for n rows with C classes and d features.

    The probability is 1 − q_i at the true label y_i of row i, and q_i softmax(z_i W_{y_i}) at the other labels.

    q_i ~ TruncNormal(r, 0.1², [0, 1]), scaled to mean r, or so that Σ q_i is ``n_flips`` unless that is None. z are the
    standardized features divided by √d, so that the logits have unit variance in any units of x and the softmax does not
    collapse to one class. W_c ~ N(0, 1) of shape (d, C) for every class c.

    Source: Xia et al. 2020.
    """
    n = len(labels)
    features = _scaled_features(x, n)
    standard_deviations = features.std(0)
    is_varying = standard_deviations > 1e-12 * np.abs(features).max(0)
    scale = np.zeros(len(standard_deviations))  # constant features carry no information
    scale[is_varying] = 1 / (standard_deviations[is_varying] * np.sqrt(is_varying.sum()))
    means = features.mean(0)
    propensities = _propensities(rng.random(n), rate, None if n_flips is None else n_flips / n)
    distributions = np.empty((n, n_classes))
    for label in np.unique(labels):
        in_class = labels == label
        logits = (features[in_class] - means) * scale @ rng.standard_normal((len(scale), n_classes))
        logits[:, label] = -np.inf
        distributions[in_class] = propensities[in_class, None] * softmax(logits, axis=1)
    distributions[np.arange(n), labels] = 1 - propensities
    return distributions


def _propensities(uniforms: np.ndarray, rate: float, target_mean: float | None) -> np.ndarray:
    """Return flip probabilities q ~ TruncNormal(rate, 0.1², [0, 1]), (n,), rescaled to a given mean.

    They are computed from uniform random numbers (n,). Their mean over rows becomes ``target_mean``; if that is None, their
    expectation becomes ``rate``.
    """
    lower, upper = -rate / PROPENSITY_SD, (1 - rate) / PROPENSITY_SD
    probability_mass = ndtr(upper) - ndtr(lower)
    q = np.clip(rate + PROPENSITY_SD * ndtri(ndtr(lower) + uniforms * probability_mass), 0, 1)
    # Truncation moves the mean (rate 0.1: to 0.129); rescale to the requested rate.
    if target_mean is None:
        density = (np.exp(-(lower**2) / 2) - np.exp(-(upper**2) / 2)) / np.sqrt(2 * np.pi)
        actual_mean, requested_mean = rate + PROPENSITY_SD * density / probability_mass, rate
    else:
        actual_mean, requested_mean = q.mean(), target_mean
    return (
        q * (requested_mean / actual_mean)
        if requested_mean <= actual_mean
        else 1 - (1 - q) * ((1 - requested_mean) / (1 - actual_mean))
    )


def _scaled_features(x: ArrayLike, n: int) -> np.ndarray:
    """Return the features of n rows as a matrix (n, d), divided by its largest magnitude.

    Raises:
        InputError: x does not have n rows, or is empty.
    """
    features = as_tensor(x, "x", dtype=torch.float64).cpu().numpy()
    if features.ndim == 0 or len(features) != n or features.size == 0:
        raise InputError(
            f"x of shape {features.shape} and {n} labels",
            expected=f"one row of features per label, shape ({n}, ...)",
            hint="pair every row of x with its label",
        )
    flat_features = features.reshape(n, -1)
    largest = np.abs(flat_features).max()
    return flat_features / largest if largest > 0 else flat_features  # prevents overflow of squares
