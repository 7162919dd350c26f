"""One member of an ensemble by the plain loop of nn.Module and torch.optim: what the batched engines must equal."""

import copy

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError
from kernelmem.training.batching import BatchOrder
from kernelmem.training.ensemble.members import EnsembleTask
from kernelmem.training.ensemble.metrics import mean_loss

__all__ = ["OneModule"]

ROWS = 1024


class OneModule:
    """A copy of ``model`` that trains as the only member of ``task``."""

    def __init__(self, task: EnsembleTask, model: nn.Module) -> None:
        self.task, self.members = task, [0]
        self.model = copy.deepcopy(model).to(task.x.device)
        if task.x.is_floating_point():
            self.model.to(task.x.dtype)
        self.parameters: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.order = BatchOrder(task.members[0].order_seed, len(task.rows[0]), task.recipe.batch_size)

    def gradient(self) -> None:
        """Put the gradient of the loss on the next batch into ``grad`` of the parameters."""
        self.model.train()
        positions = self.order.take(1)[0].to(self.task.x.device)
        outputs = self.model(self.task.x[self.task.rows[0][positions]])
        check_outputs(outputs, len(positions), self.task.C)
        for p in self.parameters:
            p.grad = None
        with torch.enable_grad():
            mean_loss(outputs, self.task.targets[0][positions]).backward()

    def test_outputs(self) -> dict[int, Tensor]:
        """The test outputs (m, C)."""
        return {0: self._outputs(self.task.x_test)}

    def train_outputs(self) -> dict[int, Tensor]:
        """The outputs (n, C) on its own training rows."""
        return {0: self._outputs(self.task.x[self.task.rows[0]])}

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Its state dict, on the CPU."""
        return {0: {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}}

    def _outputs(self, x: Tensor) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            outputs = torch.cat([self.model(piece) for piece in x.split(ROWS)])
        check_outputs(outputs, len(x), self.task.C)
        return outputs


def check_outputs(outputs: Tensor, n: int, C: int) -> None:
    """Refuse outputs that are not (n, C).

    Raises:
        InputError: with both shapes.
    """
    if tuple(outputs.shape) != (n, C):
        raise InputError(
            f"a model that gives {tuple(outputs.shape)} for {n} rows",
            expected=f"({n}, {C}): one output for each class of the labels",
            hint="give the model that many outputs, or pass n_classes",
        )
