"""Recorded steps traced in float64: gradients, the optimizer's formula, and the deviation of the record (rounding)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, named_leaves
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.training.losses import Loss
from kernelmem.trajectory.network.network import Directions, Network
from kernelmem.trajectory.network.tangent_factors import to_dense
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import ParameterFilter, ParameterStep, filter_class

PerExample = Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), targets -> (n,)
MAX_NUMBERS_TOGETHER = (
    2**21
)  # numbers in the tangents of one pass (approximately): a pass takes many steps of a small network
MAX_STEPS_TOGETHER = 32
MAX_BYTES = 2**30  # of states, denominators and rounding in memory; a longer run is traced a second time, part by part


@dataclass(frozen=True)
class StepBatch:
    """Examples of one step, and the weight of each example's loss in the gradient."""

    rows: Rows
    targets: Tensor
    examples: Tensor  # (B,): indices in the data
    weights: Tensor  # (B,): loss weight · clip factor / batch size


@dataclass(frozen=True)
class TracedSteps:
    """Consecutive steps start..stop−1 with their batches, states, optimizer steps and rounding errors."""

    start: int
    steps: list[Step]
    batches: list[StepBatch]
    states: list[dict[str, Tensor]]  # one more than steps
    parameter_steps: list[dict[str, ParameterStep]]  # of every parameter that moved, as vectors
    rounding: list[Tensor]  # (P,): recorded step minus the optimizer's formula

    @property
    def stop(self) -> int:
        """Index of the first step after these steps."""
        return self.start + len(self.steps)

    def select(self, start: int, stop: int) -> "TracedSteps":
        """Return the traced steps at positions ``start`` to ``stop`` − 1, counted from the first step of this object."""
        positions = slice(start, stop)
        states = self.states[start : stop + 1]
        return TracedSteps(
            self.start + start,
            self.steps[positions],
            self.batches[positions],
            states,
            self.parameter_steps[positions],
            self.rounding[positions],
        )


def load_batch(run: Run, step: Step) -> StepBatch:
    """Return the examples of one step, in float64."""
    x, y = run.tape.inputs(step)
    scale = step.scale / len(step.examples) if run.reduction == "mean" else step.scale
    rows = Rows(x, len(step.examples)).to(dtype=torch.float64, device=torch.device("cpu"))
    targets = y.double() if y.is_floating_point() else y
    return StepBatch(rows, targets, step.examples, step.sample_weight.double() * scale)


def weighted_loss(loss: PerExample, batch: StepBatch) -> Callable[[Tensor], Tensor]:
    """Return a function that maps the outputs (B, C) of a batch to the weighted sum of the losses of its B examples."""
    return lambda outputs: (batch.weights * loss(outputs, batch.targets)).sum()


