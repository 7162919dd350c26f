"""Replay the recorded SGD steps with a frozen kernel (linearized network)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.kernel_machines.linearized.sgd_step import FunctionSpaceSGD
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.training.losses import Loss, per_example_loss
from kernelmem.trajectory.trace import load_batch


@dataclass(frozen=True, eq=False)
class RecordedSGD:
    """The optimizer steps and the loss of a recorded run, which determine the training of the linearized network."""

    steps: list[tuple[Tensor, Tensor, Tensor, SGDConfig]]  # example ids (B,), weights (B,), targets, optimizer
    loss: Callable[[Tensor, Tensor], Tensor]  # per example
    curvature: float  # largest second derivative of an example's loss with respect to its outputs; NaN if unknown
    quadratic: bool  # True if the loss is a squared error

    def stability(self, kappa_max: float, n: int) -> float:
        """Return the largest learning rate times curvature of all steps, taken as if every batch were the full training set.

        With the largest eigenvalue κ_max of the kernel of n rows it is lr (Σ weights · curvature · κ_max / n +
        weight_decay); NaN if the curvature of the loss is unknown.
        """
        return max(
            sgd.lr * (float(weights.sum()) * self.curvature * kappa_max / n + sgd.weight_decay)
            for _, weights, _, sgd in self.steps
        )

    @property
    def limit(self) -> float:
        """The smallest stability limit of all steps, to which :meth:`stability` is compared."""
        return min(sgd.limit for *_, sgd in self.steps)

    @property
    def decays(self) -> bool:
        """True if at least one step had a positive weight decay."""
        return any(sgd.weight_decay > 0 for *_, sgd in self.steps)


def read_recorded_sgd(run: Run, loss: Loss | None, n_outputs: int) -> RecordedSGD | str:
    """Return the optimizer steps and the loss of a run, or the reason why they do not determine a linearized training.

    ``loss`` replaces the recorded loss unless it is None, and ``n_outputs`` is the number of outputs of the network.
    """
    steps = list(run.steps)
    reason = _unsupported_reason(run, steps)
    if reason:
        return reason
    used_loss = loss or run.loss
    curvatures = {"mse": 1.0, "mse_mean": 2.0 / n_outputs, "cross_entropy": 0.5}
    sgd_steps = []
    for step in steps:
        batch = load_batch(run, step)
        parameter_group = step.groups[0]
        hyperparameters = {
            name: float(parameter_group.get(name, 0.0)) for name in ("lr", "momentum", "dampening", "weight_decay")
        }
        sgd = SGDConfig(nesterov=bool(parameter_group.get("nesterov", False)), **hyperparameters)
        sgd_steps.append((batch.examples, batch.weights, batch.targets, sgd))
    curvature = curvatures.get(used_loss, math.nan) if isinstance(used_loss, str) else math.nan
    return RecordedSGD(sgd_steps, per_example_loss(used_loss), curvature, used_loss in ("mse", "mse_mean"))


def replay_with_kernel(recorded: RecordedSGD, space: FunctionSpace) -> tuple[Tensor, Tensor]:
    """Return the coefficients (N, k) and s − 1 after all recorded steps, taken with the fixed kernel in ``space``.

    Here s is the factor that weight decay leaves of the initial weights. A step with B rows costs O(n B C²) for n training
    rows and C outputs.

    Raises:
        NumericalError: outputs are no longer finite, or have lost their digits to rounding.
    """
    training = FunctionSpaceSGD(space)
    for example_ids, weights, targets, sgd in recorded.steps:
        with torch.enable_grad():
            outputs = training.outputs(example_ids).requires_grad_()
            batch_loss = (weights * recorded.loss(outputs, targets)).sum()
            gradient = torch.autograd.grad(batch_loss, outputs)[0]
        training.step(example_ids, gradient, sgd)
    a, s_minus_1 = training.state()
    if training.drift() > 1e-6 * float(training.Ka.abs().max() + 1):
        raise NumericalError(
            "linearized training whose outputs have lost their digits to rounding",
            expected="steps that do not diverge",
            hint="use a smaller learning rate, or larger batches",
        )
    return a, s_minus_1


def _unsupported_reason(run: Run, steps: list[Step]) -> str:
    """Return the reason why a kernel cannot reproduce the steps of a run; an empty string means that it can."""
    if run.optimizer != "SGD":
        return f"{run.optimizer} has no form in function space: its denominators couple parameters"
    hyperparameters = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    for step in steps:
        if len({tuple(group.get(name) for name in hyperparameters) for group in step.groups}) != 1:
            return "parameter groups have different hyperparameters, so that each would need its own kernel"
        if step.groups[0].get("maximize"):
            return "the optimizer maximized the loss"
        if bool((step.versions != 0).any()):
            return "examples were augmented: their inputs changed from step to step"
    if any(step.random is not None or step.buffers_changed for step in steps):
        return "steps used random numbers or batch statistics"
    return ""
