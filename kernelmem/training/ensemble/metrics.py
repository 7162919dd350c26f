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
    """Return the loss of outputs (n, C): mean cross-entropy for labels (n,), mean of sum_c (f_c - t_c)^2 / 2 for (n, C)."""
    if target.ndim == 1:
        return F.cross_entropy(outputs, target)
    return 0.5 * (outputs - target).square().sum(1).mean()


def loss_and_error(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss (K,), error (K,) and predicted labels (K, n) of outputs (K, n, C), computed in float64.

    Targets are (n,), (K, n), (n, C) or (K, n, C).
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
    """Collect the metrics of an ensemble, whose members arrive chunk by chunk."""

    def __init__(self, task: EnsembleTask, *, keep_outputs: bool) -> None:
        self.task, self.keep_outputs = task, keep_outputs
        self._by_step: dict[int, StepMetrics] = {}

    def add(self, step: int, train: dict[int, Tensor], test: dict[int, Tensor]) -> None:
        """Add the outputs of some members on their own training rows and on the test rows after ``step`` steps."""
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
        """Return the metrics in the order of the steps."""
        return tuple(self._by_step[step] for step in sorted(self._by_step))

    def _empty_metrics(self, step: int) -> StepMetrics:
        """Return metrics with NaN for all members, to be filled chunk by chunk."""
        M, m = len(self.task.members), len(self.task.x_test)
        nan_rows = torch.full((4, M), torch.nan, dtype=torch.float64)
        logits = torch.empty(M, m, self.task.C, dtype=torch.float64) if self.keep_outputs else None
        predictions = [torch.empty(0, dtype=torch.int64)] * M
        return StepMetrics(step, nan_rows[0], nan_rows[1], nan_rows[2], nan_rows[3], logits, predictions)


def _group_by_length(outputs: dict[int, Tensor]) -> list[list[int]]:
    """Return the members grouped by their number of rows."""
    members_by_length: dict[int, list[int]] = {}
    for k, value in outputs.items():
        members_by_length.setdefault(len(value), []).append(k)
    return list(members_by_length.values())
