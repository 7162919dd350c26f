"""Detection of flipped labels by a score: AUROC, precision, recall, and the AUROC on permuted flags as control."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Result):
    """Metrics of one score against known flips.

    Attributes:
        auroc: P(score of a flip > score of a clean row) + P(equal) / 2.
        auroc_se: its standard error (DeLong et al. 1988). It is 0 for fully separated groups, where the sample does not
            determine it.
        average_precision: Σ over distinct scores of (increase in recall) × precision; tied rows count together.
        n_flipped: number m of flips.
        ranks: int64 (k,), increasing, at most 102: dense from 1 to 2m, sparse up to n; includes m and n.
        precision: float64 (k,), share of flips among the ``ranks`` most suspicious rows.
        recall: float64 (k,), share of all flips among them.
        permuted_auroc: mean AUROC over permutations of the flags (null control): 0.5 within its error.
        permuted_sd: standard deviation of these, the noise of the AUROC of a random score.
    """

    auroc: float
    auroc_se: float
    average_precision: float
    n_flipped: int
    ranks: Tensor
    precision: Tensor
    recall: Tensor
    permuted_auroc: float
    permuted_sd: float

    def __str__(self) -> str:
        at_m = int((self.ranks == self.n_flipped).nonzero()[0])
        return (
            f"AUROC {self.auroc:.4f} ± {self.auroc_se:.4f} for {self.n_flipped:,} flips among {int(self.ranks[-1]):,} rows"
            f" (permuted flags {self.permuted_auroc:.4f} ± {self.permuted_sd:.4f})\n"
            f"average precision {self.average_precision:.4f}; precision = recall ="
            f" {float(self.precision[at_m]):.4f} among the {self.n_flipped:,} most suspicious rows"
        )


def detect(score: ArrayLike, flipped: ArrayLike, *, seed: int, permutations: int = 200) -> Detection:
    """Measure how well ``score`` (larger = more suspicious) separates flipped from clean labels.

    AUROC = (sum of the midranks of the m flips − m (m + 1) / 2) / (m (n − m)), so a tie counts one half. Its standard
    error is that of DeLong, from midranks; for groups of one row it is undefined, and the upper bound
    √(AUROC (1 − AUROC)) is returned instead (Birnbaum and Klose 1957). Precision and recall at k are means over all orders
    of tied rows, so they do not depend on the order of the rows.

    Args:
        score: real numbers (n,), tensor or array.
        flipped: bool or 0/1 (n,), with at least one of each.
        seed: seed of the permutations, a whole number >= 0.
        permutations: number of permutations of the flags, at least 2.

    Raises:
        InputError: NaN or infinite scores, lengths that differ, flags other than 0 and 1, all or none flipped.

    Cost: O(n log n + permutations n).

    Source: DeLong, DeLong, Clarke-Pearson 1988; midranks: Sun and Xu 2014.

    >>> detection = detect([0.9, 0.8, 0.1, 0.2], [True, False, False, False], seed=0)
    >>> detection.auroc, detection.ranks.tolist(), detection.recall.tolist()
    (1.0, [1, 2, 3, 4], [1.0, 1.0, 1.0, 1.0])
    >>> detect([7.0, 7.0, 7.0], [True, False, False], seed=0).auroc
    0.5
    """
    from scipy.stats import rankdata  # both are slow to import
    from sklearn.metrics import average_precision_score

    values, flags = _checked(score, flipped)
    permutations = as_count(permutations, "permutations", minimum=2)
    rng = np.random.default_rng(seed_sequence(seed, ["permutations"])["permutations"])
    n, m = len(flags), int(flags.sum())
    midranks = rankdata(values)
    null = np.array([_area(midranks[rng.permutation(n)[:m]], n) for _ in range(permutations)])
    auroc = _area(midranks[flags], n)
    ranks = _ranks(n, m)
    hits = _expected_hits(values, flags, ranks)
    return Detection(
        auroc=auroc,
        auroc_se=_delong(values, midranks, flags, auroc),
        average_precision=float(average_precision_score(flags, values)),
        n_flipped=m,
        ranks=torch.from_numpy(ranks),
        precision=torch.from_numpy(hits / ranks),
        recall=torch.from_numpy(hits / m),
        permuted_auroc=float(null.mean()),
        permuted_sd=float(null.std(ddof=1)),
    )


def _checked(score: ArrayLike, flipped: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values = as_tensor(score, "score", dtype=torch.float64).cpu().numpy()
    flags = as_tensor(flipped, "flipped").cpu().numpy()
    if values.ndim != 1 or flags.shape != values.shape:
        raise InputError(
            f"score of shape {values.shape} and flipped of shape {flags.shape}",
            expected="one score and one flag per row, both of shape (n,)",
            hint="pass one-dimensional score and flipped of the same rows",
        )
    if not np.isin(flags, (0, 1)).all():
        raise InputError(
            "flipped with values other than 0 and 1",
            expected="True where the label was changed",
            hint="pass the mask of corrupt_labels, or y_noisy != y",
        )
    count = int(flags.sum())
    if count in (0, len(flags)):
        raise InputError(
            f"score and flipped of {len(flags)} rows, {count} of them flipped",
            expected="at least one flipped and one clean row",
            hint="corrupt some of the labels and keep some",
        )
    return values, flags.astype(bool)


def _area(flip_ranks: np.ndarray, n: int) -> float:
    m = len(flip_ranks)
    return float((flip_ranks.sum() - m * (m + 1) / 2) / (m * (n - m)))


def _delong(values: np.ndarray, midranks: np.ndarray, flags: np.ndarray, auroc: float) -> float:
    m, clean = int(flags.sum()), int((~flags).sum())
    if min(m, clean) < 2:
        return math.sqrt(auroc * (1 - auroc))
    from scipy.stats import rankdata

    # Placements: share of the other group below a row, from its rank among all minus its rank in its group.
    of_flips = (midranks[flags] - rankdata(values[flags])) / clean
    of_clean = 1 - (midranks[~flags] - rankdata(values[~flags])) / m
    return math.sqrt(float(of_flips.var(ddof=1)) / m + float(of_clean.var(ddof=1)) / clean)


def _ranks(n: int, m: int) -> np.ndarray:
    """Return about 100 ranks: dense up to twice the number of flips, where the curves bend, and sparse from there to n."""
    dense = np.linspace(1, min(n, 2 * m), 80)
    sparse = np.linspace(min(n, 2 * m), n, 20)
    return np.unique(np.concatenate([dense, sparse, [m, n]]).round().astype(np.int64))


def _expected_hits(values: np.ndarray, flags: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the expected number of flips among the k largest scores, with ties at k in random order."""
    _, group, sizes = np.unique(-values, return_inverse=True, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    hits = np.concatenate([[0], np.cumsum(np.bincount(group, flags, len(sizes)))])
    return np.interp(ranks, ends, hits)
