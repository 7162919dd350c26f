"""A small trainer for classifiers: enough to train the default network to the point where it fits every label."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.core.errors import NumericalError
from kernelmem.training.batching import batch_sizes, in_dtype, shuffled

__all__ = ["Training", "train_classifier"]


@dataclass(frozen=True)
class Training:
    """How a training run ended."""

    epochs: int
    steps: int
    loss: float  # mean cross-entropy of the last epoch
    train_accuracy: float
    recipe: str  # one line a person can read


def train_classifier(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> Training:
    """Minimize cross-entropy with Adam (Kingma and Ba 2015), in place, and leave the model in eval mode.

    The learning rate falls to zero along a half cosine, so that the run ends at rest. Batches are shuffled by a
    generator of their own: the same seed, versions and thread count give the same weights to the bit.

    Args:
        model: maps (b, ...) to (b, C); trained in place.
        x: (n, ...) rows; floating-point rows are brought to the dtype of the model.
        y: (n,) int64 labels.
        epochs: passes over the data.
        batch_size: rows a step; the last batch may be smaller, but a single row (of which BatchNorm has no variance)
            goes with the batch before it.
        learning_rate: of the first step.
        seed: of the batch order.
        progress: called with (epochs done, epochs in all, message).

    Raises:
        NumericalError: the loss is no longer finite. InputError: rows beyond the range of the model's dtype.
    """
    x = in_dtype(Rows(x, len(x)), model).tree
    steps = epochs * len(batch_sizes(len(x), batch_size))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model.train()
    loss = 0.0
    for epoch, batches in enumerate(shuffled(len(x), batch_size, epochs=epochs, seed=seed)):
        total = torch.zeros(())
        for index in batches:
            index = index.to(x.device)
            optimizer.zero_grad(set_to_none=True)
            batch_loss = F.cross_entropy(model(x[index]), y[index])
            batch_loss.backward()
            optimizer.step()
            schedule.step()
            total += batch_loss.detach().cpu() * len(index)
        loss = float(total) / len(x)
        if not loss < float("inf"):
            raise NumericalError(
                f"a loss of {loss} in epoch {epoch + 1} at learning rate {learning_rate:g}",
                expected="a finite loss",
                hint="lower the learning rate, or scale the inputs",
            )
        if progress is not None:
            progress(epoch + 1, epochs, f"loss {loss:.4f}")
    model.eval()
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).double().mean())
    recipe = f"Adam, learning rate {learning_rate:g} to 0 (cosine), batches of {batch_size}, {epochs} epochs"
    return Training(epochs, steps, loss, accuracy, recipe)
