"""Gates of a membership attack: what tells members from unseen documents without their having been trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.memorization.membership.blind_baseline import MARGIN, N_FOLDS, WIDENING
from kernelmem.statistics import Interval, auroc_interval

LEVEL = 0.99  # of the intervals of gates, so that few random splits fail one by chance
LONGEST_NGRAM = 3


@dataclass(frozen=True)
class Gate:
    """AUROC of something that knows nothing of the training; 0.5 if members were drawn as unseen documents were.

    Attributes:
        name: "blind" (n-grams of the documents), "length" (number of tokens) or "reference" (loss of the reference alone).
        auroc: area under the ROC curve, with its 99 % interval.
        failed: the AUROC is more than 0.05 from 0.5, above it for "blind", and its interval excludes 0.5.
    """

    name: str
    auroc: Interval
    failed: bool

    def __str__(self) -> str:
        """Return name, verdict and AUROC in one line."""
        return f"{self.name:<10} AUROC {self.auroc}: {'FAILED' if self.failed else 'passed'}"


def score_gate(name: str, scores: ArrayLike, flags: np.ndarray) -> Gate:
    """Return the gate of a score (n,) that knows nothing of the training, in either direction."""
    interval = auroc_interval(scores, flags, level=LEVEL)
    off = abs(interval.value - 0.5) > MARGIN - 0.5
    return Gate(name, interval, off and not interval.low <= 0.5 <= interval.high)


def blind_gate(documents: Sequence[str] | Sequence[Tensor], flags: np.ndarray, seed: int) -> Gate:
    """Return the gate of a classifier that sees the documents but not the model.

    Logistic regression on tf-idf weights of 1-, 2- and 3-grams of characters (token ids, if there are no texts). Scores are
    out of fold: weights and classifier are fitted to four of five stratified folds of shuffled documents. The interval is
    1.5 times as wide as for independent scores, because the folds share documents (Nadeau and Bengio 2003).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    analyzer: Any = _ngrams  # the stubs name text only
    scores = np.empty(len(flags))
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed % 2**32)
    for train, test in folds.split(np.zeros(len(flags)), flags):
        classifier = make_pipeline(TfidfVectorizer(analyzer=analyzer), LogisticRegression(max_iter=1000))
        classifier.fit([documents[i] for i in train], flags[train])
        scores[test] = classifier.decision_function([documents[i] for i in test])
    interval = auroc_interval(scores, flags, level=LEVEL)
    low = max(0.0, interval.value - WIDENING * (interval.value - interval.low))
    high = min(1.0, interval.value + WIDENING * (interval.high - interval.value))
    widened = Interval(interval.value, low, high, LEVEL)
    return Gate("blind", widened, interval.value > MARGIN and low > 0.5)


def _ngrams(document: str | Tensor) -> list[tuple[object, ...]]:
    """Return the 1-, 2- and 3-grams of a document; a symbol for the start keeps an empty one from having none."""
    symbols = ["", *document] if isinstance(document, str) else [-1, *document.tolist()]
    return [tuple(symbols[i : i + n]) for n in range(1, LONGEST_NGRAM + 1) for i in range(len(symbols) - n + 1)]


def permutation_p(scores: np.ndarray, flags: np.ndarray) -> float:
    """Return the p-value of the AUROC under permuted membership, two-sided: Mann-Whitney's test, corrected for ties.

    Exact for at most 20 documents without ties, otherwise its normal limit. 1 for scores that are all equal.
    """
    from scipy.stats import mannwhitneyu  # slow to import

    if scores.min() == scores.max():
        return 1.0
    exact = len(scores) <= 20 and len(np.unique(scores)) == len(scores)
    p = mannwhitneyu(scores[flags], scores[~flags], method="exact" if exact else "asymptotic").pvalue
    return 1.0 if math.isnan(p) else float(p)
