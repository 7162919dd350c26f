"""Ranked training rows with reasons and influential rows, and suspected wrong labels."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditKernel, cosine_blocks, kernel_entries
from kernelmem.auditing.schema import InfluentialRow, RowFinding, RowTable, SuspectedLabel, SuspectedLabels
from kernelmem.auditing.schema.answers import Reason
from kernelmem.auditing.scores.kernel_scores import KernelScores
from kernelmem.statistics import Interval

N_INFLUENTIAL = 3
N_SUSPECTED = 50
SUSPECTED_QUANTILE = 0.01  # of the leave-one-out margins of the control
RARE_QUANTILE = 0.05  # of the largest cosine with another row
BOUNDARY_SHARE = 0.25  # of the median margin of the control


def row_table(
    scores: KernelScores,
    train_outputs: Tensor,
    control_index: Tensor,
    *,
    memorization: np.ndarray | None = None,
    score: np.ndarray | None = None,
    standard_error: np.ndarray | None = None,
    predicted_without: np.ndarray | None = None,
    flagged: np.ndarray | None = None,
) -> RowTable:
    """Return the statistics of all rows.

    Without retraining the ranking score is −(t / sd(t) + f / sd(f)), for the leave-one-out margins t of the label regression
    and the margins f of the network at the labels; sd over training rows. Rows that the other rows contradict and that the
    network fits barely rank first; this agrees better with retraining than either margin. With retraining it is
    the negative mean margin of the label in models without the row, whose rank agreed best with the change of the margin.

    Args:
        scores: kernel scores of training rows and control rows.
        train_outputs: (n, C) outputs of the network.
        control_index: (u,) numbers of the test rows among the scores, in their order there.
        memorization: (n,) change of the probability of the label by training with the row; None without retraining.
        score: (n,) ranking score by retraining.
        standard_error: (n,) its standard error.
        predicted_without: (n,) class that most models without the row give.
        flagged: (n,) rows that are called memorized.
    """
    n, control = scores.n_train, scores.control
    loo_margin = scores.loo_margin[:n].numpy()
    if score is None:
        score = -(_scaled(loo_margin) + _scaled(_margins(train_outputs, scores.labels[:n])))
    missing = np.full(n, np.nan)
    return RowTable(
        label=scores.labels[:n].numpy().astype(np.int64),
        predicted_without=(
            scores.predictions[:n].argmax(1).numpy() if predicted_without is None else predicted_without
        ).astype(np.int64),
        score=score,
        standard_error=missing if standard_error is None else standard_error,
        loo_margin=loo_margin,
        label_memorization=scores.label_memorization[:n].numpy(),
        surrogate_difference=scores.surrogate_difference[:n].numpy(),
        network_correct=scores.network_correct[:n].numpy(),
        flagged=scores.flagged[:n].numpy() if flagged is None else flagged,
        memorization=missing if memorization is None else memorization,
        left_out_bits=missing,
        memorized_bits=missing,
        group=scores.near.group[:n],
        control_index=control_index[control - n].numpy().astype(np.int64),
        control_margin=scores.loo_margin[control].numpy(),
        control_flagged=scores.flagged[control].numpy(),
    )


def row_findings(
    table: RowTable,
    scores: KernelScores,
    kernel: AuditKernel,
    *,
    count: int,
    verified: dict[int, Interval],
    flipped: Tensor | None,
    redact: bool,
) -> tuple[RowFinding, ...]:
    """Return the ``count`` rows that rank first, flagged rows before the others, with reasons and influential rows.

    ``kernel`` (N, N) is that of the scores; ``verified`` holds measured effects by row; ``flipped`` (n,) is True for labels
    that are known to be wrong.
    """
    reasons = _Reasons(table, scores, kernel)
    findings = []
    for row in ranked_rows(table)[:count]:
        label = int(scores.labels[row])
        memorization, error = (
            None if np.isnan(values[row]) else float(values[row])
            for values in (table.memorization, table.standard_error)
        )
        findings.append(
            RowFinding(
                index=row,
                label=None if redact else label,
                predicted_without=None if redact else int(table.predicted_without[row]),
                score=float(table.score[row]),
                standard_error=error,
                flagged=bool(table.flagged[row]),
                reason=reasons.of(row),
                predicted_effect=memorization,
                verified_effect=verified.get(row),
                memorized_bits=None,
                flipped=None if flipped is None else bool(flipped[row]),
                influential=_influential(scores, kernel, row, redact=redact),
            )
        )
    return tuple(findings)


def ranked_rows(table: RowTable) -> list[int]:
    """Return all training rows, flagged rows first, each part by descending score; equal scores by row number."""
    return np.lexsort((np.arange(len(table.score)), -table.score, ~table.flagged)).tolist()


def suspected_labels(table: RowTable, flipped: Tensor | None, *, redact: bool) -> SuspectedLabels:
    """Return the rows whose labels the other rows contradict more strongly than 99 % of the labels of unseen test rows."""
    limit = _suspected_limit(table)
    suspected = table.loo_margin < limit
    rows = sorted(np.flatnonzero(suspected).tolist(), key=lambda row: (table.loo_margin[row], row))
    both = int((suspected & table.flagged).sum())
    n_flagged = int(table.flagged.sum())
    meaning = (
        f"{len(rows):,} labels are contradicted by the other rows more strongly than 99 % of the labels of unseen rows;"
        f" {both:,} of these rows are also called memorized, since the network gives their label."
        f" The other {n_flagged - both:,} memorized rows have plausible labels."
    )
    known = found = None
    if flipped is not None:
        known, found = int(flipped.sum()), int(flipped.numpy()[suspected].sum())
        meaning += f" Of {known:,} labels known to be wrong, {found:,} are suspected."
    return SuspectedLabels(
        n=len(rows),
        n_memorized=both,
        known_flips=known,
        known_flips_suspected=found,
        meaning=meaning,
        rows=tuple(
            SuspectedLabel(
                index=row,
                label=None if redact else int(table.label[row]),
                suggested=None if redact else int(table.predicted_without[row]),
                margin=float(table.loo_margin[row]),
                memorized=bool(table.flagged[row]),
            )
            for row in rows[:N_SUSPECTED]
        ),
    )


class _Reasons:
    """Rules that say what kind of row a training row is, from its leave-one-out margin and its nearest rows."""

    def __init__(self, table: RowTable, scores: KernelScores, kernel: AuditKernel) -> None:
        n = scores.n_train
        cosines = (block[: max(0, n - rows.start), :n] for rows, block in cosine_blocks(kernel))
        nearest = torch.cat([block.amax(1) for block in cosines]).numpy()
        self.rare = nearest <= np.quantile(nearest, RARE_QUANTILE)
        self.duplicate = np.bincount(table.group)[table.group] > 1
        self.mislabelled = table.loo_margin < _suspected_limit(table)
        width = BOUNDARY_SHARE * float(np.median(np.abs(table.control_margin)))
        self.boundary = np.abs(table.loo_margin) <= width

    def of(self, row: int) -> Reason:
        """Return the reason of one row: the first rule that applies."""
        if self.duplicate[row]:
            return "duplicate"
        if self.mislabelled[row]:
            return "mislabelled"
        if self.rare[row]:
            return "rare"
        return "boundary" if self.boundary[row] else "not classified"


def _influential(scores: KernelScores, kernel: AuditKernel, row: int, *, redact: bool) -> tuple[InfluentialRow, ...]:
    """Return the training rows, without those of its own group, with the largest influence on the margin of a row.

    The influence of row j is exact: the margin between the label of the row and the strongest other class with row j among
    the rows of the label regression, minus the margin without row j.
    """
    fitted, label = scores.near.representative, int(scores.labels[row])
    others = scores.predictions[row].clone()
    others[label] = -torch.inf
    change = scores.label_regression.influence(kernel_entries(kernel, torch.tensor([row]), fitted))[0]  # (R, C)
    influence = change[:, label] - change[:, int(others.argmax())]
    group = torch.from_numpy(scores.near.group)
    allowed = ((fitted < scores.n_train) & (group[fitted] != group[row])).nonzero()[:, 0]
    order = allowed[torch.argsort(influence[allowed].abs(), descending=True, stable=True)][:N_INFLUENTIAL]
    return tuple(
        InfluentialRow(int(fitted[k]), None if redact else int(scores.labels[fitted[k]]), float(influence[k]))
        for k in order
    )


def _suspected_limit(table: RowTable) -> float:
    return min(0.0, float(np.quantile(table.control_margin, SUSPECTED_QUANTILE)))


def _margins(outputs: Tensor, labels: Tensor) -> np.ndarray:
    others = outputs.to(torch.float64).scatter(1, labels[:, None], -torch.inf)
    return (outputs.gather(1, labels[:, None])[:, 0] - others.amax(1)).numpy()


def _scaled(values: np.ndarray) -> np.ndarray:
    """Return the values divided by their standard deviation, unless they are constant."""
    deviation = float(values.std())
    return values / deviation if deviation > 0 else values
