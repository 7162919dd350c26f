"""The descent that a recorded run took, taken again by a kernel that does not move."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.kernel_machines.linearized.sgd_step import Recursion
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.training.losses import Loss, per_example_loss
from kernelmem.trajectory.trace import batch_of

__all__ = ["Recorded", "recorded_descent", "same_descent"]


@dataclass(frozen=True, eq=False)
class Recorded:
    """What of a run function space needs: batches, weights of examples, targets and the optimizer's constants."""

    steps: list[tuple[Tensor, Tensor, Tensor, SGDConfig]]  # examples (B,), weights (B,), targets, constants
    loss: Callable[[Tensor, Tensor], Tensor]  # per example
    curvature: float  # the largest second derivative of the loss of an example by its outputs; NaN if unknown
    quadratic: bool

    def stability(self, largest: float, n: int) -> float:
        """The largest lr (weight · curvature · κ_max / n + weight_decay) of a step, as if its batch were all rows."""
        return max(
            own.lr * (float(weights.sum()) * self.curvature * largest / n + own.weight_decay)
            for _, weights, _, own in self.steps
        )

    @property
    def limit(self) -> float:
        """Of the stability: the least of all steps."""
        return min(own.limit for *_, own in self.steps)

    @property
    def decays(self) -> bool:
        """Whether weights decay in any step."""
        return any(own.weight_decay > 0 for *_, own in self.steps)


def recorded_descent(run: Run, loss: Loss | None, n_outputs: int) -> Recorded | str:
    """Read a run as descent in function space, or say why it is none."""
    steps = list(run.steps)
    reason = _why_not(run, steps)
    if reason:
        return reason
    own = loss or run.loss
    curvature = {"mse": 1.0, "mse_mean": 2.0 / n_outputs, "cross_entropy": 0.5}
    read = []
    for step in steps:
        batch = batch_of(run, step)
        group = step.groups[0]
        options = {name: float(group.get(name, 0.0)) for name in ("lr", "momentum", "dampening", "weight_decay")}
        descent = SGDConfig(nesterov=bool(group.get("nesterov", False)), **options)
        read.append((batch.examples, batch.weights, batch.targets, descent))
    known = curvature.get(own, math.nan) if isinstance(own, str) else math.nan
    return Recorded(read, per_example_loss(own), known, own in ("mse", "mse_mean"))


def same_descent(recorded: Recorded, space: FunctionSpace) -> tuple[Tensor, Tensor]:
    """Coefficients (N, k) and s − 1 after all steps of the run: O(n B C²) a step.

    Raises:
        NumericalError: outputs that are no longer finite.
    """
    recursion = Recursion(space)
    for index, weights, targets, descent in recorded.steps:
        with torch.enable_grad():
            leaf = recursion.outputs(index).requires_grad_()
            total = (weights * recorded.loss(leaf, targets)).sum()
            gradient = torch.autograd.grad(total, leaf)[0]
        recursion.step(index, gradient, descent)
    a, away = recursion.state()
    if recursion.drift() > 1e-6 * float(recursion.Ka.abs().max() + 1):
        raise NumericalError(
            "a descent whose outputs have lost their digits to rounding",
            expected="steps that do not diverge",
            hint="take a smaller learning rate, or larger batches",
        )
    return a, away


def _why_not(run: Run, steps: list[Step]) -> str:
    if run.optimizer != "SGD":
        return f"{run.optimizer} has no form in function space: its denominators tie parameters"
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    for step in steps:
        if len({tuple(group.get(name) for name in names) for group in step.groups}) != 1:
            return "groups of parameters with constants of their own have kernels of their own"
        if step.groups[0].get("maximize"):
            return "the run went up its loss"
        if bool((step.versions != 0).any()):
            return "examples were augmented: their rows changed from step to step"
    if any(step.random is not None or step.buffers_changed for step in steps):
        return "steps drew random numbers, or used statistics of their batch"
    return ""
