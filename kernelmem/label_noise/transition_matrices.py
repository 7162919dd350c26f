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
TOLERANCE = 1e-6  # a float32 matrix sums to 1 only to about this


def symmetric(n_classes: int, rate: float) -> np.ndarray:
    """With probability r a wrong label, each equally likely: T_ii = 1 − r, T_ij = r / (C − 1)."""
    matrix = np.full((n_classes, n_classes), rate / (n_classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def uniform(n_classes: int, rate: float) -> np.ndarray:
    """With probability r a label drawn uniformly from all C classes: T = (1 − r) I + r / C."""
    return (1 - rate) * np.eye(n_classes) + rate / n_classes


def pair(n_classes: int, rate: float) -> np.ndarray:
    """With probability r the next class: T_ii = 1 − r, T_{i, (i + 1) mod C} = r."""
    return _toward(np.roll(np.arange(n_classes), -1), rate)


def confusable(x: ArrayLike, labels: np.ndarray, n_classes: int, rate: float) -> np.ndarray:
    """With probability r the class with which the true class is most confused; see :func:`most_confused`."""
    return _toward(most_confused(_features(x, len(labels)), labels, n_classes), rate)


def _toward(partner: np.ndarray, rate: float) -> np.ndarray:
    classes = np.arange(len(partner))
    matrix = np.zeros((len(classes), len(classes)))
    matrix[classes, classes] = 1 - rate
    matrix[classes, partner] += rate
    unpaired = classes[partner == classes]  # classes without rows keep their label: exactly 1, not 1 - r + r
    matrix[unpaired, unpaired] = 1.0
    return matrix


def most_confused(features: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return for every class a the class b != a with the largest mean leave-one-out prediction over the rows of a, (C,).

    The predictions are those of kernel ridge regression with the kernel exp(−d² / (2 median d²)) and the ridge with the
    smallest leave-one-out error. They use at most about ``CONFUSION_ROWS`` rows, the same number from every class, evenly
    spaced in the given order. Scores that agree to nine digits are tied, and the lower class wins. A class without rows is
    its own partner, and not the partner of another class.
    """
    counts = np.bincount(labels, minlength=n_classes)
    present = counts > 0
    if present.sum() < 2:
        raise InputError(
            f"y with rows of one class only ({int(labels[0])})",
            expected='rows of at least two classes for kind="confusable"',
            hint='pass labels of more classes, or use kind="symmetric"',
        )
    chosen = _evenly_spaced(labels, present, counts)
    kernel = _radial_kernel(features[chosen])
    y = torch.from_numpy(labels[chosen])
    predictions = leave_one_out(kernel, y, choose_ridge(kernel, y).ridge).predictions.cpu().numpy()
    partner = np.arange(n_classes)
    for a in np.flatnonzero(present):
        mean = np.round(predictions[labels[chosen] == a].mean(0), 9)
        mean[~present] = -np.inf
        mean[a] = -np.inf
        partner[a] = int(mean.argmax())
    return partner


def _evenly_spaced(labels: np.ndarray, present: np.ndarray, counts: np.ndarray) -> np.ndarray:
    if len(labels) <= CONFUSION_ROWS:
        return np.arange(len(labels))
    share = max(1, CONFUSION_ROWS // int(present.sum()))
    picks = [
        np.flatnonzero(labels == a)[np.linspace(0, counts[a] - 1, min(share, counts[a])).astype(np.int64)]
        for a in np.flatnonzero(present)
    ]
    return np.sort(np.concatenate(picks))


def _radial_kernel(features: np.ndarray) -> torch.Tensor:
    if (features == features[0]).all():
        raise InputError(
            "x with rows that are all the same",
            expected='different rows, so that kind="confusable" can find similar classes',
            hint='pass the features of each row, or use kind="symmetric"',
        )
    centered = features - features.mean(0)  # reduces cancellation in the distances
    norms = (centered**2).sum(1)
    squares = np.maximum(norms[:, None] + norms[None] - 2 * centered @ centered.T, 0)
    np.fill_diagonal(squares, 0)
    pairs = squares[np.triu_indices(len(squares), 1)]
    width = np.median(pairs)
    if width <= 1e-12 * pairs.max():  # more than half of the pairs are duplicates
        width = pairs.mean()
    return torch.from_numpy(np.exp(-squares / (2 * width)))


def user_defined(matrix: ArrayLike, labels: np.ndarray, rate: float | None) -> np.ndarray:
    """Return the user's matrix with rows scaled to sum to 1 exactly.

    Raises:
        InputError: not square, negative, rows that do not sum to 1, fewer classes than the labels, or a rate other than
            the share of labels that the matrix changes, Σ_i n_i (1 − T_ii) / n.
    """
    T = as_tensor(matrix, "matrix", dtype=torch.float64).cpu().numpy()
    where = f"matrix of shape {T.shape}"
    if T.ndim != 2 or T.shape[0] != T.shape[1] or len(T) < 2:
        raise InputError(
            where,
            expected="a square matrix (C, C) with C >= 2, row i the distribution of the noisy label of class i",
            hint="pass one row and one column for each class",
        )
    if int(labels.max()) >= len(T):
        raise InputError(
            f"y with label {int(labels.max())} outside 0..{len(T) - 1}, the classes of the {where}",
            expected="one row of the matrix for each class",
            hint="add the missing classes to the matrix, or renumber the labels",
        )
    if (T < 0).any():
        raise InputError(
            f"{where} with negative entries (the smallest is {T.min():.3g})",
            expected="probabilities",
            hint="clip negative rounding errors, then divide each row by its sum",
        )
    sums = T.sum(1)
    if np.abs(sums - 1).max() > TOLERANCE:
        worst = int(np.abs(sums - 1).argmax())
        raise InputError(
            f"{where} with row {worst} that sums to {sums[worst]:.6g}",
            expected="rows that sum to 1 (T_ij = P(noisy j | true i))",
            hint="divide each row by its sum; if the columns sum to 1, pass the transpose",
        )
    T = T / sums[:, None]
    implied = float((1 - T.diagonal())[labels].mean())
    if rate is not None and abs(rate - implied) > TOLERANCE:
        raise InputError(
            f"rate {rate:g} and a matrix that changes the share {implied:.6g} of these labels",
            expected='rate=None, or that share, for kind="matrix"',
            hint="pass rate=None: the matrix determines the number of changed labels",
        )
    return T


def instance(
    x: ArrayLike, labels: np.ndarray, n_classes: int, rate: float, *, rng: np.random.Generator, total: int | None
) -> np.ndarray:
    """Instance-dependent noise, (n, C): 1 − q_i at the label of row i, q_i softmax(z_i W_{y_i}) elsewhere.

    q_i ~ TruncNormal(r, 0.1², [0, 1]), scaled to mean r; with ``total`` scaled so that its sum is ``total``. z are the
    standardized features divided by √d, so that the logits have unit variance in any units of x and the softmax does not
    collapse to one class. W_c ~ N(0, 1) of shape (d, C) for every class c.

    Source: Xia et al. 2020.
    """
    n = len(labels)
    features = _features(x, n)
    sd = features.std(0)
    varies = sd > 1e-12 * np.abs(features).max(0)
    scale = np.zeros(len(sd))  # constant features carry no information
    scale[varies] = 1 / (sd[varies] * np.sqrt(varies.sum()))
    mean = features.mean(0)
    q = _propensities(rng.random(n), rate, None if total is None else total / n)
    rows = np.empty((n, n_classes))
    for label in np.unique(labels):
        of_class = labels == label
        logits = (features[of_class] - mean) * scale @ rng.standard_normal((len(scale), n_classes))
        logits[:, label] = -np.inf
        rows[of_class] = q[of_class, None] * softmax(logits, axis=1)
    rows[np.arange(n), labels] = 1 - q
    return rows


def _propensities(u: np.ndarray, rate: float, mean: float | None) -> np.ndarray:
    low, high = -rate / PROPENSITY_SD, (1 - rate) / PROPENSITY_SD
    mass = ndtr(high) - ndtr(low)
    q = np.clip(rate + PROPENSITY_SD * ndtri(ndtr(low) + u * mass), 0, 1)
    # Truncation moves the mean (rate 0.1: to 0.129); rescale to the requested rate.
    if mean is None:
        density = (np.exp(-(low**2) / 2) - np.exp(-(high**2) / 2)) / np.sqrt(2 * np.pi)
        actual, requested = rate + PROPENSITY_SD * density / mass, rate
    else:
        actual, requested = q.mean(), mean
    return q * (requested / actual) if requested <= actual else 1 - (1 - q) * ((1 - requested) / (1 - actual))


def _features(x: ArrayLike, n: int) -> np.ndarray:
    features = as_tensor(x, "x", dtype=torch.float64).cpu().numpy()
    if features.ndim == 0 or len(features) != n or features.size == 0:
        raise InputError(
            f"x of shape {features.shape} and {n} labels",
            expected=f"one row of features per label, shape ({n}, ...)",
            hint="pair every row of x with its label",
        )
    flat = features.reshape(n, -1)
    largest = np.abs(flat).max()
    return flat / largest if largest > 0 else flat  # prevents overflow of squares
