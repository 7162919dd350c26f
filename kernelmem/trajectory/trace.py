"""Recorded steps traced in float64: gradients, the optimizer's formula, and the deviation of the record (rounding)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.storage.step import Step
from kernelmem.training.losses import Loss
from kernelmem.trajectory.network.network import Directions, Network
from kernelmem.trajectory.network.tangent_factors import join
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import ParameterFilter, ParameterStep, filter_of

PerExample = Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), targets -> (n,)
MAX_NUMBERS_TOGETHER = 2**21  # of tangents formed at a time (approximately): many steps of a small network
MAX_STEPS_TOGETHER = 32
MAX_BYTES = 2**30  # of states, denominators and rounding in memory; a longer run is traced a second time, part by part


@dataclass(frozen=True)
class StepBatch:
    """Examples of one step, and the weight of each one's loss in the gradient."""

    rows: Rows
    targets: Tensor
    examples: Tensor  # (B,): indices in the data
    weights: Tensor  # (B,): loss weight · clip factor / batch size


@dataclass(frozen=True)
class TracedSteps:
    """Steps start..stop−1 with everything that the sweeps read of them."""

    start: int
    steps: list[Step]
    batches: list[StepBatch]
    states: list[dict[str, Tensor]]  # one more than steps
    moved: list[dict[str, ParameterStep]]  # of every parameter that moved, as vectors
    rounding: list[Tensor]  # (P,): recorded step minus the optimizer's formula

    @property
    def stop(self) -> int:
        """Number of the first step after these."""
        return self.start + len(self.steps)

    def part(self, start: int, stop: int) -> "TracedSteps":
        """Return those at positions start..stop−1."""
        part = slice(start, stop)
        states = self.states[start : stop + 1]
        return TracedSteps(
            self.start + start, self.steps[part], self.batches[part], states, self.moved[part], self.rounding[part]
        )


def batch_of(run: Run, step: Step) -> StepBatch:
    """Return the examples of one step, in float64."""
    x, y = run.tape.inputs(step)
    scale = step.scale / len(step.examples) if run.reduction == "mean" else step.scale
    rows = Rows(x, len(step.examples)).to(dtype=torch.float64, device=torch.device("cpu"))
    targets = y.double() if y.is_floating_point() else y
    return StepBatch(rows, targets, step.examples, step.sample_weight.double() * scale)


def weighted_loss(loss: PerExample, batch: StepBatch) -> Callable[[Tensor], Tensor]:
    """Return the map from outputs (B, C) to the weighted sum of the examples' losses."""
    return lambda outputs: (batch.weights * loss(outputs, batch.targets)).sum()


def loss_directions(loss: PerExample, batch: StepBatch) -> Directions:
    """Return the map from outputs (B, C) to the weighted derivative of each example's loss, (B, 1, C)."""

    def directions(outputs: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            total = (batch.weights[rows] * loss(leaf, batch.targets[rows])).sum()
            return torch.autograd.grad(total, leaf)[0][:, None]

    return directions


def _ignore(steps: int) -> None:
    """Report no progress."""


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

    def starts(self) -> range:
        """Starts of the parts of the run that fit into memory."""
        return range(0, len(self.run), max(1, MAX_BYTES // (8 * 4 * self.network.n_parameters)))

    def in_order(self) -> Iterator[TracedSteps]:
        """Yield the run part by part. Cost: one forward and backward pass of every batch."""
        filters, starts = self._filters(), self.starts()
        for start in starts:
            yield self.trace(filters, start, min(start + starts.step, len(self.run)))

    def backward(self) -> Iterator[TracedSteps]:
        """Yield the run part by part, the last one first. Cost: twice that of ``in_order`` if there are several parts."""
        filters, snapshots, last = self._filters(), [], None
        starts = self.starts()
        for start in starts:
            snapshots.append((start, copy.deepcopy(filters)))
            last = None  # free one part before the next is traced
            last = self.trace(filters, start, min(start + starts.step, len(self.run)))
        assert last is not None
        yield last
        del last
        silent = replace(self, advance=_ignore)
        for start, snapshot in snapshots[-2::-1]:
            yield silent.trace(snapshot, start, start + starts.step)

    def _filters(self) -> dict[str, ParameterFilter]:
        new_filter = filter_of(self.run.optimizer)
        return {name: new_filter() for name in self.network.selected}

    def trace(self, filters: dict[str, ParameterFilter], start: int, stop: int) -> TracedSteps:
        """Trace steps start..stop−1 with filters that have seen all steps before."""
        run, network = self.run, self.network
        steps = list(run.steps[start:stop])
        batches = [batch_of(run, step) for step in steps]
        replayed = replay(run, self.model, loss=self.recorded_loss, start=start, stop=stop, forward=self.forward)
        states = [state for _, state in replayed]
        moved: list[dict[str, ParameterStep]] = []
        rounding: list[Tensor] = []
        all_gradients = _gradients(network, steps, batches, states, self.loss)
        for step, gradients, (now, after) in zip(steps, all_gradients, pairwise(states), strict=True):
            options = {name: group for group in step.groups for name in group["parameters"]}
            deviation = torch.cat([(after[name].double() - now[name].double()).flatten() for name in network.selected])
            parameter_steps = {}
            for name, gradient in gradients.items():
                if name in step.skipped or name not in options:
                    continue
                by_formula = filters[name].forward(gradient, now[name].double().flatten(), options[name])
                deviation[network.slices[name]] -= by_formula.step
                parameter_steps[name] = by_formula
            rounding.append(deviation)
            moved.append(parameter_steps)
            self.advance(1)
        return TracedSteps(start, steps, batches, states, moved, rounding)


def _gradients(
    network: Network, steps: list[Step], batches: list[StepBatch], states: list[dict[str, Tensor]], loss: PerExample
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of every step's batch as vectors; steps that can share a pass do."""
    largest = max(1, min(MAX_STEPS_TOGETHER, MAX_NUMBERS_TOGETHER // network.n_parameters))
    start = 0
    while start < len(steps):
        most = largest if network.takes_steps_together(steps[start].evaluating) else 1
        stop = start + 1
        while stop < min(start + most, len(steps)) and can_share_pass(steps[start], steps[stop]):
            if batches[stop].rows.n != batches[start].rows.n:
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
            segments = Segments.of(states[start : stop + 1], list(network.selected))
            blocks = Blocks((B,) * S, segments.start)
            sums, _ = network.factors(batch.rows, loss_directions(loss, batch), blocks, row_axes=(S, B, 1))
            for vector in join(sums, list(network.sizes))[:, 0, 0]:
                yield {name: vector[part] for name, part in network.slices.items()}
        start = stop


def can_share_pass(one: Step, other: Step) -> bool:
    """Return True if neither step draws random numbers or changes buffers, and both have the same modes."""
    deterministic = all(step.random is None and not step.buffers_changed for step in (one, other))
    return deterministic and one.evaluating == other.evaluating


def concatenate_batches(batches: Sequence[StepBatch]) -> StepBatch:
    """Return one batch of all examples, in order."""
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
