"""Table of memorization scores of the same rows: their values, their rank agreement, their agreement with retraining."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, check_instance, describe
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.kernel_machines import LeaveOneOut
from kernelmem.memorization import training_dynamics
from kernelmem.memorization.leave_one_out import (
    LabelIssues,
    LabelNoiseEstimate,
    leave_one_out_margin,
    leave_one_out_memorization,
)
from kernelmem.memorization.retraining import Retraining, feldman_zhang
from kernelmem.memorization.score import Score, check_same_examples
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.memorization.training_dynamics import TrainingHistory
from kernelmem.statistics import attenuation_corrected, spearman, spearman_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Source = Score | TrainingHistory | LeaveOneOut | LabelNoiseEstimate | LabelIssues
"""What :func:`memorization_scores` takes scores from."""

OF_CLASSES = ("area_under_margin", "forgetting_events", "confidence", "variability", "correctness", "learned_at")
MAX_SCORES = 100
MIN_ROWS = 4  # of an interval of a rank correlation


@dataclass(frozen=True, eq=False, repr=False)
class ScoreTable(Result):
    """Scores of n rows by k methods; larger = more memorized in every column.

    Attributes:
        names: names of the k scores.
        levels: "model" or "algorithm" of each score: what it speaks of.
        values: (n, k) float64.
        standard_errors: (n, k) float64; 0 where a score is exact for its inputs.
        correlation: (k, k) Spearman correlation of the scores; 0 with a score that is the same for all rows, 1 with itself.
        reference: (n,) values that the scores are compared with, or None.
        reference_name: name of the reference, "" without one.
        reliability: reliability of the reference in (0, 1], or None if it is not known.
        agreement: (k, 3) Spearman correlation with the reference, and its 95 % interval; (0, 3) without a reference.
    """

    names: tuple[str, ...]
    levels: tuple[str, ...]
    values: Tensor
    standard_errors: Tensor
    correlation: Tensor
    reference: Tensor | None
    reference_name: str
    reliability: float | None
    agreement: Tensor

    shapes: ClassVar = {"values": "nk", "standard_errors": "nk", "correlation": "kk", "names": "k", "levels": "k"}

    @property
    def ceiling(self) -> float | None:
        """Largest correlation with the reference that its noise admits, √reliability; None if it is not known."""
        return None if self.reliability is None else math.sqrt(self.reliability)

    @property
    def corrected(self) -> Tensor | None:
        """Agreement divided by the ceiling, (k,): the correlation with a reference without noise; can exceed 1 by chance."""
        if self.reliability is None:
            return None
        values = [attenuation_corrected(float(r), self.reliability) for r in self.agreement[:, 0]]
        return torch.tensor(values, dtype=torch.float64)

    @property
    def mean_rank(self) -> Tensor:
        """Mean over the scores of the share of rows with a smaller value, (n,), ties counted half; larger = more memorized."""
        from scipy.stats import rankdata  # slow to import

        ranks = rankdata(self.values.numpy(), axis=0) - 0.5
        return torch.from_numpy(ranks / len(ranks)).mean(1)

    def score(self, name: str) -> Tensor:
        """Return the values (n,) of one score.

        Raises:
            InputError: there is no score of this name.
        """
        if not isinstance(name, str) or name not in self.names:
            raise InputError(
                f"name={describe(name)}", expected=f"one of {', '.join(self.names)}", hint="see table.names"
            )
        return self.values[:, self.names.index(name)]

    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """Return the n rows with the largest mean rank, largest first: (row, mean rank)."""
        n, ranks = as_count(n, "n"), self.mean_rank
        return [(int(i), float(ranks[i])) for i in ranks.argsort(descending=True, stable=True)[:n]]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per example and one column per score, then the reference if there is one."""
        import pandas as pd  # slow to import

        columns = {name: self.values[:, i].numpy() for i, name in enumerate(self.names)}
        if self.reference is not None:
            columns[self.reference_name] = self.reference.numpy()
        return pd.DataFrame(columns).rename_axis("example")

    def plot(self) -> "Figure":
        """Return a figure of the rank correlation of all pairs of scores, and of each score with the reference."""
        from kernelmem.plotting.memorization import score_table_figure  # matplotlib is slow to import

        return score_table_figure(
            self.names,
            self.correlation,
            agreement=self.agreement if self.reference is not None else None,
            reference_name=self.reference_name,
            ceiling=self.ceiling,
        )

    def __str__(self) -> str:
        """Return one line per score, with its agreement with the reference, and the rows with the largest mean rank."""
        n, k = self.values.shape
        width = max(len(name) for name in self.names)
        header = f"{'score':<{width}}  level      mean correlation with the others"
        if self.reference is not None:
            header += "  with reference (95 % interval)" + ("  corrected" if self.reliability is not None else "")
        lines = [f"memorization scores of {n:,} rows, {k} scores; larger = more memorized", f"  {header}"]
        corrected = self.corrected
        for i, name in enumerate(self.names):
            others = [j for j in range(k) if j != i]
            mean = f"{float(self.correlation[i, others].mean()):.2f}" if others else "-"
            line = f"{name:<{width}}  {self.levels[i]:<9}  {mean:>32}"
            if self.reference is not None:
                r, low, high = self.agreement[i].tolist()
                line += f"  {f'{r:.2f} ({low:.2f} to {high:.2f})':>30}"
                line += "" if corrected is None else f"  {float(corrected[i]):>9.2f}"
            lines.append(f"  {line}")
        if self.reference is not None:
            ceiling = "reliability not known" if self.ceiling is None else f"ceiling {self.ceiling:.2f}"
            lines.append(f"  reference: {self.reference_name} ({ceiling})")
        lines.append(f"  largest mean rank: rows {', '.join(str(i) for i, _ in self.top(8))}")
        return "\n".join(lines)


