"""Corrupt labels on purpose, with a record of the flips and of the transition matrix (ground truth for audits)."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_flag, as_labels, as_number, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.label_noise import sampling, transition_matrices

CLASS_MATRICES = {  # kinds whose transition matrix follows from the number of classes and the rate
    "symmetric": transition_matrices.symmetric,
    "uniform": transition_matrices.uniform,
    "pair": transition_matrices.pair,
}
KINDS = (*CLASS_MATRICES, "confusable", "matrix", "instance")
MAX_CLASSES = 16384  # a transition matrix of 2 GiB; larger labels are identifiers, not classes


@dataclass(frozen=True, eq=False, repr=False)
class CorruptedLabels(Result):
    """Noisy labels of n rows with C classes, and the ground truth of the corruption.

    Attributes:
        y: (n,) noisy labels, int64, on the device of the clean labels.
        flipped: (n,) bool, True where the noisy label differs from the clean one.
        matrix: transition matrix T_ij = P(noisy label j | true label i), (C, C) float64 on the CPU; for kind "instance"
            (n, C), the distribution of every row's noisy label.
    """

    y: Tensor
    flipped: Tensor
    matrix: Tensor

    def __str__(self) -> str:
        n, n_flipped = len(self.y), int(self.flipped.sum())
        kind = "one distribution per row" if len(self.matrix) == n != self.matrix.shape[1] else "transition matrix"
        return (
            f"{n_flipped:,} of {n:,} labels flipped ({n_flipped / n:.2%}), {self.matrix.shape[1]} classes,"
            f" {kind} {tuple(self.matrix.shape)}"
        )


def corrupt_labels(
    y: ArrayLike,
    rate: float | None,
    kind: str = "symmetric",
    *,
    seed: int,
    exact: bool = True,
    x: ArrayLike | None = None,
    matrix: ArrayLike | None = None,
) -> CorruptedLabels:
    """Replace labels by draws from a known transition matrix, T_ij = P(noisy label j | true label i).

    With C = max(y) + 1 classes and rate r, the kinds are:

    - ``"symmetric"``: a wrong label, each equally likely; T_ii = 1 − r, T_ij = r / (C − 1).
    - ``"uniform"``: with probability r drawn from all C labels, including the true one (Zhang et al. 2017);
      T = (1 − r) I + r / C, and the share of labels that change is r (C − 1) / C.
    - ``"pair"``: the next class; T_{i, (i + 1) mod C} = r.
    - ``"confusable"``: the class b != a with the largest mean leave-one-out prediction over the rows of the true class a,
      by kernel ridge regression on x (Gaussian kernel, median distance, ridge by leave-one-out; at most about 1,000 rows
      are used). The matrix does not depend on the seed. Classes without rows are ignored.
    - ``"matrix"``: T is ``matrix`` (C, C); C may exceed max(y) + 1. ``rate`` is None, or the share of these labels that
      the matrix changes, Σ_i n_i (1 − T_ii) / n; any other rate is refused.
    - ``"instance"``: q_i softmax(z_i W_{y_i}) on the wrong labels of row i, with propensity
      q_i ~ TruncNormal(r, 0.1², [0, 1]) scaled to mean r, W_c ~ N(0, 1), and z the standardized x over √d, so that units
      and dimension of x do not matter (Xia et al. 2020, who do not scale q and x).

    ``exact=True`` chooses exactly round(r n) rows (Python's round), and all of them change, except for ``"uniform"``:
    there exactly round(r n) rows are redrawn, and those that draw their own label are not ``flipped``. For ``"matrix"``
    every count of a pair (true i, noisy j) is n_i T_ij rounded down or up, and so is the total; for ``"instance"`` row i is
    chosen with probability q_i exactly. ``exact=False`` draws every row independently. For ``"symmetric"``, ``"pair"`` and
    ``"confusable"`` the flips of a lower rate are a subset of those of a higher rate with the same seed.

    Args:
        y: integer labels (n,), tensor or array.
        rate: r in [0, 1]; 0 returns the labels and the identity.
        kind: one of the six kinds above.
        seed: a whole number >= 0; the same seed gives identical labels. Global random states are neither used nor changed.
        exact: True fixes the number of flips; False draws it at random.
        x: features (n, ...) for ``"confusable"`` and ``"instance"``; ignored by the others.
        matrix: row-stochastic (C, C), only with ``kind="matrix"``.

    Returns:
        CorruptedLabels: noisy labels, the mask of flips and the transition matrix.

    Raises:
        InputError: an argument outside the ranges above, fewer than two classes, or NaN or infinite features.

    Cost: O(n C) time, O(C²) memory; ``"instance"`` O(n d C) and O(n C); ``"confusable"`` O(min(n, 1000)³).

    >>> noisy = corrupt_labels([0, 1, 2, 3] * 5, 0.25, seed=0)
    >>> int(noisy.flipped.sum()), noisy.matrix[0].tolist()
    (5, [0.75, 0.08333333333333333, 0.08333333333333333, 0.08333333333333333])
    >>> corrupt_labels([0, 1, 2, 3], 1.0, "pair", seed=0).y.tolist()
    [1, 2, 3, 0]
    """
    clean_labels, exact = as_labels(y, "y"), as_flag(exact, "exact")
    streams = seed_sequence(seed, ["law", "row", "target"])
    matrix_rng, row_rng, target_rng = map(np.random.default_rng, streams.values())
    _check_arguments(kind, clean_labels, x, matrix)
    checked_rate = None if kind == "matrix" and rate is None else as_number(rate, "rate", maximum=1.0)
    true_labels = clean_labels.cpu().numpy()
    T = _transition_matrix(kind, true_labels, checked_rate, x, matrix, exact=exact, rng=matrix_rng)  # (C, C) or (n, C)

    row_label = true_labels if kind == "instance" else np.arange(len(T))  # true label of each row of T
    matrix_row = np.arange(len(true_labels)) if kind == "instance" else true_labels  # row of T of each example
    wrong_probabilities = T.copy()
    wrong_probabilities[np.arange(len(T)), row_label] = 0
    noisy = true_labels.copy()
    if exact and kind == "matrix":
        sampling.flip_by_quota(noisy, wrong_probabilities, checked_rate, row_rng)
    else:
        if not exact:
            chosen_examples = np.flatnonzero(row_rng.random(len(true_labels)) < wrong_probabilities.sum(1)[matrix_row])
        elif kind == "instance":
            chosen_examples = sampling.choose_by_propensity(wrong_probabilities.sum(1), row_rng)
        else:
            n_chosen = round(cast(float, checked_rate) * len(true_labels))
            chosen_examples = row_rng.permutation(len(true_labels))[:n_chosen]
        distributions = np.ones_like(T) if exact and kind == "uniform" else wrong_probabilities
        uniforms = target_rng.random(len(true_labels))[chosen_examples]
        noisy[chosen_examples] = sampling.draw_labels(distributions, matrix_row[chosen_examples], uniforms)
    y_noisy = torch.from_numpy(noisy).to(clean_labels.device)
    return CorruptedLabels(y_noisy, y_noisy != clean_labels, torch.from_numpy(T))


def _transition_matrix(
    kind: str,
    labels: np.ndarray,
    rate: float | None,
    x: ArrayLike | None,
    matrix: ArrayLike | None,
    *,
    exact: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the transition matrix of a kind of noise: (C, C) for C classes, or (n, C) for "instance"."""
    if kind == "matrix":
        assert matrix is not None  # checked by _check_choice
        return transition_matrices.user_matrix(matrix, labels, rate)
    assert rate is not None  # only "matrix" needs no rate
    n_classes = int(labels.max()) + 1
    if kind == "instance":
        assert x is not None
        n_flips = round(rate * len(labels)) if exact else None
        return transition_matrices.instance(x, labels, n_classes, rate, rng=rng, n_flips=n_flips)
    if kind == "confusable":
        assert x is not None
        return transition_matrices.confusable(x, labels, n_classes, rate)
    return CLASS_MATRICES[kind](n_classes, rate)


def _check_arguments(kind: str, labels: Tensor, x: ArrayLike | None, matrix: ArrayLike | None) -> None:
    """Check the kind of noise, the arguments that it needs and the number of classes.

    Raises:
        InputError: the kind is unknown, an argument is missing or superfluous, or there are too few or too many classes.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(
            f"kind {kind!r}", expected=f"one of {', '.join(map(repr, KINDS))}", hint="pass one of these names"
        )
    if kind in ("confusable", "instance") and x is None:
        raise InputError(
            f'kind="{kind}" with x=None',
            expected="the features that this kind uses, shape (n, ...)",
            hint="pass x=..., one row per label",
        )
    if (kind == "matrix") != (matrix is not None):
        raise InputError(
            'kind="matrix" with matrix=None' if matrix is None else f'kind="{kind}" with matrix=...',
            expected='a (C, C) matrix with kind="matrix", and only with it',
            hint='pass kind="matrix", matrix=..., rate=None',
        )
    n_classes = int(labels.max()) + 1 if len(labels) else 0
    if (n_classes < 2 and kind != "matrix") or not len(labels):
        raise InputError(
            f"y with {len(labels)} labels of {n_classes} class{'' if n_classes == 1 else 'es'}",
            expected="labels of at least two classes (C = max + 1)",
            hint="pass labels 0..C-1 with C >= 2: with one class there is no wrong label",
        )
    if n_classes > MAX_CLASSES:
        raise InputError(
            f"y with labels up to {n_classes - 1}",
            expected=f"at most {MAX_CLASSES} classes (the transition matrix is C x C)",
            hint="renumber the classes from 0, without gaps",
        )
