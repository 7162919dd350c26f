"""A recorded training run as a program in float64 that can be differentiated step by step.

Step t is (w, s, g) -> (w', s'): the optimizer's update of weights and state with the gradient g of the batch at w. The update
acts on every parameter entry by itself, so its derivative is a few numbers for each entry. The gradient is linear in what
each example's loss weighs, g = Σ_i v_i ∇ℓ_i(w), so that differentiating ⟨α, g⟩ once gives both ⟨α, ∇ℓ_i⟩ of all examples and
the Hessian-vector product H α, with the masks and batch statistics that the step had.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.ground.batches import Rows
from kernelmem.ground.errors import InputError, UnsupportedModelError, VerificationError
from kernelmem.path.forward import Batch, batch_of
from kernelmem.path.network import seeded
from kernelmem.path.optimizers import ParameterFilter, filter_of
from kernelmem.path.running import RunningStatistics
from kernelmem.path.targets import Explained
from kernelmem.runs.losses import per_example_loss
from kernelmem.runs.replay import replay, set_modes
from kernelmem.runs.run import Run
from kernelmem.runs.step import Step
from kernelmem.tangents.prepare import Prepared, prepare
from kernelmem.tangents.products import differentiable_kernels

__all__ = ["BatchGradient", "Program", "Tensors", "load_program", "update_derivatives"]

Tensors = dict[str, Tensor]  # parameter name -> tensor
CPU = torch.device("cpu")
TOGETHER = 32  # directions in one pass: more are slower, because their activations leave the cache
WEIGHTS = "weights"  # beside the names of the optimizer's own state


@dataclass(frozen=True)
class Program:
    """The steps of a run, what each began with, and a private float64 copy of the model."""

    prepared: Prepared
    loss: Callable[[Tensor, Tensor], Tensor]
    kind: type[ParameterFilter]
    steps: Sequence[Step]
    batches: Sequence[Batch]
    states: Sequence[Tensors]  # T + 1: weights and buffers
    tape: str  # the hash that the run ends with
    batched: bool = True  # whether torch differentiates many directions at once, and rightly

    def __len__(self) -> int:
        return len(self.steps)

    def moving(self, t: int) -> dict[str, Mapping[str, Any]]:
        """The parameters that step t moves, with the options of their groups."""
        step = self.steps[t]
        members = {name: group for group in step.groups for name in group["parameters"]}
        return {name: members[name] for name in self.prepared.parameters if name in members and name not in step.skipped}

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

    def gradient(self, t: int) -> "BatchGradient":
        """Σ_i v_i ∇ℓ_i of step t at the weights before it, in the modes and with the random numbers that it had."""
        step = self.steps[t]
        self.put(t, evaluating=step.evaluating)
        return self.gradient_here(self.batches[t], step.random)

    def gradient_here(self, batch: Batch, random: bytes | None = None) -> "BatchGradient":
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
        dense = (own if own.layout == torch.strided else own.to_dense() for own in found)
        gradient = dict(zip(parameters, dense, strict=True))
        return BatchGradient(weights, parameters, gradient, running.before, running.after, self.batched)

    def tangents(self, t: int, rows: Rows, what: Explained, index: Tensor) -> tuple[Tensors, Tensors]:
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
                    raise _mixed(float((outputs[0] - together[i]).abs().max()))
                leaves = {**parameters, **running.before}
                for direction in what.directions(outputs.detach(), index[i : i + 1])[0]:
                    gradients = torch.autograd.grad(
                        outputs[0], list(leaves.values()), direction, retain_graph=True, allow_unused=True
                    )
                    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                        part = torch.zeros_like(leaf) if gradient is None else gradient.to_dense()
                        found.setdefault(name, []).append(part.detach())
        stacked = {name: torch.stack(parts) for name, parts in found.items()}
        return {name: stacked.pop(name) for name in parameters}, stacked


def load_program(
    run: Run,
    model: nn.Module,
    rows: Rows,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> Program:
    """Read a run: T + 1 states of P numbers and all batches are held in memory.

    Raises:
        InputError: a run of no step, an optimizer whose update is not known, rows that the model does not take.
    """
    if len(run) == 0:
        raise InputError("a run of no step", expected="at least one", do="record a step")
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
    states = [state for _, state in replay(run, model, loss=loss)]
    program = Program(
        prepared,
        per_example_loss(loss or run.loss),
        filter_of(run.optimizer),
        steps,
        [batch_of(run, step) for step in steps],
        states,
        run.tape.head,
    )
    return replace(program, batched=all(program.gradient(t).batches() for t in {0, len(program) - 1}))


class BatchGradient:
    """g = Σ_i v_i ∇ℓ_i(w) with its graph: to be differentiated in many directions α."""

    def __init__(
        self,
        weights: Tensor,
        parameters: Mapping[str, Tensor],
        gradient: Tensors,
        before: Tensors,
        after: Tensors,
        batched: bool,
    ) -> None:
        """v, w, g, and running statistics before and after the step."""
        self.weights, self.parameters, self.before, self.batched = weights, parameters, before, batched
        self.gradient = {name: own.detach() for name, own in gradient.items()}
        self.after = after
        self.graph = {name: own for name, own in (gradient | after).items() if own.requires_grad}

    def shares(self, alpha: Tensors) -> Tensor:
        """v_i ⟨α_d, ∇ℓ_i⟩: (D, B) for α a tensor (D, shape) for each parameter."""
        return self._differentiated(alpha, [self.weights])[0] * self.weights.detach()

    def transported(self, alpha: Tensors, statistics: Tensors) -> tuple[Tensor, Tensors, Tensors]:
        """The shares (D, B); H α_d for each parameter, H the Hessian of Σ_i v_i ℓ_i; adjoints of the statistics before.

        What the weights do to running statistics is added to H α for ``statistics``, the adjoints of those after the step.

        Raises:
            VerificationError: an operation whose derivative cannot be differentiated drops out of the graph.
        """
        inputs = [self.weights, *self.parameters.values(), *self.before.values()]
        shares, *moved = self._differentiated(alpha | statistics, inputs)
        shares = shares * self.weights.detach()
        terms = [own.flatten(1) * self.gradient[name].flatten() for name, own in alpha.items()]
        whole, size = (sum((f(term).sum(1) for term in terms), torch.zeros(())) for f in (torch.Tensor.clone, torch.abs))
        if not bool(((shares.sum(1) - whole).abs() <= 1e-8 * (size + shares.abs().sum(1))).all()):
            raise VerificationError(
                "a model whose gradient, differentiated by the weights of the losses, does not give their gradients back",
                expected="operations with a second derivative",
                do="replace custom functions whose backward pass is not itself made of torch operations",
            )
        hessian = dict(zip(self.parameters, moved, strict=False))
        carried = dict(zip(self.before, moved[len(self.parameters) :], strict=True))
        for name, own in statistics.items():
            if name not in self.after:  # it stays as it was
                carried[name] = own + carried[name] if name in carried else own
        return shares, hessian, carried

    def batches(self) -> bool:
        """Whether torch differentiates many directions at once, and rightly: held against one by one on three."""
        if not self.graph:
            return True
        inputs = [self.weights, *self.parameters.values(), *self.before.values()]
        generator = torch.Generator().manual_seed(0)
        few = [torch.randn(3, *own.shape, generator=generator, dtype=own.dtype) for own in self.graph.values()]
        try:
            found = self._together(few, inputs)
        except RuntimeError:  # an operation without a rule for batches
            return False
        expected = self._singly(few, inputs)
        return all(
            bool(((a - b).norm() <= 1e-9 * b.norm()).item()) for a, b in zip(found, expected, strict=True)
        )

    def _differentiated(self, alpha: Tensors, inputs: list[Tensor]) -> list[Tensor]:
        """∂⟨α_d, g⟩ by each input, (D, shape)."""
        D = len(next(iter(alpha.values())))
        if not self.graph:
            return [own.new_zeros(D, *own.shape) for own in inputs]
        parts = []
        for start in range(0, D, TOGETHER):
            some = [
                alpha[name][start : start + TOGETHER]
                if name in alpha
                else own.new_zeros(min(TOGETHER, D - start), *own.shape)
                for name, own in self.graph.items()
            ]
            parts.append(self._together(some, inputs) if self.batched else self._singly(some, inputs))
        return [torch.cat(own) for own in zip(*parts, strict=True)]

    def _together(self, alpha: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():  # some operations are looped over inside: slower, not wrong
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = torch.autograd.grad(
                list(self.graph.values()), inputs, alpha, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        D = len(alpha[0])
        return [
            given.new_zeros(D, *given.shape) if own is None else own for own, given in zip(found, inputs, strict=True)
        ]

    def _singly(self, alpha: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        rows = []
        for own in zip(*alpha, strict=True):
            found = torch.autograd.grad(
                list(self.graph.values()), inputs, own, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append([part if part.layout == torch.strided else part.to_dense() for part in found])
        return [torch.stack(own) for own in zip(*rows, strict=True)]


def _mixed(gap: float) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a model whose outputs on a row alone and among others differ by {gap:.2g} in eval mode",
        expected="a model in which a row's output depends on that row alone",
        do="use batch normalization with running statistics, and no operation that mixes the rows of a batch",
    )


def update_derivatives(
    kind: type[ParameterFilter], count: int, state: Tensors, gradient: Tensor, weights: Tensor, options: Mapping[str, Any]
) -> dict[str, Tensors]:
    """∂(w', s')/∂(w, s, g), entry by entry: result[output][input], absent where it is zero throughout.

    Outputs are "weights" and the names of the state after the step; inputs "weights", "gradient" and the names before it.
    """
    with torch.enable_grad():
        before = {key: own.detach().clone().requires_grad_() for key, own in state.items()}
        leaves = {WEIGHTS: weights.detach().clone().requires_grad_(), "gradient": gradient.detach().clone().requires_grad_()}
        update = kind(count=count, state=dict(before))
        step = update.forward(leaves["gradient"], leaves[WEIGHTS], options).step
        after = {WEIGHTS: leaves[WEIGHTS] + step, **update.state}
        inputs = leaves | before
        derivatives: dict[str, Tensors] = {}
        for output, value in after.items():
            found = torch.autograd.grad(value.sum(), list(inputs.values()), retain_graph=True, allow_unused=True)
            derivatives[output] = {key: own for key, own in zip(inputs, found, strict=True) if own is not None}
    return derivatives
