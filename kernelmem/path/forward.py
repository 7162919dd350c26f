"""Along the run from its first step to its last: what the optimizer's formula says, and what the record says beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.path.network import Network
from kernelmem.path.optimizers import Moved, filter_of
from kernelmem.runs.run import Run
from kernelmem.runs.step import Step

__all__ = ["Batch", "Trace", "loss_directions", "trace"]

PerExample = Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), targets -> (n,)


@dataclass(frozen=True)
class Batch:
    """The examples of one step, and what the loss of each weighs in its gradient."""

    rows: Rows
    targets: Tensor
    examples: Tensor  # (B,) ordinals in the data
    weights: Tensor  # (B,): loss weight · clip factor / batch size


@dataclass(frozen=True)
class Trace:
    """What the sweep back needs of every step."""

    steps: list[Step]
    batches: list[Batch]
    moved: list[dict[str, Moved]]
    rounding: list[Tensor]  # recorded step less the formula's, (P,)
    loss: PerExample


def batch_of(run: Run, step: Step) -> Batch:
    """The examples of one step."""
    x, y = run.tape.inputs(step)
    scale = step.scale / len(step.examples) if run.reduction == "mean" else step.scale
    rows = Rows(x, len(step.examples)).to(dtype=torch.float64, device=torch.device("cpu"))
    targets = y.double() if y.is_floating_point() else y
    return Batch(rows, targets, step.examples, step.weights.double() * scale)


def loss_directions(loss: PerExample, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Outputs (B, C) -> the weighted derivative of each example's own loss by its own outputs, (B, 1, C)."""

    def directions(outputs: Tensor, _: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            total = (batch.weights * loss(leaf, batch.targets)).sum()
            return torch.autograd.grad(total, leaf)[0][:, None]

    return directions


def trace(
    run: Run,
    states: Sequence[dict[str, Tensor]],
    network: Network,
    loss: PerExample,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """Evaluate the optimizer's formula in float64 at the recorded weights, step by step.

    Cost: one forward and backward pass of every batch.
    """
    kind = filter_of(run.optimizer)
    filters = {name: kind() for name in network.selected}
    steps = list(run.steps)
    batches = [batch_of(run, step) for step in steps]
    moved: list[dict[str, Moved]] = []
    rounding: list[Tensor] = []
    for t, (now, after) in enumerate(pairwise(states)):
        step = steps[t]
        network.set_modes(step.evaluating)
        options = {name: group for group in step.groups for name in group["parameters"]}
        gradients = network.gradient(batches[t], loss, now, step.random)
        formula, of_step = torch.zeros(network.n_parameters, dtype=torch.float64), {}
        for name, gradient in gradients.items():
            if name in step.skipped or name not in options:
                continue
            of_step[name] = filters[name].forward(gradient, now[name].double(), options[name])
            formula[network.slices[name]] = of_step[name].step.flatten()
        rounding.append(network.flat(after) - network.flat(now) - formula)
        moved.append(of_step)
        if progress is not None:
            progress(t + 1, len(steps))
    return Trace(steps, batches, moved, rounding, loss)
