"""Networks of the experiments: MLPs on given labels, trained together, and the labels with known noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelmem.training import EnsembleOptions, LabeledData, Member, Recipe, mlp, train_mlps

__all__ = ["Networks", "train_networks"]

LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Networks:
    """M trained networks with their errors, (M,) float64, on the labels that they were trained on and on clean test labels.

    Attributes:
        train_loss, test_loss: mean cross-entropy in nats.
    """

    models: list[nn.Module]
    train_loss: Tensor
    train_error: Tensor
    test_error: Tensor
    test_loss: Tensor


def train_networks(
    data: LabeledData, labels: Sequence[Tensor], widths: Sequence[int | tuple[int, ...]], *, steps: int, seed: int
) -> Networks:
    """Train one ReLU MLP per pair of labels (n,) and width on the training rows of ``data``, all from the same seed."""
    rows = torch.arange(len(data.y_train))
    members = [Member(width, rows, y, seed % 2**31, 0) for y, width in zip(labels, widths, strict=True)]
    options = EnsembleOptions(keep_parameters=True, n_classes=data.n_classes, diverged="raise")
    ensemble = train_mlps(
        members,
        data.x_train,
        test=(data.x_test, data.y_test),
        recipe=Recipe(lr=LEARNING_RATE, steps=steps),
        options=options,
        progress=False,
    )
    models = []
    for width, state in zip(widths, ensemble.parameters or [], strict=True):
        model = mlp(data.x_train[0].numel(), width, data.n_classes, seed=0)
        model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
        models.append(model.eval())
    final = ensemble.metrics[-1]
    return Networks(models, final.train_loss, final.train_error, final.test_error, final.test_loss)
