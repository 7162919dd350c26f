"""Check of influences: a finite difference of the recorded training along a random direction of the examples' weights.

The weights of all examples are 1 ± h v. The change of weights, running statistics and optimizer state is carried from step to
step at the recorded states: gradients and outputs by central differences, without a second derivative of the model; the
optimizer's update, which acts on every entry separately, by its derivative. The outputs must change by Σ_i v_i influence_i. A
kink within a difference can spoil it, so one of a few directions must agree.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.core.errors import VerificationError
from kernelmem.trajectory.influence.batch_gradient import ROUNDING_EPSILONS, Tensors
from kernelmem.trajectory.influence.training_program import TrainingProgram
from kernelmem.trajectory.influence.unrolled import TORCH_EPSILON, WEIGHTS, OptimizerTrace, step_derivatives
from kernelmem.trajectory.targets import TargetFunctions

N_DIRECTIONS = 3
RELATIVE_STEP = 1e-7  # of the weights, so short that few kinks lie on it
LARGEST_STEP = 1e-4  # of the examples' weights
MAX_RELATIVE_ERROR = 1e-3
TINY = 1e-300  # avoids 0 / 0


def random_directions(n: int) -> Tensor:
    """Return directions (n, N_DIRECTIONS) of the weights of n examples."""
    return torch.randn(n, N_DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check_influences(
    program: TrainingProgram,
    trace: OptimizerTrace,
    rows: Rows,
    target_functions: TargetFunctions,
    directions: Tensor,
    predicted: Tensor,
    advance: Callable[[int], None],
) -> float:
    """Return the relative error of the predicted derivatives along one of the ``directions`` (n, N_DIRECTIONS).

    ``predicted`` (m, k, N_DIRECTIONS) are sums of influences.

    Raises:
        VerificationError: along none of the directions the error is at most a thousandth.

    Cost: two gradients of every batch for each direction that is tried, the first in most cases.
    """
    errors = []
    for direction, expected in zip(directions.T, predicted.unbind(2), strict=True):
        difference = _FiniteDifference(program, trace, direction)
        measured = difference.derivative(rows, target_functions, _ignore if errors else advance)
        size = max(float(measured.norm()), float(expected.norm()), TINY)
        errors.append(float((measured - expected).norm()) / size)
        if errors[-1] <= MAX_RELATIVE_ERROR:
            return errors[-1]
    raise VerificationError(
        f"influences that differ from a finite difference of the training by {min(errors):.2g} (relative)",
        expected=f"a difference of at most {MAX_RELATIVE_ERROR:g}",
        hint="look for detach() or a custom gradient in forward or in the loss, and check clip= of the options",
    )


class _FiniteDifference:
    """Derivative of the run along one direction of the examples' weights, by central differences in every step."""

    def __init__(self, program: TrainingProgram, trace: OptimizerTrace, direction: Tensor) -> None:
        self.program, self.trace, self.direction = program, trace, direction
        module = program.prepared.module
        self.statistics = {
            f"{name}.{key}" if name else key
            for name, submodule in module.named_modules()
            if isinstance(submodule, nn.modules.batchnorm._BatchNorm)
            for key in ("running_mean", "running_var")
            if getattr(submodule, key) is not None
        }
        buffers = {name: buffer for name, buffer in module.named_buffers() if name in self.statistics}
        self.tensors: Tensors = {**program.prepared.parameters, **buffers}
        # Derivatives of weights and running statistics, and of the optimizer's state of each parameter.
        self.change: Tensors = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.state_change: dict[str, Tensors] = {name: {} for name in program.prepared.parameters}

    def derivative(self, rows: Rows, target_functions: TargetFunctions, advance: Callable[[int], None]) -> Tensor:
        """Return the derivative of k functions of m rows, (m, k), after the last step; ``advance`` counts steps."""
        for t in range(len(self.program)):
            self._step(t)
            advance(1)
        T, h, values = len(self.program), self._length(), []
        for sign in (1, -1):
            self.program.set_state_at(T, evaluating=None)
            self._shift(sign * h)
            with torch.no_grad():
                outputs = self.program.prepared.outputs(rows.slice(0, rows.n), rows.n)
            values.append(target_functions.values(outputs, torch.arange(rows.n)))
        return (values[0] - values[1]) / (2 * h)

    def _length(self) -> float:
        """Return the length h of the next difference."""
        weights = _norm({name: self.tensors[name] for name in self.program.prepared.parameters})
        return min(LARGEST_STEP, RELATIVE_STEP * weights / max(_norm(self.change), TINY))

    def _shift(self, length: float) -> None:
        """Add ``length`` times the derivatives to the weights and running statistics of the model."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.add_(self.change[name], alpha=length)

    def _step(self, t: int) -> None:
        """Advance the derivatives by one step."""
        program, step, batch = self.program, self.program.steps[t], self.program.batches[t]
        updated = program.updated_parameters(t)
        bound = None
        if self.trace.clipped[t]:  # the norm M of clip_grad_norm_: the factor was M / (norm + 1e-6)
            gradient = program.gradient(t).gradient
            bound = _norm({name: gradient[name] for name in updated}) + TORCH_EPSILON * step.scale
        program.set_state_at(t, evaluating=step.evaluating)
        h = self._length()
        gradients: list[Tensors] = []
        statistics: list[Tensors] = []
        for sign in (1, -1):
            program.set_state_at(t, evaluating=step.evaluating)
            self._shift(sign * h)
            perturbed = replace(batch, weights=batch.weights * (1 + sign * h * self.direction[batch.examples]))
            gradient = program.gradient_at_current_weights(perturbed, step.random, step.frozen).gradient
            factor = 1.0
            if bound is not None:
                norm = _norm({name: gradient[name] for name in updated})
                factor = bound / (norm + TORCH_EPSILON * step.scale)
            gradients.append({name: factor * gradient[name].detach() for name in updated})
            statistics.append({name: self.tensors[name].clone() for name in self.statistics})
        # Differences that are rounding (of a bias before batch normalization) may have a large effect (with Adam).
        largest = max((float(g.abs().max()) for g in gradients[0].values() if g.numel()), default=0.0)
        rounding = ROUNDING_EPSILONS * torch.finfo(torch.float64).eps * largest
        for name in self.statistics:
            self.change[name] = (statistics[0][name] - statistics[1][name]) / (2 * h)
        for name, options in updated.items():
            changes = {WEIGHTS: self.change[name], **self.state_change[name]}
            difference = gradients[0][name] - gradients[1][name]
            changes["gradient"] = torch.where(difference.abs() > rounding, difference, 0.0) / (2 * h)
            derivatives = step_derivatives(
                program.filter_class,
                self.trace.counts[t][name],
                self.trace.states[t][name],
                0.5 * (gradients[0][name] + gradients[1][name]),
                program.states[t][name].double(),
                options,
            )
            after = {
                output: sum(
                    (row[key] * changes[key] for key in row if key in changes), torch.zeros_like(self.change[name])
                )
                for output, row in derivatives.items()
            }
            self.change[name] = after.pop(WEIGHTS)
            self.state_change[name] = after


def _ignore(steps: int) -> None:
    """Do nothing: steps of further directions are not counted."""


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in tensors.values()))
