"""Detection of flipped labels by a score: AUROC, precision, recall, and the AUROC on permuted flags as control."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import auroc_from_midranks, auroc_interval, auroc_standard_error


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Result):
    """Metrics of how well one score separates the m flipped labels from the clean ones, among n rows.

    Attributes:
        auroc: P(score of a flip > score of a clean row) + P(equal) / 2.
        auroc_se: standard error of ``auroc`` (DeLong et al. 1988). It is 0 for fully separated groups, where the sample does not
            determine it.
        auroc_interval: (low, high), 95 % interval of ``auroc``, which also holds for few flips and for an AUROC near 1
            (:func:`kernelmem.statistics.auroc_interval`).
        average_precision: Σ over distinct scores of (increase in recall) × precision; tied rows count together.
        n_flipped: number m of flips.
        ranks: int64 (k,), increasing, at most 102: dense from 1 to 2m, sparse up to n; includes m and n.
        precision: float64 (k,), share of flips among the ``ranks`` most suspicious rows.
        recall: float64 (k,), share of all flips that are among the ``ranks`` most suspicious rows.
        permuted_auroc: mean AUROC over permutations of the flags (null control): 0.5 within its error.
        permuted_sd: standard deviation of the AUROC over permutations, which is the noise of a random score.
    """

    auroc: float
    auroc_se: float
    auroc_interval: tuple[float, float]
    average_precision: float
    n_flipped: int
    ranks: Tensor
    precision: Tensor
    recall: Tensor
    permuted_auroc: float
    permuted_sd: float

    file_version: ClassVar[int] = 2

    def __str__(self) -> str:
        flip_count_index = int((self.ranks == self.n_flipped).nonzero()[0])
        return (
            f"AUROC {self.auroc:.4f} (95 % interval {self.auroc_interval[0]:.4f} to {self.auroc_interval[1]:.4f})"
            f" for {self.n_flipped:,} flips among {int(self.ranks[-1]):,} rows"
            f" (permuted flags {self.permuted_auroc:.4f} ± {self.permuted_sd:.4f})\n"
            f"average precision {self.average_precision:.4f}; precision = recall ="
            f" {float(self.precision[flip_count_index]):.4f} among the {self.n_flipped:,} most suspicious rows"
        )


def detect(score: ArrayLike, flipped: ArrayLike, *, seed: int, permutations: int = 200) -> Detection:
    """Measure how well ``score`` (larger = more suspicious) separates flipped from clean labels.

    AUROC = (sum of the midranks of the m flips − m (m + 1) / 2) / (m (n − m)), so a tie counts one half; its standard error
    and interval are those of :mod:`kernelmem.statistics`. Precision and recall at k are means over all orders
    of tied rows, so they do not depend on the order of the rows.

    Args:
        score: real numbers (n,), tensor or array.
        flipped: bool or 0/1 (n,), True for a flipped label; at least one flipped and one clean label.
        seed: seed of the permutations, a whole number >= 0.
        permutations: number of permutations of the flags, at least 2.

    Raises:
        InputError: NaN or infinite scores, lengths that differ, flags other than 0 and 1, all or none flipped.

    Cost: O(n log n + permutations n).

    Source: DeLong, DeLong and Clarke-Pearson 1988; Newcombe 2006.

    >>> detection = detect([0.9, 0.8, 0.1, 0.2], [True, False, False, False], seed=0)
    >>> detection.auroc, detection.ranks.tolist(), detection.recall.tolist()
    (1.0, [1, 2, 3, 4], [1.0, 1.0, 1.0, 1.0])
    >>> detect([7.0, 7.0, 7.0], [True, False, False], seed=0).auroc
    0.5
    """
    from scipy.stats import rankdata  # SciPy and scikit-learn are slow to import
    from sklearn.metrics import average_precision_score

    scores, flags = _check_scores_and_flags(score, flipped)
    permutations = as_count(permutations, "permutations", minimum=2)
    rng = np.random.default_rng(seed_sequence(seed, ["permutations"])["permutations"])
    n, n_flipped = len(flags), int(flags.sum())
    midranks = rankdata(scores)
    permuted_aurocs = np.array(
        [auroc_from_midranks(midranks[rng.permutation(n)[:n_flipped]], n) for _ in range(permutations)]
    )
    interval = auroc_interval(scores, flags)
    ranks = _reported_ranks(n, n_flipped)
    expected_hits = _expected_hits(scores, flags, ranks)
    return Detection(
        auroc=interval.value,
        auroc_se=auroc_standard_error(scores, flags),
        auroc_interval=(interval.low, interval.high),
        average_precision=float(average_precision_score(flags, scores)),
        n_flipped=n_flipped,
        ranks=torch.from_numpy(ranks),
        precision=torch.from_numpy(expected_hits / ranks),
        recall=torch.from_numpy(expected_hits / n_flipped),
        permuted_auroc=float(permuted_aurocs.mean()),
        permuted_sd=float(permuted_aurocs.std(ddof=1)),
    )


def _check_scores_and_flags(score: ArrayLike, flipped: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Check the scores and the flags of n rows, and return them as float64 and bool, both (n,).

    Raises:
        InputError: shapes differ, a flag is not 0 or 1, or all or no rows are flipped.
    """
    scores = as_tensor(score, "score", dtype=torch.float64).cpu().numpy()
    flags = as_tensor(flipped, "flipped", dtype=torch.float64).cpu().numpy()
    if scores.ndim != 1 or flags.shape != scores.shape:
        raise InputError(
            f"score of shape {scores.shape} and flipped of shape {flags.shape}",
            expected="one score and one flag per row, both of shape (n,)",
            hint="pass one-dimensional score and flipped of the same rows",
        )
    if not np.isin(flags, (0, 1)).all():
        raise InputError(
            "flipped with values other than 0 and 1",
            expected="True where the label was changed",
            hint="pass the mask of corrupt_labels, or y_noisy != y",
        )
    n_flipped = int(flags.sum())
    if n_flipped in (0, len(flags)):
        raise InputError(
            f"score and flipped of {len(flags)} rows, {n_flipped} of them flipped",
            expected="at least one flipped and one clean row",
            hint="corrupt some of the labels and keep some",
        )
    return scores, flags.astype(bool)


def _reported_ranks(n_rows: int, n_flipped: int) -> np.ndarray:
    """Return about 100 ranks k, ascending, at which precision and recall are reported.

    They are dense up to twice the number of flips, where the curves bend, and sparse from there to ``n_rows``.
    """
    dense = np.linspace(1, min(n_rows, 2 * n_flipped), 80)
    sparse = np.linspace(min(n_rows, 2 * n_flipped), n_rows, 20)
    return np.unique(np.concatenate([dense, sparse, [n_flipped, n_rows]]).round().astype(np.int64))


def _expected_hits(scores: np.ndarray, flags: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return for each rank k in ``ranks`` the expected number of flips among the k largest scores.

    The expectation is over random orders of tied scores; the result has the shape of ``ranks``.
    """
    _, tie_group, group_sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    group_ends = np.concatenate([[0], np.cumsum(group_sizes)])
    cumulative_flips = np.concatenate([[0], np.cumsum(np.bincount(tie_group, flags, len(group_sizes)))])
    return np.interp(ranks, group_ends, cumulative_flips)
