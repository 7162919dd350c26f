"""Along the run from its first step to its last: what the optimizer's formula says, and what the record says beside it."""

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

__all__ = [
    "MOST_STEPS",
    "TOGETHER",
    "PerExample",
    "RunTracer",
    "StepBatch",
    "TracedSteps",
    "batch_of",
    "can_share_pass",
    "concatenate_batches",
    "loss_directions",
]

PerExample = Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), targets -> (n,)
TOGETHER = 2**21  # about as many numbers of tangents are formed at a time: many steps of a small network
MOST_STEPS = 32
HELD = (
    2**30
)  # bytes of states, denominators and rounding held at a time; a longer run is traced once more, stretch by stretch


@dataclass(frozen=True)
class StepBatch:
    """The examples of one step, and what the loss of each weighs in its gradient."""

    rows: Rows
    targets: Tensor
    examples: Tensor  # (B,) ordinals in the data
    weights: Tensor  # (B,): loss weight · clip factor / batch size


@dataclass(frozen=True)
class TracedSteps:
    """What the sweep back needs of steps start..stop−1."""

    start: int
    steps: list[Step]
    batches: list[StepBatch]
    states: list[dict[str, Tensor]]  # one more than steps
    moved: list[dict[str, ParameterStep]]  # of every parameter that moved, as vectors
    rounding: list[Tensor]  # recorded step less the formula's, (P,)

    @property
    def stop(self) -> int:
        """Number of the first step after these."""
        return self.start + len(self.steps)


def batch_of(run: Run, step: Step) -> StepBatch:
    """The examples of one step."""
    x, y = run.tape.inputs(step)
    scale = step.scale / len(step.examples) if run.reduction == "mean" else step.scale
    rows = Rows(x, len(step.examples)).to(dtype=torch.float64, device=torch.device("cpu"))
    targets = y.double() if y.is_floating_point() else y
    return StepBatch(rows, targets, step.examples, step.sample_weight.double() * scale)


def loss_directions(loss: PerExample, batch: StepBatch) -> Directions:
    """Outputs (B, C) -> the weighted derivative of each example's own loss by its own outputs, (B, 1, C)."""

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
    """What it takes to evaluate the optimizer's formula in float64 at the recorded weights."""

    run: Run
    model: nn.Module
    network: Network
    loss: PerExample
    given: Loss | None = None  # the callable of a run that was recorded with one
    forward: Forward | None = None
    advance: Callable[[int], None] = _ignore  # called with 1 for every step that is traced for the first time

    def starts(self) -> range:
        """Where stretches begin that fit into memory."""
        return range(0, len(self.run), max(1, HELD // (8 * 4 * self.network.n_parameters)))

    def in_order(self) -> Iterator[TracedSteps]:
        """Give the run in stretches. Cost: one forward and backward pass of every batch."""
        filters = self._filters()
        starts = self.starts()
        for start in starts:
            yield self.traced(filters, start, min(start + starts.step, len(self.run)))

    def backward(self) -> Iterator[TracedSteps]:
        """Give the run in stretches, the last one first. Cost: twice that, where the run does not fit as a whole."""
        filters, snapshots, last = self._filters(), [], None
        starts = self.starts()
        for start in starts:
            snapshots.append((start, copy.deepcopy(filters)))
            last = None  # let go of one before the next is made
            last = self.traced(filters, start, min(start + starts.step, len(self.run)))
        assert last is not None
        yield last
        del last
        quiet = replace(self, advance=_ignore)
        for start, snapshot in snapshots[-2::-1]:
            yield quiet.traced(snapshot, start, start + starts.step)

    def _filters(self) -> dict[str, ParameterFilter]:
        kind = filter_of(self.run.optimizer)
        return {name: kind() for name in self.network.selected}

    def traced(self, filters: dict[str, ParameterFilter], start: int, stop: int) -> TracedSteps:
        """Steps start..stop−1, from filters that have seen those before."""
        run, network = self.run, self.network
        steps = run.steps[start:stop]
        batches = [batch_of(run, step) for step in steps]
        replayed = replay(run, self.model, loss=self.given, start=start, stop=stop, forward=self.forward)
        states = [state for _, state in replayed]
        moved: list[dict[str, ParameterStep]] = []
        rounding: list[Tensor] = []
        found = _gradients(network, steps, batches, states, self.loss)
        for step, gradients, (now, after) in zip(steps, found, pairwise(states), strict=True):
            options = {name: group for group in step.groups for name in group["parameters"]}
            difference = torch.cat([(after[name].double() - now[name].double()).flatten() for name in network.selected])
            of_step = {}
            for name, gradient in gradients.items():
                if name in step.skipped or name not in options:
                    continue
                own = filters[name].forward(gradient, now[name].double().flatten(), options[name])
                difference[network.slices[name]] -= own.step
                of_step[name] = own
            rounding.append(difference)
            moved.append(of_step)
            self.advance(1)
        return TracedSteps(start, list(steps), batches, states, moved, rounding)


def _gradients(
    network: Network, steps: list[Step], batches: list[StepBatch], states: list[dict[str, Tensor]], loss: PerExample
) -> Iterator[dict[str, Tensor]]:
    """The gradient of every step's batch, as vectors: those of many steps in one pass where they can share it."""
    largest = max(1, min(MOST_STEPS, TOGETHER // network.n_parameters))
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
            gradients = network.gradient(batches[start], loss, states[start], steps[start].random)
            yield {name: gradient.flatten() for name, gradient in gradients.items()}
        else:
            network.set_state(states[start])
            whole, S, B = concatenate_batches(batches[start:stop]), stop - start, batches[start].rows.n
            segments = Segments.of(states[start : stop + 1], list(network.selected))
            blocks = Blocks((B,) * S, segments.start)
            summed, _ = network.factors(whole.rows, loss_directions(loss, whole), blocks, lying=(S, B, 1))
            vectors = join(summed, list(network.sizes))[:, 0, 0]
            for vector in vectors:
                yield {name: vector[part] for name, part in network.slices.items()}
        start = stop


def can_share_pass(one: Step, other: Step) -> bool:
    """Whether two steps can be taken in one pass: they draw nothing, change no buffers, and have the same modes."""
    quiet = all(step.random is None and not step.buffers_changed for step in (one, other))
    return quiet and one.evaluating == other.evaluating


def concatenate_batches(batches: Sequence[StepBatch]) -> StepBatch:
    """Several batches, one after the other."""
    if len(batches) == 1:
        return batches[0]
    flat: list[list[Tensor]] = []
    for batch in batches:
        leaves: list[Tensor] = []
        batch.rows.map(lambda leaf, found=leaves: found.append(leaf) or leaf)
        flat.append(leaves)
    columns = iter([torch.cat(column) for column in zip(*flat, strict=True)])
    rows = Rows(batches[0].rows.map(lambda _: next(columns)), sum(batch.rows.n for batch in batches))
    targets, examples, weights = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("targets", "examples", "weights")
    )
    return StepBatch(rows, targets, examples, weights)
