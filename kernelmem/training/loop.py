"""Epoch loop shared by the trainers: forward, backward, clipping, optimizer step, schedule."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from kernelmem.core.errors import NumericalError


def train_epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: Iterable[tuple[Tensor, ...]],
    batch_loss: Callable[[Tensor], Tensor],
    *,
    step: Callable[[Tensor], object] | None = None,
    scheduler: LRScheduler | None = None,
    clip: float | None = None,
    completed_steps: int = 0,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> float:
    """Train ``model`` on the batches in order, and return the mean loss per row of the last epoch.

    The result is NaN if no step was taken.

    Args:
        model: the model whose parameters are trained and whose gradients are clipped.
        optimizer: optimizer of the model's parameters.
        epochs: the batches of each epoch, as positions of rows.
        batch_loss: maps positions to the scalar loss of these rows, with gradients.
        step: function called with the positions instead of ``optimizer.step()``, once gradients are in ``.grad``.
        scheduler: learning-rate scheduler, stepped after every optimizer step.
        clip: gradients with a larger norm are scaled down to it; None: no clipping.
        completed_steps: number of steps to skip because an interrupted run has already taken them.
        after_epoch: function called with the number of completed epochs.

    Raises:
        NumericalError: the loss is not finite; its step is not taken.
    """
    step_number, mean_loss = 0, math.nan
    for epoch, batches in enumerate(epochs, start=1):
        loss_sum, n_rows = 0.0, 0
        for positions in batches:
            step_number += 1
            if step_number <= completed_steps:
                continue
            optimizer.zero_grad()
            loss = batch_loss(positions)
            loss.backward()
            loss_value = loss.detach().cpu()
            if not math.isfinite(float(loss_value)):
                raise NumericalError(
                    f"a loss of {float(loss_value)} in step {step_number - 1}, epoch {epoch}",
                    expected="a finite loss",
                    hint="lower the learning rate, clip the gradient, or scale the inputs",
                )
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if step is None:
                optimizer.step()
            else:
                step(positions)
            if scheduler is not None:
                scheduler.step()
            loss_sum += float(loss_value) * len(positions)
            n_rows += len(positions)
        if n_rows:
            mean_loss = loss_sum / n_rows
            after_epoch(epoch)
    return mean_loss
