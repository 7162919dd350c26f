"""Tangents of the examples of one step, and derivatives of their losses with respect to their outputs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.training.losses import Loss, per_example_loss
from kernelmem.trajectory.network.network import Directions, Network
from kernelmem.trajectory.trace import StepBatch, load_batch


class StepExamples:
    """Derivatives of the examples of every step, each a function of that example only."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        *,
        parameters: list[str],
        loss: Loss | None,
        forward: Forward | None,
    ) -> None:
        """Copy the model and check that every step treats its examples independently.

        Raises:
            UnsupportedModelError: a step drew random numbers, changed buffers or used statistics of its batch.
        """
        for step in run.steps:
            _check_independent_examples(step, model)
        first_step = run.steps[0]
        rows = load_batch(run, first_step).rows
        self.run, self.loss = run, per_example_loss(run.loss if loss is None else loss)
        self.network = Network(model, rows, parameters=parameters, forward=forward, evaluating=first_step.evaluating)

    def derivatives(self, step: Step, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the weighted losses with respect to the C outputs, (B, C), and B example indices.

        The weight is the loss weight times the clip factor, divided by the batch size.
        """
        batch = self._load_batch_at(step, state)
        with torch.enable_grad():
            leaf = self.network.outputs(batch.rows).requires_grad_()
            total = (batch.weights * self.loss(leaf, batch.targets)).sum()
            return torch.autograd.grad(total, leaf)[0], batch.examples

    def tangents(self, step: Step, state: Mapping[str, Tensor], directions: Directions) -> Tensor:
        """Return Σ_c v_c ∂f_c(x_i)/∂w, (B, k, P), of B examples x_i at the P weights w before the step.

        The k directions v (B, k, C) are computed by ``directions`` from the C outputs f.
        """
        return self.network.tangents(self._load_batch_at(step, state).rows, directions)[0]

    def _load_batch_at(self, step: Step, state: Mapping[str, Tensor]) -> StepBatch:
        self.network.set_state(state)
        self.network.set_modes(step.evaluating)
        return load_batch(self.run, step)


def _check_independent_examples(step: Step, model: nn.Module) -> None:
    """Raise UnsupportedModelError if outputs in this step depend on random numbers or on other examples."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    uses_batch_statistics = any(
        isinstance(m, batch_norm) and name not in step.evaluating for name, m in model.named_modules()
    )
    if step.random is not None or step.buffers_changed or uses_batch_statistics:
        reason = "drew random numbers" if step.random is not None else "used statistics of its batch"
        raise UnsupportedModelError(
            f"a run whose step {step.index} {reason}",
            expected="steps in which the outputs of an example depend only on that example and the weights",
            hint="train without dropout and with normalization in eval mode, or use km.ledger",
        )
