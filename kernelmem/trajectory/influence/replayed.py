"""Recorded training run again with other weights of the examples: finite changes instead of derivatives."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.recording.replay import set_modes
from kernelmem.trajectory.influence.batch_gradient import Tensors
from kernelmem.trajectory.influence.training_program import TrainingProgram
from kernelmem.trajectory.influence.unrolled import TORCH_EPSILON, OptimizerTrace, trace_states
from kernelmem.trajectory.network.network import seeded
from kernelmem.trajectory.targets import TargetFunctions


class Replay:
    """The program of a run in float64, with weights u_i on the losses of its n examples: u = 1 is the run, 0 leaves out.

    First weights, batches, their divisors, masks, hyper-parameters and buffers are those of the run; running statistics of
    batch normalization move with the weights. Gradients are clipped at the run's norm where that was found.
    """

    def __init__(
        self, program: TrainingProgram, rows: Rows, target_functions: TargetFunctions, *, clip: str | None = None
    ) -> None:
        self.program, self.rows, self.target_functions = program, rows, target_functions
        module = program.prepared.module
        self.statistics = {
            f"{name}.{key}" if name else key
            for name, submodule in module.named_modules()
            if isinstance(submodule, nn.modules.batchnorm._BatchNorm)
            for key in ("running_mean", "running_var")
        }
        self.bounds = [math.inf] * len(program)  # largest norm of the gradient of each step
        if any(step.scale < 1 for step in program.steps) and clip != "fixed":
            self.bounds = _bounds(program, trace_states(program, clip=clip, advance=lambda steps: None))

    def recorded_values(self) -> Tensor:
        """Return the functions (m, k) at the last recorded weights."""
        self.program.set_state_at(len(self.program), evaluating=None)
        return self._values()

    def values(self, weights: Tensor, advance: Callable[[int], None]) -> Tensor:
        """Return k functions of m rows (m, k) after training with example weights (n,); ``advance`` counts steps.

        Cost: a gradient of every batch.
        """
        program = self.program
        program.set_state_at(0, evaluating=None)
        filters = {name: program.filter_class() for name in program.prepared.parameters}
        for t, step in enumerate(program.steps):
            self._set_buffers(t)
            set_modes(program.prepared.module, step.evaluating)
            options = program.updated_parameters(t)
            gradient = self._gradient(t, weights)
            if self.bounds[t] < math.inf:
                norm = math.sqrt(sum(float(gradient[name].square().sum()) for name in options)) / step.scale
                factor = min(1.0, self.bounds[t] / (norm + TORCH_EPSILON)) / step.scale
                gradient = {name: factor * g for name, g in gradient.items()}
            with torch.no_grad():
                for name, group in options.items():
                    parameter = program.prepared.parameters[name]
                    parameter.add_(filters[name].forward(gradient[name], parameter, group).step)
            advance(1)
        self._set_buffers(len(program))
        program.prepared.module.eval()
        return self._values()

    def _values(self) -> Tensor:
        with torch.no_grad():
            outputs = self.program.prepared.outputs(self.rows.slice(0, self.rows.n), self.rows.n)
        return self.target_functions.values(outputs, torch.arange(self.rows.n))

    def _gradient(self, t: int, weights: Tensor) -> Tensors:
        program, batch, step = self.program, self.program.batches[t], self.program.steps[t]
        parameters = program.prepared.parameters
        with seeded(step.random), torch.enable_grad():
            outputs = program.prepared.outputs(batch.rows.slice(0, batch.rows.n), batch.rows.n)
            total = (batch.weights * weights[batch.examples] * program.loss(outputs, batch.targets)).sum()
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return {
            name: torch.zeros_like(g) if name in step.frozen else g
            for name, g in zip(parameters, gradients, strict=True)
        }

    def _set_buffers(self, t: int) -> None:
        """Copy the recorded buffers after t steps into the model, but for the running statistics."""
        with torch.no_grad():
            for name, buffer in self.program.prepared.module.named_buffers():
                if name in self.program.states[t] and name not in self.statistics:
                    buffer.copy_(self.program.states[t][name])


def _bounds(program: TrainingProgram, trace: OptimizerTrace) -> list[float]:
    """Return the norm at which the gradient of each step is clipped; that of the largest clipped one for the other steps.

    clip_grad_norm_ multiplied a clipped gradient by M / (norm + 1e-6), and the trace has norms after clipping.
    """
    bounds = {
        t: trace.norms[t] + TORCH_EPSILON * step.scale for t, step in enumerate(program.steps) if trace.clipped[t]
    }
    return [bounds.get(t, max(bounds.values(), default=math.inf)) for t in range(len(program))]
