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
from kernelmem.trajectory.optimizers import Options, ParameterFilter, filter_class
from kernelmem.trajectory.targets import TargetFunctions
from kernelmem.trajectory.trace import StepBatch, load_batch

CPU = torch.device("cpu")
N_DIRECTIONS = 4  # number of random directions; a kink can spoil the finite difference along any of them
RELATIVE_STEP = 1e-7  # finite-difference step relative to the norm of the weights, so short that few kinks lie on it
MAX_RELATIVE_ERROR = 1e-3  # between a finite difference and a Hessian-vector product
TINY = 1e-300  # avoids 0 / 0


@dataclass(frozen=True)
class TrainingProgram:
    """Steps of a run with the states before them, and a private float64 copy of the model."""

    prepared: PreparedModel
    loss: Callable[[Tensor, Tensor], Tensor]
    filter_class: type[ParameterFilter]
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

    def updated_parameters(self, t: int) -> dict[str, Options]:
        """Return the parameters that step t updates, with the hyper-parameters of their groups."""
        step = self.steps[t]
        group_of_parameter = {name: group for group in step.groups for name in group["parameters"]}
        return {
            name: group_of_parameter[name]
            for name in self.prepared.parameters
            if name in group_of_parameter and name not in step.skipped
        }

    def set_state_at(self, t: int, *, evaluating: frozenset[str] | None) -> None:
        """Copy the weights and buffers after t steps into the model; ``evaluating`` None: all modules in eval mode."""
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
        """Return the gradient Σ_i v_i ∇ℓ_i of step t, with v_i the weight of the loss ℓ_i of example i in its batch.

        It is computed at the weights before the step, in the recorded modes and with the recorded random numbers.
        """
        step = self.steps[t]
        self.set_state_at(t, evaluating=step.evaluating)
        return self.gradient_at_current_weights(self.batches[t], step.random, step.frozen)

    def gradient_at_current_weights(
        self, batch: StepBatch, random: bytes | None = None, frozen: frozenset[str] = frozenset()
    ) -> BatchGradient:
        """Return the gradient Σ_i v_i ∇ℓ_i of a batch, with v_i the weight of the loss ℓ_i of example i.

        It is computed at the current weights and modes of the model; ``random`` is the random state to use, if any. The
        gradients of the parameters ``frozen`` are zero.
        """
        weights = batch.weights.clone().requires_grad_()
        parameters = self.prepared.parameters
        running_statistics = RunningStatistics(self.prepared.module)
        with differentiable_kernels(), seeded(random):
            with running_statistics:
                outputs = self.prepared.outputs(batch.rows.slice(0, batch.rows.n), batch.rows.n)
            total = (weights * self.loss(outputs, batch.targets)).sum()
            gradients = torch.autograd.grad(
                total, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
        gradient = {
            name: torch.zeros_like(g) if name in frozen else g for name, g in zip(parameters, gradients, strict=True)
        }
        return BatchGradient(
            weights, parameters, gradient, running_statistics.before, running_statistics.after, self.batched
        )

    def tangents(
        self, t: int, rows: Rows, target_functions: TargetFunctions, row_indices: Tensor
    ) -> tuple[Tensors, Tensors]:
        """Return the derivatives of k functions φ of some rows after t steps, in eval mode, each tensor (rows · k, *shape).

        The first result holds those with respect to the parameters, the second those with respect to the running
        statistics.

        Raises:
            UnsupportedModelError: a model that mixes rows in eval mode.
        """
        self.set_state_at(t, evaluating=None)
        selected_rows = Rows(rows.take(row_indices.tolist()), len(row_indices))
        parameters = self.prepared.parameters
        tangents: dict[str, list[Tensor]] = {}
        with differentiable_kernels():
            batch_outputs = self.prepared.outputs(selected_rows.slice(0, selected_rows.n), selected_rows.n).detach()
            for i in range(selected_rows.n):
                running_statistics = RunningStatistics(self.prepared.module)
                with running_statistics:
                    outputs = self.prepared.outputs(selected_rows.slice(i, i + 1), 1)
                if not torch.allclose(outputs[0], batch_outputs[i], rtol=1e-9, atol=1e-9):
                    raise _mixed_rows_error(float((outputs[0] - batch_outputs[i]).detach().abs().max()))
                leaves = {**parameters, **running_statistics.before}
                for direction in target_functions.directions(outputs.detach(), row_indices[i : i + 1])[0]:
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
    """Load a run into memory: T + 1 states of P numbers, and all batches.

    Raises:
        InputError: a run without steps, an optimizer whose update is not known, rows that the model does not take.
        UnsupportedModelError: an operation without a second derivative.
    """
    check_run(run, model)
    verify_model(run, model, loss=loss, forward=forward)
    steps = list(run.steps)
    moved_names = {name for step in steps for group in step.groups for name in group["parameters"]}
    prepared = prepare(
        model,
        rows,
        forward=forward,
        parameters=[name for name in run.parameters if name in moved_names],
        dtype=torch.float64,
        device=CPU,
        evaluation=True,
    )
    states = [state for _, state in replay(run, model, loss=loss, forward=forward)]
    program = TrainingProgram(
        prepared,
        per_example_loss(run.loss if loss is None else loss),
        filter_class(run.optimizer),
        steps,
        [load_batch(run, step) for step in steps],
        states,
        run.tape.head,
    )
    return replace(program, batched=all(program.gradient(t).can_batch() for t in {0, len(program) - 1}))


def check_second_derivative(program: TrainingProgram) -> None:
    """Compare Hessian-vector products of the last step with finite differences of gradients.

    A kink between the two gradients spoils a difference, so one of a few random directions must agree.

    Raises:
        VerificationError: none of the directions agrees.

    Cost: twice as many gradients as directions, and a Hessian-vector product of each.
    """
    t = len(program) - 1
    generator = torch.Generator().manual_seed(0)
    parameters = program.prepared.parameters
    gradient = program.gradient(t)
    weight_norm = _norm(parameters)
    directions = {
        name: torch.randn(N_DIRECTIONS, *p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()
    }
    products = gradient.pull_back(directions, {})[1]
    largest_error = 0.0
    for i in range(N_DIRECTIONS):
        direction = {name: u[i] for name, u in directions.items()}
        scale = RELATIVE_STEP * weight_norm / _norm(direction)
        shifted_gradients = []
        for sign in (1, -1):
            program.set_state_at(t, evaluating=program.steps[t].evaluating)
            with torch.no_grad():
                for name, p in parameters.items():
                    p.add_(sign * (direction[name] * scale))
            shifted_gradients.append(
                program.gradient_at_current_weights(
                    program.batches[t], program.steps[t].random, program.steps[t].frozen
                ).gradient
            )
        change = {name: (shifted_gradients[0][name] - shifted_gradients[1][name]) for name in parameters}
        product = {name: Hu[i] * (2 * scale) for name, Hu in products.items()}
        difference = _norm({name: change[name] - product[name] for name in parameters})
        norm = max(_norm(change), _norm(product)) + RELATIVE_STEP * _norm(gradient.gradient)
        largest_error = max(largest_error, difference / max(norm, TINY))
        if difference <= MAX_RELATIVE_ERROR * norm:
            return
    raise VerificationError(
        f"a model whose second derivative differs from finite differences of its gradient by {largest_error:.2g} (relative)",
        expected=f"operations with a second derivative (a difference of at most {MAX_RELATIVE_ERROR:g})",
        hint="replace custom functions whose backward pass treats saved tensors as constant, or rounding with a surrogate"
        " gradient",
    )


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in tensors.values()))


def _mixed_rows_error(difference: float) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a model whose outputs of a row alone and among others differ by {difference:.2g} in eval mode",
        expected="a model in which the output of a row depends on that row only",
        hint="use batch normalization with running statistics, and no operation that mixes the rows of a batch",
    )
