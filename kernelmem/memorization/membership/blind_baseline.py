"""Blind baseline: classifiers that tell members from non-members without the model."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_count, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import Interval, as_level, auroc_interval

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 0.55  # AUROC above which members and non-members are too different for an attack to be judged
N_FOLDS = 5
# of the standard error, for scores of folds that share rows: √(1 + folds · test rows / training rows)
WIDENING = math.sqrt(1 + N_FOLDS / (N_FOLDS - 1))
FEWEST_ROWS = 20


@dataclass(frozen=True, eq=False, repr=False)
class BlindBaseline(Result):
    """AUROC of classifiers that see the rows but not the model; 0.5 if members were drawn as non-members were.

    Attributes:
        aurocs: interval of every classifier, simultaneous at ``level`` (Bonferroni).
        level: simultaneous confidence level.
        n_members: number of members used.
        n_nonmembers: number of non-members used.
        flagged: an AUROC is above 0.55 and its interval above 0.5: an attack may detect the difference of the rows instead
            of training.
    """

    aurocs: dict[str, Interval]
    level: float
    n_members: int
    n_nonmembers: int
    flagged: bool

    @property
    def largest(self) -> Interval:
        """The interval of the classifier with the largest AUROC."""
        return max(self.aurocs.values(), key=lambda interval: interval.value)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per classifier: classifier, auroc, low, high."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"classifier": name, "auroc": interval.value, "low": interval.low, "high": interval.high}
                for name, interval in self.aurocs.items()
            ]
        )

    def __str__(self) -> str:
        """Return the verdict and one line per classifier."""
        verdict = (
            "members and non-members differ without the model" if self.flagged else "no difference above the margin"
        )
        rows = f"{self.n_members:,} members, {self.n_nonmembers:,} non-members"
        lines = [f"blind baseline: {verdict} ({rows}; intervals at {self.level:.0%} together)"]
        return "\n".join([*lines, *(f"  {name:<10} AUROC {interval}" for name, interval in self.aurocs.items())])


def blind_baseline(
    x_members: ArrayLike, x_nonmembers: ArrayLike, *, seed: int = 0, level: float = 0.95, max_rows: int = 2000
) -> BlindBaseline:
    """Measure how well members and non-members are told apart by their inputs alone.

    Scores are out of fold (5 stratified folds) on standardized inputs: logistic regression, gradient boosting, and the log
    ratio of the distances to the nearest non-member and the nearest member of the other folds. If members are a random sample
    of the same rows, all AUROCs are 0.5 up to chance; a later date, another source or a filter raises them, and with them
    every membership attack. Training rows that are copies of each other raise the distance ratio, too. Because the folds
    share rows, intervals are 1.5 times as wide as for independent scores: on random splits of digits the AUROCs vary by 1.3
    to 1.5 times their standard error.

    Args:
        x_members: (n, ...) training rows, at least 20.
        x_nonmembers: (m, ...) other rows, at least 20.
        seed: seed of folds and of the rows that are used.
        level: simultaneous confidence level of the three intervals.
        max_rows: rows of each kind that are used, drawn at random.

    Raises:
        InputError: rows of different shapes, too few rows, values that are not finite.

    Cost: O(max_rows² d).

    Source: blind attacks: Das et al. 2024; Meeus et al. 2024; variance of cross-validation: Nadeau and Bengio 2003.
    """
    level = as_level(level)
    max_rows = as_count(max_rows, "max_rows", minimum=FEWEST_ROWS)
    seeds = seed_sequence(seed, ["rows", "folds"])
    groups = [
        as_tensor(x, name, dtype=torch.float64, squared=True).cpu()
        for x, name in ((x_members, "x_members"), (x_nonmembers, "x_nonmembers"))
    ]
    shapes = [tuple(x.shape) for x in groups]
    if min(len(s) for s in shapes) < 2 or shapes[0][1:] != shapes[1][1:] or min(s[0] for s in shapes) < FEWEST_ROWS:
        raise InputError(
            f"x_members of shape {shapes[0]} and x_nonmembers of shape {shapes[1]}",
            expected=f"(n, ...) and (m, ...), n and m at least {FEWEST_ROWS}, with the same shape of a row",
            hint="pass the inputs of the model for both kinds of rows",
        )
    rng = np.random.default_rng(seeds["rows"])
    samples = [x.flatten(1).numpy()[rng.permutation(len(x))[:max_rows]] for x in groups]
    flags = np.repeat([True, False], [len(x) for x in samples])
    scores = _out_of_fold_scores(np.concatenate(samples), flags, seeds["folds"])
    each = 1 - (1 - level) / len(scores)
    aurocs = {name: _widened(auroc_interval(values, flags, level=each)) for name, values in scores.items()}
    flagged = any(interval.value > MARGIN and interval.low > 0.5 for interval in aurocs.values())
    return BlindBaseline(aurocs, level, len(samples[0]), len(samples[1]), flagged)


def _widened(interval: Interval) -> Interval:
    """Return an interval of an out-of-fold AUROC, from that of independent scores."""
    low = interval.value - WIDENING * (interval.value - interval.low)
    high = interval.value + WIDENING * (interval.high - interval.value)
    return Interval(interval.value, max(low, 0.0), min(high, 1.0), interval.level)


def _out_of_fold_scores(x: np.ndarray, flags: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return out-of-fold scores (n,) of every classifier, larger = more like a member."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import NearestNeighbors

    random_state = seed % 2**32
    scores = {name: np.empty(len(x)) for name in ("logistic", "boosting", "nearest")}
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=random_state)
    for train, test in folds.split(x, flags):
        center, scale = x[train].mean(0), x[train].std(0)
        scale[scale == 0] = 1.0
        z_train, z_test = ((x[rows] - center) / scale for rows in (train, test))
        y = flags[train]
        # strong regularization and few trees: a weak classifier that generalizes is better than one that overfits
        linear = LogisticRegression(C=1 / math.sqrt(len(train)), max_iter=1000).fit(z_train, y)
        scores["logistic"][test] = linear.decision_function(z_test)
        trees = HistGradientBoostingClassifier(
            max_iter=50, max_leaf_nodes=8, learning_rate=0.1, random_state=random_state
        )
        scores["boosting"][test] = trees.fit(z_train, y).decision_function(z_test)
        distances = [
            NearestNeighbors(n_neighbors=1, algorithm="brute").fit(z_train[rows]).kneighbors(z_test)[0][:, 0]
            for rows in (~y, y)
        ]
        tiny = 1e-12 * math.sqrt(x.shape[1])
        scores["nearest"][test] = np.log(distances[0] + tiny) - np.log(distances[1] + tiny)
    return scores
