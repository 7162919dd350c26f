"""Confident learning: label issues from out-of-sample probabilities, and label-quality scores."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.score import Score

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "Northcutt, Jiang, Chuang 2021"
SMALLEST = 1e-6  # label probability in the confidence-weighted entropy
ROUNDING = 1e-9  # below which probabilities count as equal to a threshold
PRINTED_PAIRS = 5


@dataclass(frozen=True, eq=False, repr=False)
class LabelIssues(Result):
    """Rows whose out-of-sample probabilities are confident of another class than the given label.

    Attributes:
        labels: (n,) int64 given labels.
        probabilities: (n, C) float64 out-of-sample class probabilities.
        thresholds: (C,) mean probability of class j over the rows labeled j; infinite for a class without rows.
        suggested: (n,) int64 most probable class j among those with p_j >= thresholds[j]; -1 if there is none.
    """

    labels: Tensor
    probabilities: Tensor
    thresholds: Tensor
    suggested: Tensor

    shapes: ClassVar = {"labels": "n", "probabilities": "nC", "thresholds": "C", "suggested": "n"}

    @property
    def is_issue(self) -> Tensor:
        """True for rows with a confident class that is not the given label, (n,): the off-diagonal of the confident joint."""
        return (self.suggested >= 0) & (self.suggested != self.labels)

    @property
    def confident_joint(self) -> Tensor:
        """Number of rows labeled i that are confidently of class j, (C, C) int64."""
        C = len(self.thresholds)
        rows = self.suggested >= 0
        return torch.bincount(self.labels[rows] * C + self.suggested[rows], minlength=C * C).reshape(C, C)

    @property
    def joint(self) -> Tensor:
        """Estimated joint distribution of given label i and true class j, (C, C): the confident joint, rows rescaled.

        Row i sums to the share of rows labeled i; a class without confident rows counts as correct.
        """
        counts = self.confident_joint.to(torch.float64)
        empty = counts.sum(1) == 0
        counts[empty, empty] = 1.0
        share = torch.bincount(self.labels, minlength=len(counts)).to(torch.float64) / len(self.labels)
        return counts / counts.sum(1, keepdim=True) * share[:, None]

    @property
    def self_confidence(self) -> Score:
        """The score 1 − p_y."""
        return self._score(
            "1 − self confidence", 1 - self._label_probability(), "1 − out-of-sample probability of the label"
        )

    @property
    def normalized_margin(self) -> Score:
        """The score (1 − p_y + max_{k≠y} p_k) / 2 in 0..1; one half if the label and another class are equally probable."""
        others = self.probabilities.scatter(1, self.labels[:, None], -torch.inf).amax(1)
        values = (1 - self._label_probability() + others) / 2
        return self._score("1 − normalized margin", values, "(1 − p_y + largest probability of another class) / 2")

    @property
    def confidence_weighted_entropy(self) -> Score:
        """The score H / (p_y log C), H the entropy of p; a probability p_y below 1e-6 counts as 1e-6."""
        p = self.probabilities
        entropy = -torch.special.xlogy(p, p).sum(1) / math.log(p.shape[1])
        return self._score(
            "confidence-weighted entropy",
            entropy / self._label_probability().clamp_min(SMALLEST),
            "entropy of the probabilities, relative to the largest possible, over the label's probability",
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per example: label, suggested class, is_issue, and the three label-quality scores."""
        import pandas as pd

        columns = {"label": self.labels, "suggested": self.suggested, "is_issue": self.is_issue}
        for name in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            columns[name] = getattr(self, name).values
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()}).rename_axis("example")

    def __str__(self) -> str:
        """Return the number of issues, the most frequent pairs of classes, and the most suspicious rows."""
        n, n_issues = len(self.labels), int(self.is_issue.sum())
        C = len(self.thresholds)
        pairs, counts = (self.labels * C + self.suggested)[self.is_issue].unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True)[:PRINTED_PAIRS].tolist()
        frequent = ", ".join(f"{int(pairs[i]) // C} -> {int(pairs[i]) % C} ({int(counts[i])})" for i in order)
        return "\n".join(
            [
                f"label issues of {n:,} rows, {C:,} classes: {n_issues:,} ({n_issues / n:.1%}) are confidently of another class",
                f"  most frequent (label -> class): {frequent or 'none'}",
                f"  most suspicious rows: {[i for i, _ in self.normalized_margin.top(8)]}",
                "  a row below the thresholds of all classes is not counted; no issue does not mean that there is none",
            ]
        )

    def _label_probability(self) -> Tensor:
        return self.probabilities.gather(1, self.labels[:, None])[:, 0]

    def _score(self, name: str, values: Tensor, meaning: str) -> Score:
        return Score(values, None, name, "model", 1, meaning, SOURCE)


def find_label_issues(probabilities: ArrayLike, labels: ArrayLike) -> LabelIssues:
    """Find rows whose out-of-sample probabilities contradict the given label (confident learning).

    With t_j the mean of p_j over the rows labeled j, a row counts as of class j if p_j >= t_j, and of the most probable such
    class if there are several.

    Args:
        probabilities: (n, C) out-of-sample probabilities, e.g. of :func:`to_pred_probs`; rows sum to 1.
        labels: (n,) class indices.

    Raises:
        InputError: negative probabilities or rows that do not sum to 1, labels out of range.

    Cost: O(n C) time and memory; ``confident_joint`` and ``joint`` are C x C.

    Source: Northcutt, Jiang, Chuang 2021; label-quality scores: Kuan and Mueller 2022.

    >>> issues = find_label_issues([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.9, 0.1]], [0, 0, 1, 1])
    >>> issues.is_issue.tolist(), issues.confident_joint.tolist()
    ([False, False, False, True], [[1, 0], [1, 1]])
    """
    p = as_tensor(probabilities, "probabilities", dtype=torch.float64).cpu()
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] < 2:
        raise InputError(
            f"probabilities of shape {tuple(p.shape)}",
            expected="(n, C), one row per example and two classes or more",
            hint="for the probability p of class 1 pass numpy.stack([1 - p, p], 1)",
        )
    sums = p.sum(1)
    if float(p.min()) < 0 or float((sums - 1).abs().max()) > 1e-4:
        raise InputError(
            f"probabilities between {float(p.min()):.3g} and {float(p.max()):.3g} whose rows sum to {float(sums.min()):.5g}"
            f" to {float(sums.max()):.5g}",
            expected="non-negative rows that sum to 1",
            hint="pass km.to_pred_probs(fit), or the softmax of logits",
        )
    p = p / sums[:, None]
    y = as_labels(labels, "labels", n=len(p), n_classes=p.shape[1]).cpu().clone()
    counts = torch.bincount(y, minlength=p.shape[1])
    totals = torch.zeros(p.shape[1], dtype=torch.float64).index_add_(0, y, p.gather(1, y[:, None])[:, 0])
    thresholds = torch.where(counts > 0, totals / counts.clamp_min(1), torch.inf)
    confident = torch.where(p >= thresholds - ROUNDING, p, -1.0)
    largest, suggested = confident.max(1)
    # among equally probable classes the given label counts, so that a tie is not an issue
    label_is_largest = confident.gather(1, y[:, None])[:, 0] == largest
    suggested = torch.where(largest < 0, -1, torch.where(label_is_largest, y, suggested))
    return LabelIssues(y, p, thresholds, suggested)
