"""Losses and errors of the members of an ensemble, from their outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.training.ensemble.members import EnsembleTask


@dataclass(frozen=True, eq=False)
class StepMetrics:
    """Metrics of all M members after ``step`` steps, float64 on the CPU; NaN where outputs are not finite.

    Attributes:
        step: number of completed steps.
        train_loss, train_error: (M,) means over a member's own training rows and labels. The error is the share of rows
            whose largest output is not at the label (for real targets: not at the largest target).
        test_loss, test_error: (M,) means over the test rows.
        logits: (M, m, C) test outputs, or None if they were not kept.
        train_predictions: predicted labels (n_k,) of the training rows of each member.
    """

    step: int
    train_loss: Tensor
    train_error: Tensor
    test_loss: Tensor
    test_error: Tensor
    logits: Tensor | None
    train_predictions: list[Tensor]

    def __repr__(self) -> str:
        return f"StepMetrics(step={self.step}, {len(self.train_loss)} members)"


def mean_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss, a scalar tensor, of the outputs f (n, C) of one network on n examples.

    It is the cross-entropy for a target of labels (n,), and sum_c (f_c - t_c)^2 / 2 for real targets t (n, C).
    """
    if target.ndim == 1:
        return F.cross_entropy(outputs, target)
    return 0.5 * (outputs - target).square().sum(1).mean()


def loss_and_error(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss (K,), error (K,) and predicted labels (K, n) of K networks with outputs (K, n, C) on n examples.

    ``target`` holds labels, (n,) or (K, n), or real targets, (n, C) or (K, n, C). The error is the share of wrong
    predictions. Sums are computed in float64; loss and error of a network are NaN if one of its outputs is not finite.
    """
    outputs64 = outputs.to(torch.float64)
    labels = target if not target.is_floating_point() else target.argmax(-1)
    if not target.is_floating_point():
        label_outputs = outputs64.gather(-1, labels.expand(outputs64.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        loss = (outputs64.logsumexp(-1) - label_outputs).mean(-1)
    else:
        loss = 0.5 * (outputs64 - target).square().sum(-1).mean(-1)
    predicted = outputs64.argmax(-1)
    error = (predicted != labels).to(torch.float64).mean(-1)
    finite = torch.isfinite(outputs64).flatten(1).all(1)
    # an infinite output would leave -inf or a plausible number in the loss of some rows
    nan_per_member = torch.full_like(loss, torch.nan)
    return torch.where(finite, loss, nan_per_member), torch.where(finite, error, nan_per_member), predicted


class MetricsLog:
    """Collects the metrics of an ensemble whose members are trained in several chunks, one after the other."""

    def __init__(self, task: EnsembleTask, *, keep_outputs: bool) -> None:
        self.task, self.keep_outputs = task, keep_outputs
        self._by_step: dict[int, StepMetrics] = {}

    def add(self, step: int, train: dict[int, Tensor], test: dict[int, Tensor]) -> None:
        """Compute and store the metrics of some members after ``step`` steps.

        ``train`` maps a member number k to its outputs (n_k, C) on its own n_k training rows, ``test`` maps it to its
        outputs (m, C) on the m test rows.
        """
        metrics = self._by_step.setdefault(step, self._empty_metrics(step))
        for member_indices in _group_by_length(train):
            target = torch.stack([self.task.targets[k] for k in member_indices])
            loss, error, predicted = loss_and_error(torch.stack([train[k] for k in member_indices]), target)
            metrics.train_loss[member_indices], metrics.train_error[member_indices] = loss.cpu(), error.cpu()
            for k, labels in zip(member_indices, predicted.cpu(), strict=True):
                metrics.train_predictions[k] = labels
        member_indices = sorted(test)
        outputs = torch.stack([test[k] for k in member_indices])
        loss, error, _ = loss_and_error(outputs, self.task.test_target)
        metrics.test_loss[member_indices], metrics.test_error[member_indices] = loss.cpu(), error.cpu()
        if metrics.logits is not None:
            metrics.logits[member_indices] = outputs.to("cpu", torch.float64)

    def collected(self) -> tuple[StepMetrics, ...]:
        """Return one :class:`StepMetrics` per evaluated step, in the order of the steps."""
        return tuple(self._by_step[step] for step in sorted(self._by_step))

    def _empty_metrics(self, step: int) -> StepMetrics:
        """Return metrics after ``step`` steps in which the values of all members are NaN; :meth:`add` replaces them."""
        M, m = len(self.task.members), len(self.task.x_test)
        nan_rows = torch.full((4, M), torch.nan, dtype=torch.float64)
        logits = torch.empty(M, m, self.task.C, dtype=torch.float64) if self.keep_outputs else None
        predictions = [torch.empty(0, dtype=torch.int64)] * M
        return StepMetrics(step, nan_rows[0], nan_rows[1], nan_rows[2], nan_rows[3], logits, predictions)


def _group_by_length(outputs: dict[int, Tensor]) -> list[list[int]]:
    """Return lists of member numbers, one list for each number of rows in ``outputs``, which maps members to (n_k, C)."""
    members_by_length: dict[int, list[int]] = {}
    for k, value in outputs.items():
        members_by_length.setdefault(len(value), []).append(k)
    return list(members_by_length.values())
