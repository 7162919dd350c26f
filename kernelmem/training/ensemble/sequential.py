"""One member of an ensemble as a plain nn.Module: the reference that the batched engines must reproduce."""

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError
from kernelmem.core.models import copy_module
from kernelmem.training.batching import BatchOrder
from kernelmem.training.ensemble.members import EnsembleTask
from kernelmem.training.ensemble.metrics import mean_loss

EVALUATION_ROWS = 1024  # rows per forward pass when outputs are evaluated


class OneModule:
    """A copy of ``model``, trained as the only member of ``task``."""

    def __init__(self, task: EnsembleTask, model: nn.Module) -> None:
        self.task, self.members = task, [0]
        self.model = copy_module(model).to(task.x.device)
        if task.x.is_floating_point():
            self.model.to(task.x.dtype)
        self.parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.order = BatchOrder(task.members[0].order_seed, len(task.rows[0]), task.recipe.batch_size)

    def gradient(self) -> None:
        """Compute the gradient of the mean loss on the next batch, and write it to ``.grad`` of the parameters."""
        self.model.train()
        positions = self.order.take(1)[0].to(self.task.x.device)
        outputs = self.model(self.task.x[self.task.rows[0][positions]])
        check_outputs(outputs, len(positions), self.task.C)
        for p in self.parameters:
            p.grad = None
        with torch.enable_grad():
            mean_loss(outputs, self.task.targets[0][positions]).backward()

    def test_outputs(self) -> dict[int, Tensor]:
        """Return {0: outputs (m, C)} of the model on the m test rows; 0 is the number of the only member."""
        return {0: self._evaluate(self.task.x_test)}

    def train_outputs(self) -> dict[int, Tensor]:
        """Return {0: outputs (n, C)} of the model on its n training rows; 0 is the number of the only member."""
        return {0: self._evaluate(self.task.x[self.task.rows[0]])}

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return {0: state dict of the model}, with tensors copied to the CPU; 0 is the number of the only member."""
        return {0: {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}}

    def _evaluate(self, x: Tensor) -> Tensor:
        """Return the outputs (n, C) of the model in eval mode on the n rows x, computed without gradients."""
        self.model.eval()
        with torch.no_grad():
            outputs = torch.cat([self.model(piece) for piece in x.split(EVALUATION_ROWS)])
        check_outputs(outputs, len(x), self.task.C)
        return outputs


def check_outputs(outputs: Tensor, n: int, C: int) -> None:
    """Check that the outputs of a model on n rows have the shape (n, C), with C the number of classes.

    Raises:
        InputError: the shapes differ; the message states both.
    """
    if tuple(outputs.shape) != (n, C):
        raise InputError(
            f"a model with outputs {tuple(outputs.shape)} for {n} rows",
            expected=f"({n}, {C}), one output per class",
            hint="change the number of outputs of the model, or pass n_classes",
        )
