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
    done: int = 0,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> float:
    """Minimize the losses of the batches in order; return the mean loss per row of the last epoch.

    Args:
        model: its parameters' gradients are clipped.
        optimizer: takes the steps.
        epochs: for each epoch its batches, as positions of rows.
        batch_loss: maps positions to the scalar loss of these rows, with gradients.
        step: replaces ``optimizer.step()``; called with the positions once the gradients are in ``.grad``.
        scheduler: stepped after every optimizer step.
        clip: largest norm of the gradient; None: no clipping.
        done: number of steps to skip, already taken by an interrupted run.
        after_epoch: called with the number of completed epochs.

    Raises:
        NumericalError: a loss that is not finite; the step with it is not taken.
    """
    t, mean = 0, math.nan
    for epoch, batches in enumerate(epochs, start=1):
        total, rows = torch.zeros(()), 0
        for index in batches:
            t += 1
            if t <= done:
                continue
            optimizer.zero_grad()
            loss = batch_loss(index)
            loss.backward()
            value = loss.detach().cpu()
            if not math.isfinite(float(value)):
                raise NumericalError(
                    f"a loss of {float(value)} in step {t - 1}, epoch {epoch}",
                    expected="a finite loss",
                    hint="lower the learning rate, clip the gradient, or scale the inputs",
                )
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if step is None:
                optimizer.step()
            else:
                step(index)
            if scheduler is not None:
                scheduler.step()
            total += value * len(index)
            rows += len(index)
        if rows:
            mean = float(total) / rows
            after_epoch(epoch)
    return mean
