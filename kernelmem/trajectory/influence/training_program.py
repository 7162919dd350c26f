"""A recorded training run as a program in float64: its steps, and the gradient of each with its graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.core.errors import UnsupportedModelError, VerificationError
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.replay import replay, set_modes
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.recording.verify_model import verify_model
from kernelmem.tangents.derivatives.jvp import differentiable_kernels
from kernelmem.tangents.prepare import PreparedModel, prepare
from kernelmem.training.losses import Loss, per_example_loss
from kernelmem.trajectory.argument_checks import check_run
from kernelmem.trajectory.influence.batch_gradient import BatchGradient, Tensors
from kernelmem.trajectory.influence.batch_norm import RunningStatistics
from kernelmem.trajectory.network.network import seeded
from kernelmem.trajectory.optimizers import ParameterFilter, filter_of
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import StepBatch, batch_of

__all__ = ["TrainingProgram", "check_second_derivative", "load_program"]

CPU = torch.device("cpu")
DIRECTIONS = 4  # that may each meet a kink
STEP = 1e-7  # of the length of all weights: so short that few kinks lie in it
AGREES = 1e-3
TINY = 1e-300  # keeps 0 / 0 out


@dataclass(frozen=True)
class TrainingProgram:
    """The steps of a run, what each began with, and a private float64 copy of the model."""

    prepared: PreparedModel
    loss: Callable[[Tensor, Tensor], Tensor]
    kind: type[ParameterFilter]
    steps: Sequence[Step]
    batches: Sequence[StepBatch]
    states: Sequence[Tensors]  # T + 1: weights and buffers
    tape: str  # the hash that the run ends with
    batched: bool = True  # whether torch differentiates many directions at once, and rightly

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def n_recorded(self) -> int:
        """Number of examples up to the last one that the run used."""
        return 1 + max(int(batch.examples.max()) for batch in self.batches)

    def moving(self, t: int) -> dict[str, Mapping[str, Any]]:
        """The parameters that step t moves, with the options of their groups."""
        step = self.steps[t]
        members = {name: group for group in step.groups for name in group["parameters"]}
        return {
            name: members[name] for name in self.prepared.parameters if name in members and name not in step.skipped
        }

    def put(self, t: int, *, evaluating: frozenset[str] | None) -> None:
        """Set weights and buffers after t steps; None: all modules in eval mode."""
        module = self.prepared.module
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name in self.states[t]:
                    tensor.copy_(self.states[t][name])
        if evaluating is None:
            module.eval()
        else:
            set_modes(module, evaluating)

    def gradient(self, t: int) -> BatchGradient:
        """Σ_i v_i ∇ℓ_i of step t at the weights before it, in the modes and with the random numbers that it had."""
        self.put(t, evaluating=self.steps[t].evaluating)
        return self.gradient_here(self.batches[t], self.steps[t].random)

    def gradient_here(self, batch: StepBatch, random: bytes | None = None) -> BatchGradient:
        """The same of any batch, as the model stands."""
        weights = batch.weights.clone().requires_grad_()
        parameters = self.prepared.parameters
        running = RunningStatistics(self.prepared.module)
        with differentiable_kernels(CPU), seeded(random):
            with running:
                outputs = self.prepared.outputs(batch.rows.slice(0, batch.rows.n), batch.rows.n)
            total = (weights * self.loss(outputs, batch.targets)).sum()
            found = torch.autograd.grad(
                total, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
        gradient = dict(zip(parameters, found, strict=True))
        return BatchGradient(weights, parameters, gradient, running.before, running.after, self.batched)

    def tangents(self, t: int, rows: Rows, phi: TargetFunctions, index: Tensor) -> tuple[Tensors, Tensors]:
        """∂φ of the rows at ``index`` after t steps, in eval mode, by parameters and by running statistics: (rows · k, shape).

        Raises:
            UnsupportedModelError: a model that mixes rows in eval mode.
        """
        self.put(t, evaluating=None)
        own = Rows(rows.take(index.tolist()), len(index))
        parameters = self.prepared.parameters
        found: dict[str, list[Tensor]] = {}
        with differentiable_kernels(CPU):
            together = self.prepared.outputs(own.slice(0, own.n), own.n).detach()
            for i in range(own.n):
                running = RunningStatistics(self.prepared.module)
                with running:
                    outputs = self.prepared.outputs(own.slice(i, i + 1), 1)
                if not torch.allclose(outputs[0], together[i], rtol=1e-9, atol=1e-9):
                    raise _mixed(float((outputs[0] - together[i]).detach().abs().max()))
                leaves = {**parameters, **running.before}
                for direction in phi.directions(outputs.detach(), index[i : i + 1])[0]:
                    gradients = torch.autograd.grad(
                        outputs[0], list(leaves.values()), direction, retain_graph=True, allow_unused=True
                    )
                    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                        found.setdefault(name, []).append(torch.zeros_like(leaf) if gradient is None else gradient)
        stacked = {name: torch.stack(parts).detach() for name, parts in found.items()}
        return {name: stacked.pop(name) for name in parameters}, stacked


def load_program(
    run: Run,
    model: nn.Module,
    rows: Rows,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
) -> TrainingProgram:
    """Read a run: T + 1 states of P numbers and all batches are held in memory.

    Raises:
        InputError: a run of no step, an optimizer whose update is not known, rows that the model does not take.
        UnsupportedModelError: an operation without a second derivative.
    """
    check_run(run, model)
    verify_model(run, model, loss=loss, forward=forward)
    steps = list(run.steps)
    moved = {name for step in steps for group in step.groups for name in group["parameters"]}
    prepared = prepare(
        model,
        rows,
        forward=forward,
        parameters=[name for name in run.parameters if name in moved],
        dtype=torch.float64,
        device=CPU,
        evaluation=True,
    )
    states = [state for _, state in replay(run, model, loss=loss, forward=forward)]
    program = TrainingProgram(
        prepared,
        per_example_loss(loss or run.loss),
        filter_of(run.optimizer),
        steps,
        [batch_of(run, step) for step in steps],
        states,
        run.tape.head,
    )
    return replace(program, batched=all(program.gradient(t).batches() for t in {0, len(program) - 1}))


def check_second_derivative(program: TrainingProgram) -> None:
    """Hold a Hessian-vector product of the last step against differences of gradients.

    A kink between the two gradients spoils a difference, so one of a few random directions has to agree.

    Raises:
        VerificationError: none does.

    Cost: twice as many gradients as directions, and a Hessian-vector product of each.
    """
    t = len(program) - 1
    generator = torch.Generator().manual_seed(0)
    parameters = program.prepared.parameters
    found = program.gradient(t)
    length = _norm(parameters)
    directions = {
        name: torch.randn(DIRECTIONS, *own.shape, generator=generator, dtype=own.dtype)
        for name, own in parameters.items()
    }
    products = found.transported(directions, {})[1]
    worst = 0.0
    for i in range(DIRECTIONS):
        shift = {name: own[i] for name, own in directions.items()}
        shift = {name: own * (STEP * length / _norm(shift)) for name, own in shift.items()}
        ends = []
        for sign in (1, -1):
            program.put(t, evaluating=program.steps[t].evaluating)
            with torch.no_grad():
                for name, own in parameters.items():
                    own.add_(sign * shift[name])
            ends.append(program.gradient_here(program.batches[t], program.steps[t].random).gradient)
        scale = 2 * STEP * length / _norm({name: own[i] for name, own in directions.items()})
        change = {name: (ends[0][name] - ends[1][name]) for name in parameters}
        product = {name: own[i] * scale for name, own in products.items()}
        gap = _norm({name: change[name] - product[name] for name in parameters})
        size = max(_norm(change), _norm(product)) + STEP * _norm(found.gradient)
        worst = max(worst, gap / max(size, TINY))
        if gap <= AGREES * size:
            return
    raise VerificationError(
        f"a model whose gradient, differentiated, differs from its change between near weights by {worst:.2g} (relative)",
        expected=f"operations with a second derivative (a difference of at most {AGREES:g})",
        hint="replace custom functions whose backward pass treats what it saved as constant, or rounding with a surrogate"
        " gradient",
    )


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(own.detach().square().sum()) for own in tensors.values()))


def _mixed(gap: float) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a model whose outputs on a row alone and among others differ by {gap:.2g} in eval mode",
        expected="a model in which a row's output depends on that row alone",
        hint="use batch normalization with running statistics, and no operation that mixes the rows of a batch",
    )
