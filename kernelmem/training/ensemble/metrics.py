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
    f = outputs.to(torch.float64)
    labels = target if not target.is_floating_point() else target.argmax(-1)
    if not target.is_floating_point():
        label_outputs = f.gather(-1, labels.expand(f.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        loss = (f.logsumexp(-1) - label_outputs).mean(-1)
    else:
        loss = 0.5 * (f - target).square().sum(-1).mean(-1)
    predicted = f.argmax(-1)
    error = (predicted != labels).to(torch.float64).mean(-1)
    finite = torch.isfinite(f).flatten(1).all(1)
    # an infinite output would leave -inf or a plausible number in the loss of some rows
    nan = torch.full_like(loss, torch.nan)
    return torch.where(finite, loss, nan), torch.where(finite, error, nan), predicted


class MetricsLog:
    """Collect the metrics of an ensemble, whose members arrive chunk by chunk."""

    def __init__(self, task: EnsembleTask, *, keep_outputs: bool) -> None:
        self.task, self.keep_outputs = task, keep_outputs
        self._by_step: dict[int, StepMetrics] = {}

    def add(self, step: int, train: dict[int, Tensor], test: dict[int, Tensor]) -> None:
        """Add the outputs of some members on their own training rows and on the test rows after ``step`` steps."""
        metrics = self._by_step.setdefault(step, self._empty(step))
        for members in _by_length(train):
            target = torch.stack([self.task.targets[k] for k in members])
            loss, error, predicted = loss_and_error(torch.stack([train[k] for k in members]), target)
            metrics.train_loss[members], metrics.train_error[members] = loss.cpu(), error.cpu()
            for k, labels in zip(members, predicted.cpu(), strict=True):
                metrics.train_predictions[k] = labels
        members = sorted(test)
        outputs = torch.stack([test[k] for k in members])
        loss, error, _ = loss_and_error(outputs, self.task.test_target)
        metrics.test_loss[members], metrics.test_error[members] = loss.cpu(), error.cpu()
        if metrics.logits is not None:
            metrics.logits[members] = outputs.to("cpu", torch.float64)

    def collected(self) -> tuple[StepMetrics, ...]:
        """Return the metrics in the order of the steps."""
        return tuple(self._by_step[step] for step in sorted(self._by_step))

    def _empty(self, step: int) -> StepMetrics:
        M, m = len(self.task.members), len(self.task.x_test)
        nan = torch.full((4, M), torch.nan, dtype=torch.float64)
        logits = torch.empty(M, m, self.task.C, dtype=torch.float64) if self.keep_outputs else None
        return StepMetrics(step, nan[0], nan[1], nan[2], nan[3], logits, [torch.empty(0, dtype=torch.int64)] * M)


def _by_length(outputs: dict[int, Tensor]) -> list[list[int]]:
    """Return the members grouped by their number of rows."""
    members: dict[int, list[int]] = {}
    for k, value in outputs.items():
        members.setdefault(len(value), []).append(k)
    return list(members.values())
