"""Training of a classifier with Adam and a cosine schedule, e.g. until the default network fits every label."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kernelmem.core.batches import as_rows, check_outputs
from kernelmem.core.checks import as_count, as_labels, as_number, as_seed, as_tensor, check_model
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import Progress, as_progress
from kernelmem.training.batching import batch_sizes, in_dtype, shuffled
from kernelmem.training.loop import train_epochs
from kernelmem.training.losses import class_outputs


@dataclass(frozen=True, eq=False, repr=False)
class Training(Result):
    """Summary of a finished training run.

    Attributes:
        epochs, steps: numbers of completed epochs and optimizer steps.
        loss: mean cross-entropy over the last epoch, in nats.
        train_accuracy: share of training rows predicted as labeled, after training.
        recipe: description of optimizer, schedule and batches in one line.
    """

    epochs: int
    steps: int
    loss: float
    train_accuracy: float
    recipe: str

    def __str__(self) -> str:
        return (
            f"Training: {self.recipe}\n"
            f"  {self.steps:,} steps, loss in the last epoch {self.loss:.4g} nats, train accuracy {self.train_accuracy:.1%}"
        )


def train_classifier(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 100,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int,
    progress: Progress = None,
) -> Training:
    """Train a classifier, in place, with Adam (Kingma and Ba 2015) on the cross-entropy, and return a summary.

    The learning rate decreases to zero along a half cosine, and the model is left in eval mode. Batches are shuffled by a
    separate generator: the same seed, versions and thread count give the same weights to the bit.

    Args:
        model: maps (b, ...) to (b, C), or to one logit of two classes, (b, 1) or (b,); trained in place.
        x: (n, ...) rows; floating-point rows are converted to the dtype of the model.
        y: (n,) int64 labels.
        epochs: number of passes over the data.
        batch_size: number of rows per step; the last batch may be smaller, but a single row (whose variance BatchNorm cannot
            compute) joins the batch before it.
        lr: learning rate of the first step.
        seed: seed of the batch order.
        progress: called with (epochs done, all epochs).

    Raises:
        NumericalError: the loss is not finite. InputError: an argument is out of range, labels do not fit the rows, or rows
            exceed the range of the model's dtype.
    """
    check_model(model)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise InputError("a lazy model", expected="a model with weights", hint="call the model once on a batch")
    epochs, batch_size, lr = as_count(epochs, "epochs"), as_count(batch_size, "batch_size"), as_number(lr, "lr")
    seed, x = as_seed(seed), in_dtype(as_rows(as_tensor(x, "x")), model).tree
    y = as_labels(y, "y", n=len(x)).to(x.device)
    steps = epochs * len(batch_sizes(len(x), batch_size))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    report_progress = as_progress(progress, "training", "epoch")

    def batch_loss(positions: Tensor) -> Tensor:
        rows = positions.to(x.device)
        return F.cross_entropy(check_outputs(class_outputs(model(x[rows])), len(rows)), y[rows])

    model.train()
    loss = train_epochs(
        model,
        optimizer,
        shuffled(len(x), batch_size, epochs=epochs, seed=seed),
        batch_loss,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
        after_epoch=lambda completed_epochs: report_progress(completed_epochs, epochs),
    )
    model.eval()
    with torch.no_grad():
        accuracy = float((class_outputs(model(x)).argmax(1) == y).double().mean())
    recipe = f"Adam, learning rate {lr:g} to 0 (cosine), batches of {batch_size}, {epochs} epochs"
    return Training(epochs, steps, loss, accuracy, recipe)
