"""Lower bound on the privacy loss from scores with and without a record, with the threshold chosen on one half."""

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.memorization.canaries.privacy_bound import PrivacyBound, as_delta, as_one_sided_level

MAX_THRESHOLDS = 1000  # thresholds tried on the first half, quantiles of its scores


def split_bound(
    in_scores: ArrayLike, out_scores: ArrayLike, *, delta: float = 0.0, level: float = 0.95, seed: int = 0
) -> PrivacyBound:
    """Return a lower bound on ε from scores of trainings with a record and of trainings without it.

    For a guess "included" made where score ≥ τ, (ε, δ)-differential privacy requires::

        TPR ≤ e^ε FPR + δ        TNR ≤ e^ε FNR + δ

    The threshold τ and the better of the two inequalities are chosen on a random half of each group. The bound is
    log((TPR₋ − δ) / FPR₊), or that of the other inequality, on the other half, with exact Clopper-Pearson ends TPR₋ and FPR₊
    that each fail with probability (1 − level) / 2; so nothing is chosen on the scores that the bound is computed from.

    Args:
        in_scores: (a,) scores of independent trainings with the record, larger = more like a training example; a ≥ 4.
        out_scores: (b,) scores of independent trainings without it; b ≥ 4. Scores of many canaries in one training are not
            independent: use :func:`one_run_bound`.
        delta: δ of the guarantee, in [0, 1).
        level: confidence level, in (0.5, 1).
        seed: seed of the halves.

    Returns:
        PrivacyBound: its ceiling is the bound for a threshold without any error.

    Raises:
        InputError: NaN or infinite scores, another shape, fewer than 4 scores in a group, or an option out of range.

    Cost: O((a + b) log(a + b)).

    Source: Jagielski, Ullman and Oprea 2020; intervals: Clopper and Pearson 1934; split: Cox 1975.

    >>> split_bound([1.0] * 50, [0.0] * 50).epsilon == split_bound([1.0] * 50, [0.0] * 50).ceiling
    True
    >>> split_bound([1.0] * 50, [1.0] * 50).epsilon
    0.0
    """
    level, delta = as_one_sided_level(level), as_delta(delta)
    groups = [_check(in_scores, "in_scores"), _check(out_scores, "out_scores")]
    seeds = seed_sequence(seed, ["in", "out"])
    halves = []
    for scores, name in zip(groups, seeds, strict=True):
        order = np.random.default_rng(seeds[name]).permutation(len(scores))
        halves.append((scores[order[: len(order) // 2]], scores[order[len(order) // 2 :]]))
    (first_in, second_in), (first_out, second_out) = halves
    tail = (1 - level) / 2
    thresholds = np.unique(np.concatenate([first_in, first_out]))
    if len(thresholds) > MAX_THRESHOLDS:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, MAX_THRESHOLDS).round().astype(int)]
    bounds = _bounds(first_in, first_out, thresholds, delta, tail)
    positive, best = np.unravel_index(int(np.argmax(bounds)), bounds.shape)
    threshold = thresholds[best]
    found = _bounds(second_in, second_out, threshold[None], delta, tail)[positive, 0]
    ceiling = _epsilon(
        np.array([len(second_in)]), len(second_in), np.array([0]), len(second_out), delta, tail
    )  # the inequality of TPR and FPR
    if positive == 1:
        ceiling = _epsilon(np.array([len(second_out)]), len(second_out), np.array([0]), len(second_in), delta, tail)
    return PrivacyBound(
        epsilon=float(found),
        delta=delta,
        level=level,
        ceiling=float(ceiling[0]),
        method="split sample",
        counts={
            "in": len(second_in),
            "in_at_or_above_threshold": int((second_in >= threshold).sum()),
            "out": len(second_out),
            "out_at_or_above_threshold": int((second_out >= threshold).sum()),
        },
    )


def _check(scores: ArrayLike, name: str) -> np.ndarray:
    x = as_tensor(scores, name, dtype=torch.float64).cpu().numpy()
    if x.ndim != 1 or len(x) < 4:
        raise InputError(
            f"{name} of shape {x.shape}",
            expected="one score per training, at least 4",
            hint="train with and without the record several times",
        )
    return x


def _bounds(
    in_scores: np.ndarray, out_scores: np.ndarray, thresholds: np.ndarray, delta: float, tail: float
) -> np.ndarray:
    """Return the bounds (2, T) at T thresholds: of TPR and FPR, then of TNR and FNR."""
    n_in, n_out = len(in_scores), len(out_scores)
    true_positives = n_in - np.searchsorted(np.sort(in_scores), thresholds)
    false_positives = n_out - np.searchsorted(np.sort(out_scores), thresholds)
    return np.stack(
        [
            _epsilon(true_positives, n_in, false_positives, n_out, delta, tail),
            _epsilon(n_out - false_positives, n_out, n_in - true_positives, n_in, delta, tail),
        ]
    )


def _epsilon(
    correct: np.ndarray, n_correct: int, errors: np.ndarray, n_errors: int, delta: float, tail: float
) -> np.ndarray:
    """Return max(0, log((lower end of correct / n − δ) / upper end of errors / n)); each end fails with probability tail."""
    from scipy.stats import beta  # slow to import

    low = np.where(correct > 0, beta.ppf(tail, np.maximum(correct, 1), n_correct - correct + 1), 0.0) - delta
    high = np.where(errors < n_errors, beta.isf(tail, errors + 1, np.maximum(n_errors - errors, 1)), 1.0)
    ratio = np.where(low > 0, low, high) / high
    return np.maximum(0.0, np.log(ratio))
