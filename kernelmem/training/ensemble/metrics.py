"""Losses and errors of the members of an ensemble, from their outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.training.ensemble.members import EnsembleTask

__all__ = ["Figures", "Snapshot", "figures", "mean_loss"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All members after ``step`` steps; float64 on the CPU.

    ``train_loss``, ``train_error``, ``test_loss``, ``test_error``: (M,), the mean over a member's own training rows with
    its own labels, or over the test rows; the error counts rows whose largest output is not at the label (not at the
    largest target). NaN where outputs are not finite. ``logits``: (M, m, C) test outputs, or None.
    ``train_predictions``: the predicted label (n_k,) of each own training row, a tensor for each member.
    """

    step: int
    train_loss: Tensor
    train_error: Tensor
    test_loss: Tensor
    test_error: Tensor
    logits: Tensor | None
    train_predictions: list[Tensor] | None


def mean_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """The scalar loss of outputs (n, C): mean cross-entropy for labels (n,), mean of sum_c (f_c - t_c)^2 / 2 for (n, C)."""
    if target.ndim == 1:
        return F.cross_entropy(outputs, target)
    return 0.5 * (outputs - target).square().sum(1).mean()


def figures(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (K,), error (K,) and predicted labels (K, n) of outputs (K, n, C); targets (n,), (K, n), (n, C) or (K, n, C).

    Computed in float64.
    """
    f = outputs.to(torch.float64)
    labels = target if not target.is_floating_point() else target.argmax(-1)
    if not target.is_floating_point():
        picked = f.gather(-1, labels.expand(f.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        loss = (f.logsumexp(-1) - picked).mean(-1)
    else:
        loss = 0.5 * (f - target).square().sum(-1).mean(-1)
    predicted = f.argmax(-1)
    error = (predicted != labels).to(torch.float64).mean(-1)
    finite = torch.isfinite(f).flatten(1).all(1)
    # an infinite output would leave -inf or a plausible number in the loss of some rows
    nan = torch.full_like(loss, torch.nan)
    return torch.where(finite, loss, nan), torch.where(finite, error, nan), predicted


class Figures:
    """Where the snapshots of an ensemble are put together, member by member."""

    def __init__(self, task: EnsembleTask, *, keep_outputs: bool) -> None:
        self.task, self.keep_outputs = task, keep_outputs
        self._found: dict[int, Snapshot] = {}

    def add(self, step: int, train: dict[int, Tensor], test: dict[int, Tensor]) -> None:
        """Take the outputs of some members on their own training rows and on the test rows after ``step`` steps."""
        snapshot = self._found.setdefault(step, self._empty(step))
        for members in _of_equal_length(train):
            target = torch.stack([self.task.targets[k] for k in members])
            loss, error, predicted = figures(torch.stack([train[k] for k in members]), target)
            snapshot.train_loss[members], snapshot.train_error[members] = loss.cpu(), error.cpu()
            assert snapshot.train_predictions is not None
            for k, labels in zip(members, predicted.cpu(), strict=True):
                snapshot.train_predictions[k] = labels
        members = sorted(test)
        outputs = torch.stack([test[k] for k in members])
        loss, error, _ = figures(outputs, self.task.test_target)
        snapshot.test_loss[members], snapshot.test_error[members] = loss.cpu(), error.cpu()
        if snapshot.logits is not None:
            snapshot.logits[members] = outputs.to("cpu", torch.float64)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """What was found, in the order of the steps."""
        return tuple(self._found[step] for step in sorted(self._found))

    def _empty(self, step: int) -> Snapshot:
        M, m = len(self.task.members), len(self.task.x_test)
        empty = torch.full((4, M), torch.nan, dtype=torch.float64)
        logits = torch.empty(M, m, self.task.C, dtype=torch.float64) if self.keep_outputs else None
        return Snapshot(step, empty[0], empty[1], empty[2], empty[3], logits, [torch.empty(0, dtype=torch.int64)] * M)


def _of_equal_length(outputs: dict[int, Tensor]) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for k, value in outputs.items():
        found.setdefault(len(value), []).append(k)
    return list(found.values())
