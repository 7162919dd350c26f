"""The examples of one step as it was taken: their tangents, and the loss's derivative by their outputs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.training.losses import Loss, per_example_loss
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.trace import StepBatch, batch_of

__all__ = ["StepExamples"]


class StepExamples:
    """For every step of a run the derivatives of its examples, each by its own outputs alone."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        *,
        parameters: list[str],
        loss: Loss | None,
        forward: Forward | None,
    ) -> None:
        """Copy the model.

        Raises:
            UnsupportedModelError: a step drew random numbers, changed buffers or used statistics of its batch.
        """
        for step in run.steps:
            _check(step, model)
        first = run.steps[0]
        rows = batch_of(run, first).rows
        self.run, self.loss = run, per_example_loss(loss or run.loss)
        self.network = Network(model, rows, parameters=parameters, forward=forward, evaluating=first.evaluating)

    def derivatives(self, step: Step, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(weight · clip factor / batch size) ∂ℓ_i/∂f (B, C), and the examples (B,)."""
        own = self._at(step, state)
        with torch.enable_grad():
            leaf = self.network.outputs(own.rows).requires_grad_()
            total = (own.weights * self.loss(leaf, own.targets)).sum()
            return torch.autograd.grad(total, leaf)[0], own.examples

    def tangents(
        self, step: Step, state: Mapping[str, Tensor], directions: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Σ_c v_c ∂f_c(x_i)/∂w at the start of the step for directions v (B, k, C): (B, k, P)."""
        return self.network.tangents(self._at(step, state).rows, directions)[0]

    def _at(self, step: Step, state: Mapping[str, Tensor]) -> StepBatch:
        self.network.set_state(state)
        self.network.set_modes(step.evaluating)
        return batch_of(self.run, step)


def _check(step: Step, model: nn.Module) -> None:
    batch_norm = nn.modules.batchnorm._BatchNorm
    mixing = any(isinstance(m, batch_norm) and name not in step.evaluating for name, m in model.named_modules())
    if step.random is not None or step.buffers_changed or mixing:
        what = "drew random numbers" if step.random is not None else "used statistics of its batch"
        raise UnsupportedModelError(
            f"a run whose step {step.index} {what}",
            expected="steps in which the outputs of an example depend on that example and the weights alone",
            hint="train without dropout and with normalization in eval mode, or take km.ledger",
        )
