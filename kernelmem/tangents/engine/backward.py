"""One forward pass over a few rows and the backward sweeps through it: output gradients, direction by direction."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kernelmem.tangents.capture import Capture, ParameterUse
from kernelmem.tangents.engine.accumulate import TangentAssembler
from kernelmem.tangents.groups.base import Buffers, Combine, Group, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.groups.outer import ChannelGroup, ReadoutGroup
from kernelmem.tangents.survey import Readout, hidden_gradients, scaled

__all__ = ["ForwardPass", "ResidentRows", "one_direction"]


class ForwardPass:
    """A forward pass over n rows, the groups of its parameters, and what does not change between directions."""

    def __init__(
        self,
        captured: Capture,
        groups: Sequence[Group],
        directions: OutputDirections,
        readout: Readout | None,
        sweeps: int,
        labels: Tensor | None = None,
    ) -> None:
        self.n, self.outputs, self.labels = captured.n, captured.outputs, labels
        self.uses = {use.key: use for use in captured.uses}
        self.groups, self.directions, self.readout, self.sweeps = groups, directions, readout, sweeps
        self.kept: dict[int, Tensor] = {}  # activations, where they are wanted in one direction after another
        factored = [group for group in groups if isinstance(group, ChannelGroup) or group.factored]
        self.factored = [self.uses[key] for group in factored for key in group.keys]
        self.silent = {key for group in groups if isinstance(group, ReadoutGroup) for key in group.keys}
        apart = self.silent.union(use.key for use in self.factored)
        self.swept = [use for use in captured.uses if use.key not in apart]

    def of(self, group: Group) -> list[ParameterUse]:
        """The uses of a group's parameters."""
        return [self.uses[key] for key in group.keys]

    def directed(self, block: range) -> Iterator[tuple[int, list[tuple[ParameterUse, UseGradients]]]]:
        """For every direction of ``block`` by its ordinal there, what each use that is swept has in it (k = 1)."""
        edges = [use.edge for use in self.swept]
        start: Tensor | GradientEdge | None = self.outputs
        readout = self.readout
        if self.silent and readout is not None:
            # The outputs are the readout's, so a sweep may as well start at its input, with rows of W or of R.
            start = self.uses[readout.key].input_edge
            rows = readout.compressed if self.sweeps == len(readout.compressed) else readout.weight
            cotangents = rows[block.start : block.stop, None].expand(-1, self.n, -1)
        else:
            cotangents = self.cotangents(block).transpose(0, 1)
        for c, cotangent in enumerate(cotangents):
            if edges and start is not None and self.outputs.requires_grad:
                found = torch.autograd.grad(start, edges, cotangent, retain_graph=True, allow_unused=True)
                yield c, [(use, one_direction(use, g, self.n)) for use, g in zip(self.swept, found, strict=True)]
            else:  # no use lies on the graph of the outputs
                yield c, []

    def cotangents(self, block: range) -> Tensor:
        """The directions of ``block`` in output space: (n, k, C)."""
        return self.directions.cotangents(self.outputs.detach(), block, self.labels)

    def factored_gradients(self) -> dict[int, UseGradients]:
        """What uses that factor under the readout have, free of classes; their class weight put in for the trace."""
        stacks: dict[int, UseGradients] = {}
        if self.factored and self.readout is not None:
            weight = self.readout.weight
            ones = torch.ones(1, self.n, weight.shape[1], dtype=weight.dtype, device=weight.device)
            edges = [use.edge for use in self.factored]
            (found,) = hidden_gradients(self.uses[self.readout.key], ones, edges)
            for use, gradient in zip(self.factored, found, strict=True):
                if gradient is not None and self.directions.outputs == "trace":
                    gradient = scaled(use, gradient, self.readout.scale)
                stacks[use.key] = one_direction(use, gradient, self.n)
        return stacks

    def stacks(self, block: range, *, all_directions: bool) -> dict[int, UseGradients]:
        """What every use has in all directions of ``block``; with ``all_directions`` also what is the same for all of them."""
        stacks: dict[int, UseGradients] = {}
        for c, found in self.directed(block):
            for use, part in found:
                collect(stacks, use, part, c, len(block))
        return stacks | (self.factored_gradients() if all_directions else {})