def loss_directions(loss: PerExample, batch: StepBatch) -> Directions:
    """Return a function that maps outputs (B, C) to the weighted derivatives of the losses of B examples, (B, 1, C)."""

    def directions(outputs: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            total = (batch.weights[rows] * loss(leaf, batch.targets[rows])).sum()
            return torch.autograd.grad(total, leaf)[0][:, None]

    return directions


def _ignore(steps: int) -> None:
    """Do nothing: the default for ``advance``."""


@dataclass(frozen=True)
class RunTracer:
    """Evaluates the optimizer's formula in float64 at the recorded weights."""

    run: Run
    model: nn.Module
    network: Network
    loss: PerExample
    recorded_loss: Loss | None = None  # the callable, if the run was recorded with one
    forward: Forward | None = None
    advance: Callable[[int], None] = _ignore  # called with 1 for every step that is traced for the first time

    def chunk_starts(self) -> range:
        """First step of each chunk of the run, where a chunk is the steps that fit into memory together."""
        return range(0, len(self.run), max(1, MAX_BYTES // (8 * 4 * self.network.n_parameters)))

    def trace_forward(self) -> Iterator[TracedSteps]:
        """Yield the traced run chunk by chunk, in order of time. Cost: one forward and backward pass of every batch."""
        filters, chunk_starts = self._filters(), self.chunk_starts()
        for start in chunk_starts:
            yield self.trace_steps(filters, start, min(start + chunk_starts.step, len(self.run)))

    def trace_backward(self) -> Iterator[TracedSteps]:
        """Yield the traced run chunk by chunk, the last one first.

        Cost: twice that of ``trace_forward`` if there are several chunks.
        """
        filters, snapshots, last_chunk = self._filters(), [], None
        chunk_starts = self.chunk_starts()
        for start in chunk_starts:
            snapshots.append((start, copy.deepcopy(filters)))
            last_chunk = None  # free one chunk before the next is traced
            last_chunk = self.trace_steps(filters, start, min(start + chunk_starts.step, len(self.run)))
        assert last_chunk is not None
        yield last_chunk
        del last_chunk
        silent_tracer = replace(self, advance=_ignore)
        for start, snapshot in snapshots[-2::-1]:
            yield silent_tracer.trace_steps(snapshot, start, start + chunk_starts.step)

    def _filters(self) -> dict[str, ParameterFilter]:
        new_filter = filter_class(self.run.optimizer)
        return {name: new_filter() for name in self.network.parameters}

    def trace_steps(self, filters: dict[str, ParameterFilter], start: int, stop: int) -> TracedSteps:
        """Return the traced steps ``start`` to ``stop`` − 1; ``filters`` holds the optimizer's state before them."""
        run, network = self.run, self.network
        steps = list(run.steps[start:stop])
        batches = [load_batch(run, step) for step in steps]
        replayed = replay(run, self.model, loss=self.recorded_loss, start=start, stop=stop, forward=self.forward)
        states = [state for _, state in replayed]
        parameter_steps: list[dict[str, ParameterStep]] = []
        rounding: list[Tensor] = []
        all_gradients = _gradients(network, steps, batches, states, self.loss)
        for step, gradients, (before, after) in zip(steps, all_gradients, pairwise(states), strict=True):
            options = {name: group for group in step.groups for name in group["parameters"]}
            deviation = torch.cat(
                [(after[name].double() - before[name].double()).flatten() for name in network.parameters]
            )
            steps_by_parameter = {}
            for name, gradient in gradients.items():
                if name in step.skipped or name not in options:
                    continue
                is_frozen = name in step.frozen
                used_gradient = torch.zeros_like(gradient) if is_frozen else gradient
                parameter_step = filters[name].forward(used_gradient, before[name].double().flatten(), options[name])
                parameter_step = replace(parameter_step, frozen=is_frozen)
                deviation[network.slices[name]] -= parameter_step.step
                steps_by_parameter[name] = parameter_step
            rounding.append(deviation)
            parameter_steps.append(steps_by_parameter)
            self.advance(1)
        return TracedSteps(start, steps, batches, states, parameter_steps, rounding)


def _gradients(
    network: Network, steps: list[Step], batches: list[StepBatch], states: list[dict[str, Tensor]], loss: PerExample
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each step's batch: a dict of one vector for each parameter.

    Steps that can share a pass are computed in one pass.
    """
    max_shared_steps = max(1, min(MAX_STEPS_TOGETHER, MAX_NUMBERS_TOGETHER // network.n_parameters))
    start = 0
    while start < len(steps):
        max_steps = max_shared_steps if network.supports_shared_passes(steps[start].evaluating) else 1
        stop = start + 1
        while stop < min(start + max_steps, len(steps)) and can_share_pass(steps[start], steps[stop]):
            if batches[stop].rows.n != batches[start].rows.n or not equal_shapes(batches[start], batches[stop]):
                break
            stop += 1
        network.set_modes(steps[start].evaluating)
        if stop - start == 1:
            gradients = network.gradient(
                batches[start].rows, weighted_loss(loss, batches[start]), states[start], steps[start].random
            )
            yield {name: gradient.flatten() for name, gradient in gradients.items()}
        else:
            network.set_state(states[start])
            batch, S, B = concatenate_batches(batches[start:stop]), stop - start, batches[start].rows.n
            segments = Segments.from_states(states[start : stop + 1], list(network.parameters))
            blocks = Blocks((B,) * S, segments.start)
            sums, _ = network.tangent_factors(batch.rows, loss_directions(loss, batch), blocks, row_axes=(S, B, 1))
            for gradient_vector in to_dense(sums, list(network.sizes))[:, 0, 0]:
                yield {name: gradient_vector[positions] for name, positions in network.slices.items()}
        start = stop


def can_share_pass(first: Step, second: Step) -> bool:
    """Return True if neither step draws random numbers or changes buffers, and both have the same modules in eval mode."""
    deterministic = all(step.random is None and not step.buffers_changed for step in (first, second))
    return deterministic and first.evaluating == second.evaluating


def equal_shapes(first: StepBatch, second: StepBatch) -> bool:
    """Return True if the examples of both batches have equal shapes: texts padded to the longest of a batch do not."""
    shapes = [
        [leaf.shape[1:] for _, leaf in named_leaves(batch.rows.tree, "x")] + [batch.targets.shape[1:]]
        for batch in (first, second)
    ]
    return shapes[0] == shapes[1]


def concatenate_batches(batches: Sequence[StepBatch]) -> StepBatch:
    """Return one batch of all examples, which have equal shapes, in order."""
    if len(batches) == 1:
        return batches[0]
    leaves_by_batch: list[list[Tensor]] = []
    for batch in batches:
        leaves: list[Tensor] = []
        batch.rows.map(lambda leaf, leaves=leaves: leaves.append(leaf) or leaf)
        leaves_by_batch.append(leaves)
    joined = iter([torch.cat(leaves) for leaves in zip(*leaves_by_batch, strict=True)])
    rows = Rows(batches[0].rows.map(lambda _: next(joined)), sum(batch.rows.n for batch in batches))
    targets, examples, weights = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("targets", "examples", "weights")
    )
    return StepBatch(rows, targets, examples, weights)
