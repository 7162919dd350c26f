"""Recorded training run as a program in float64: its steps, and the gradient of each with its graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from kernelmem.trajectory.optimizers import Options, ParameterFilter, filter_of
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import StepBatch, batch_of

CPU = torch.device("cpu")
N_DIRECTIONS = 4  # a kink can spoil each of them
STEP = 1e-7  # of the norm of all weights: so short that few kinks lie on it
MAX_GAP = 1e-3  # relative
TINY = 1e-300  # avoids 0 / 0


@dataclass(frozen=True)
class TrainingProgram:
    """Steps of a run with the states before them, and a private float64 copy of the model."""

    prepared: PreparedModel
    loss: Callable[[Tensor, Tensor], Tensor]
    kind: type[ParameterFilter]
    steps: Sequence[Step]
    batches: Sequence[StepBatch]
    states: Sequence[Tensors]  # T + 1: weights and buffers
    tape: str  # hash of the run
    batched: bool = True  # True if torch differentiates many directions at once correctly

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def n_recorded(self) -> int:
        """Number of examples up to the last one that the run used."""
        return 1 + max(int(batch.examples.max()) for batch in self.batches)

    def moving(self, t: int) -> dict[str, Options]:
        """Return the parameters that step t moves, with the options of their groups."""
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
        """Return Σ_i v_i ∇ℓ_i of step t at the weights before it, in the recorded modes and with the recorded random numbers."""
        self.put(t, evaluating=self.steps[t].evaluating)
        return self.gradient_here(self.batches[t], self.steps[t].random)

    def gradient_here(self, batch: StepBatch, random: bytes | None = None) -> BatchGradient:
        """Return Σ_i v_i ∇ℓ_i of any batch at the current weights and modes."""
        weights = batch.weights.clone().requires_grad_()
        parameters = self.prepared.parameters
        running = RunningStatistics(self.prepared.module)
        with differentiable_kernels(CPU), seeded(random):
            with running:
                outputs = self.prepared.outputs(batch.rows.slice(0, batch.rows.n), batch.rows.n)
            total = (weights * self.loss(outputs, batch.targets)).sum()
            gradients = torch.autograd.grad(
                total, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
        gradient = dict(zip(parameters, gradients, strict=True))
        return BatchGradient(weights, parameters, gradient, running.before, running.after, self.batched)

    def tangents(self, t: int, rows: Rows, phi: TargetFunctions, index: Tensor) -> tuple[Tensors, Tensors]:
        """Return ∂φ/∂(parameters) and ∂φ/∂(running statistics) of some rows after t steps, in eval mode: (rows · k, shape).

        Raises:
            UnsupportedModelError: a model that mixes rows in eval mode.
        """
        self.put(t, evaluating=None)
        part = Rows(rows.take(index.tolist()), len(index))
        parameters = self.prepared.parameters
        tangents: dict[str, list[Tensor]] = {}
        with differentiable_kernels(CPU):
            together = self.prepared.outputs(part.slice(0, part.n), part.n).detach()
            for i in range(part.n):
                running = RunningStatistics(self.prepared.module)
                with running:
                    outputs = self.prepared.outputs(part.slice(i, i + 1), 1)
                if not torch.allclose(outputs[0], together[i], rtol=1e-9, atol=1e-9):
                    raise _mixed_rows(float((outputs[0] - together[i]).detach().abs().max()))
                leaves = {**parameters, **running.before}
                for direction in phi.directions(outputs.detach(), index[i : i + 1])[0]:
                    gradients = torch.autograd.grad(
                        outputs[0], list(leaves.values()), direction, retain_graph=True, allow_unused=True
                    )
                    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                        tangents.setdefault(name, []).append(torch.zeros_like(leaf) if gradient is None else gradient)
        stacked = {name: torch.stack(parts).detach() for name, parts in tangents.items()}
        return {name: stacked.pop(name) for name in parameters}, stacked


def load_program(
    run: Run,
    model: nn.Module,
    rows: Rows,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
) -> TrainingProgram:
    """Read a run into memory: T + 1 states of P numbers and all batches.

    Raises:
        InputError: a run without steps, an optimizer whose update is not known, rows that the model does not take.
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
    return replace(program, batched=all(program.gradient(t).can_batch() for t in {0, len(program) - 1}))


def check_second_derivative(program: TrainingProgram) -> None:
    """Compare Hessian-vector products of the last step with finite differences of gradients.

    A kink between the two gradients spoils a difference, so one of a few random directions must agree.

    Raises:
        VerificationError: none agrees.

    Cost: twice as many gradients as directions, and a Hessian-vector product of each.
    """
    t = len(program) - 1
    generator = torch.Generator().manual_seed(0)
    parameters = program.prepared.parameters
    gradient = program.gradient(t)
    length = _norm(parameters)
    directions = {
        name: torch.randn(N_DIRECTIONS, *p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()
    }
    products = gradient.pull_back(directions, {})[1]
    worst = 0.0
    for i in range(N_DIRECTIONS):
        direction = {name: u[i] for name, u in directions.items()}
        scale = STEP * length / _norm(direction)
        ends = []
        for sign in (1, -1):
            program.put(t, evaluating=program.steps[t].evaluating)
            with torch.no_grad():
                for name, p in parameters.items():
                    p.add_(sign * (direction[name] * scale))
            ends.append(program.gradient_here(program.batches[t], program.steps[t].random).gradient)
        change = {name: (ends[0][name] - ends[1][name]) for name in parameters}
        product = {name: Hu[i] * (2 * scale) for name, Hu in products.items()}
        gap = _norm({name: change[name] - product[name] for name in parameters})
        size = max(_norm(change), _norm(product)) + STEP * _norm(gradient.gradient)
        worst = max(worst, gap / max(size, TINY))
        if gap <= MAX_GAP * size:
            return
    raise VerificationError(
        f"a model whose second derivative differs from finite differences of its gradient by {worst:.2g} (relative)",
        expected=f"operations with a second derivative (a difference of at most {MAX_GAP:g})",
        hint="replace custom functions whose backward pass treats saved tensors as constant, or rounding with a surrogate"
        " gradient",
    )


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in tensors.values()))


def _mixed_rows(gap: float) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a model whose outputs of a row alone and among others differ by {gap:.2g} in eval mode",
        expected="a model in which the output of a row depends on that row only",
        hint="use batch normalization with running statistics, and no operation that mixes the rows of a batch",
    )