def memorization_scores(
    *sources: Source,
    reference: Score | Retraining | ShadowEnsemble | None = None,
    reliability: float | None = None,
) -> ScoreTable:
    """Collect the scores of the same n rows, compare their ranks, and compare them with retraining if it was done.

    Args:
        sources: a :class:`TrainingHistory` (all scores that its contents allow), a result of ``km.leave_one_out``
            (memorization and margin), of ``km.estimate_label_noise`` (suspicion), of ``km.find_label_issues`` (three
            label-quality scores), or single scores, such as those of self-influence or prediction depth.
        reference: what the scores are compared with: memorization by retraining, as a result of ``feldman_zhang`` or as the
            shadow ensemble itself (then with accuracy as statistic), or any score.
        reliability: reliability of a reference that is a score; that of retraining is computed from split halves. It gives
            the ceiling and the corrected agreement.

    Raises:
        InputError: no source, another type, rows that differ in number or in their labels, values that are not finite.

    Cost: O(n k log n + k² n) for k scores, and that of the scores.

    Source: Spearman 1904 (rank correlation, correction for attenuation).

    >>> import torch
    >>> history = TrainingHistory.from_arrays(torch.eye(4)[None].repeat(3, 1, 1), [0, 1, 0, 3])
    >>> memorization_scores(history).top(1)[0][0]
    2
    """
    if not sources:
        raise InputError(
            "no source",
            expected="at least one: a TrainingHistory, a leave-one-out fit, a Score",
            hint="pass km.training_history(run, model, x, y) for a recorded run, or km.leave_one_out(kernel, y, ridge)",
        )
    scores = [score for source in sources for score in _scores_of(source)]
    _check_same_labels([*sources, reference])
    reference, reliability = _reference(reference, reliability)
    n = check_same_examples([*scores, *([] if reference is None else [reference])])
    if len(scores) > MAX_SCORES or not scores or n < MIN_ROWS:
        raise InputError(
            f"{len(scores)} scores of {n} rows",
            expected=f"1 to {MAX_SCORES} scores of {MIN_ROWS} rows or more",
            hint="pass a TrainingHistory, a leave-one-out fit or scores of the training rows",
        )
    for score in [*scores, *([] if reference is None else [reference])]:
        if not bool(score.values.isfinite().all()):
            raise InputError(
                f"score {score.name} with values that are not finite",
                expected="one finite number per row",
                hint="leave this score out, or compute it on rows where it is defined",
            )
    values = torch.stack([score.values for score in scores], 1)
    errors = [torch.zeros(n, dtype=torch.float64) if s.standard_error is None else s.standard_error for s in scores]
    k = len(scores)
    correlation = torch.eye(k, dtype=torch.float64)
    for i in range(k):
        for j in range(i):
            correlation[i, j] = correlation[j, i] = _correlation(values[:, i], values[:, j])
    agreement = torch.zeros(0 if reference is None else k, 3, dtype=torch.float64)
    if reference is not None:
        for i in range(k):
            agreement[i] = _agreement(values[:, i], reference.values)
    return ScoreTable(
        names=tuple(_distinct([score.name for score in scores])),
        levels=tuple(score.level for score in scores),
        values=values,
        standard_errors=torch.stack(errors, 1),
        correlation=correlation,
        reference=None if reference is None else reference.values,
        reference_name="" if reference is None else reference.name,
        reliability=reliability,
        agreement=agreement,
    )