class ResidentRows:
    """All rows of one side with their graphs, while one direction after another is swept.

    Output gradients of the uses ``streaming`` are handed on, those of the others collected until the end.
    """

    def __init__(self, passes: Sequence[ForwardPass], space: int, streaming: set[int]) -> None:
        self.passes, self.streaming = passes, streaming
        self.n = sum(own.n for own in passes)
        like = passes[0].outputs
        self.work = torch.empty(self.n * space, dtype=like.dtype, device=like.device)
        self.collected: list[dict[int, UseGradients]] = [{} for _ in passes]

    def factored_gradients(self) -> list[dict[int, UseGradients]]:
        """For every pass what is the same for all directions."""
        return [own.factored_gradients() for own in self.passes]

    def sweep(self, c: int) -> list[dict[int, UseGradients]]:
        """For every pass what the streaming uses have in direction c."""
        swept = []
        for own, collected in zip(self.passes, self.collected, strict=True):
            ((_, found),) = own.directed(range(c, c + 1))
            swept.append({use.key: part for use, part in found if use.key in self.streaming})
            for use, part in found:
                if use.key not in self.streaming:
                    collect(collected, use, part, c, own.sweeps)
        return swept

    def tangents(self, group: Group, stacks: Sequence[dict[int, UseGradients]], k: int, combine: Combine) -> Buffers:
        """One group's tangents in k directions; those of streaming groups lie in space that the next one writes over."""
        shape, space = group.buffer_shape(self.n, k), None
        if shape is not None:
            space = self.work[: shape[0] * shape[1]].view(shape) if group.streams else self.work.new_empty(shape)
        whole = TangentAssembler(self.n, space)
        for own, found in zip(self.passes, stacks, strict=True):
            out = None if space is None else space[whole.start : whole.start + own.n]
            kept = own.kept if group.streams else None
            own_stacks = [found.get(key) for key in group.keys]
            whole.add(group.write(own.of(group), own_stacks, own.n, k, combine, kept=kept, out=out))
        return whole.found

    def drop(self, group: Group) -> None:
        """Let go of what was collected for a group."""
        for collected in self.collected:
            for key in group.keys:
                collected.pop(key, None)


def collect(stacks: dict[int, UseGradients], use: ParameterUse, part: UseGradients, c: int, k: int) -> None:
    """Put direction c of k beside the others: its gradients where the rule wants that axis, or its tangents."""
    held = stacks.get(use.key)
    if part is None:
        if isinstance(held, Tensor):
            held.select(use.rule.direction_axis(use) % held.ndim, c).zero_()
        elif held is not None:
            for tangents in held.values():
                tangents[:, c] = 0.0
        return
    if isinstance(part, Tensor):
        axis = use.rule.direction_axis(use) % part.ndim
        if not isinstance(held, Tensor):
            shape = (*part.shape[:axis], k, *part.shape[axis + 1 :])
            held = stacks[use.key] = part.new_empty(shape) if c == 0 else part.new_zeros(shape)
        held.select(axis, c).copy_(part.select(axis, 0))
        return
    if not isinstance(held, dict):
        held = stacks[use.key] = {slot: t.new_zeros(len(t), k, *t.shape[2:]) for slot, t in part.items()}
    for slot, tangent in part.items():
        held[slot][:, c] = tangent[:, 0]


def one_direction(use: ParameterUse, gradient: Tensor | None, n: int) -> UseGradients:
    """One direction: an outer use's gradient as its rule wants it; a direct use's tangents, summed while it is in cache."""
    if gradient is None:
        return None
    rows = use.rule.arrange(use, use.batch_axis.rows(gradient, n))
    stacked = rows.unsqueeze(use.rule.direction_axis(use) % (rows.ndim + 1))
    return stacked if use.rule.outer_shape(use, n) is not None else use.rule.direct_tangents(use, stacked, n)