def _check_same_labels(sources: Sequence[object]) -> None:
    """Check that all sources that know the labels of their rows have the same ones.

    Raises:
        InputError: the labels of two sources differ: other labels, or other rows, or the rows in another order.
    """
    known = [(s, labels) for s in sources if isinstance(labels := getattr(s, "labels", None), Tensor)]
    for source, labels in known[1:]:
        first, first_labels = known[0]
        if len(labels) == len(first_labels) and not torch.equal(labels.cpu(), first_labels.cpu()):
            n_other = (
                int((labels.cpu() != first_labels.cpu()).sum()) if labels.shape == first_labels.shape else len(labels)
            )
            raise InputError(
                f"{type(first).__name__} and {type(source).__name__} with {n_other} different labels",
                expected="the same rows in the same order, with the labels that the models were trained on",
                hint="pass the given (possibly wrong) labels of all training rows to every function",
            )


def _reference(
    reference: Score | Retraining | ShadowEnsemble | None, reliability: float | None
) -> tuple[Score | None, float | None]:
    """Return the score to compare with and its reliability.

    Raises:
        InputError: another type, a reliability outside (0, 1] or of a reference that has its own.
    """
    if reference is not None:
        check_instance(reference, "reference", (Score, Retraining, ShadowEnsemble))
    if isinstance(reference, ShadowEnsemble):
        reference = feldman_zhang(reference)
    if reliability is not None:
        reliability = as_number(reliability, "reliability", maximum=1.0, exclusive=True)
        if not isinstance(reference, Score):
            raise InputError(
                "reliability without a score as reference",
                expected="reliability= only with reference=, a Score",
                hint="leave reliability out: that of retraining is computed",
            )
    if isinstance(reference, Retraining):
        return reference.memorization, reference.reliability() or None
    return reference, reliability


def _scores_of(source: object) -> Iterator[Score]:
    """Yield the scores of one source.

    Raises:
        InputError: it is not a source.
    """
    if isinstance(source, Score):
        yield source
    elif isinstance(source, TrainingHistory):
        yield from _scores_of_history(source)
    elif isinstance(source, LeaveOneOut):
        yield leave_one_out_memorization(source)
        yield leave_one_out_margin(source)
    elif isinstance(source, LabelNoiseEstimate):
        yield source.suspicion
    elif isinstance(source, LabelIssues):
        yield from (source.self_confidence, source.normalized_margin, source.confidence_weighted_entropy)
    else:
        raise InputError(
            f"source {describe(source)} of type {type(source).__name__}",
            expected="a Score, a TrainingHistory, or a result of leave_one_out, estimate_label_noise or find_label_issues",
            hint="pass the sources one by one: memorization_scores(history, fit)"
            if isinstance(source, list | tuple)
            else "pass km.training_history(run, model, x, y) for a recorded run",
        )


def _scores_of_history(history: TrainingHistory) -> Iterator[Score]:
    """Yield all scores that the contents of a history allow; variability and VoG need two checkpoints."""
    if not history.labels.is_floating_point():
        for name in OF_CLASSES:
            if name != "variability" or history.n_checkpoints > 1:
                yield getattr(training_dynamics, name)(history)
    yield training_dynamics.cumulative_loss(history)
    if int(history.steps[-1]) > 0:  # early scores are not defined at the initial weights
        yield training_dynamics.el2n(history)
        if history.gradient_norms is not None:
            yield training_dynamics.gradient_norm(history)
    if history.gradient_norms is not None and history.learning_rates is not None:
        yield training_dynamics.tracin(history)
    if history.input_gradient_variance is not None and history.n_checkpoints > 1:
        yield training_dynamics.variance_of_gradients(history)


def _correlation(a: Tensor, b: Tensor) -> float:
    return 0.0 if _is_constant(a) or _is_constant(b) else spearman(a, b)


def _agreement(values: Tensor, reference: Tensor) -> Tensor:
    """Return the rank correlation and its interval, (3,); 0 in (−1, 1) if one of them is the same for all rows."""
    if _is_constant(values) or _is_constant(reference):
        return torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)
    interval = spearman_interval(values, reference)
    return torch.tensor([interval.value, interval.low, interval.high], dtype=torch.float64)


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _distinct(names: list[str]) -> list[str]:
    """Return the names, with " (2)", " (3)", ... after those that were there before."""
    result: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in result:
            count += 1
            candidate = f"{name} ({count})"
        result.append(candidate)
    return result
