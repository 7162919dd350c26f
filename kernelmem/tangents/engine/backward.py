"""Backward sweeps through one forward pass: output gradients of each use, direction by direction."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kernelmem.tangents.capture import Capture, ParameterUse, UseKey, backward_pass
from kernelmem.tangents.engine.accumulate import TangentAssembler
from kernelmem.tangents.groups.base import Buffers, Combination, Combine, Group, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.groups.gradients import one_direction, store_direction
from kernelmem.tangents.groups.readout import ChannelGroup, ReadoutGroup
from kernelmem.tangents.survey import Readout, hidden_gradients, scaled_by_channel
from kernelmem.tangents.survey.certificate import PassMismatchError


class ForwardPass:
    """Recorded forward pass over n examples, and the backward passes (sweeps) that give its output gradients."""

    def __init__(
        self,
        captured: Capture,
        groups: Sequence[Group],
        directions: OutputDirections,
        readout: Readout | None,
        sweeps: int,
        labels: Tensor | None = None,
    ) -> None:
        """Find which uses need a backward pass per direction, and which have gradients that factor under the readout.

        Raises:
            PassMismatchError: uses that have another form than the groups were built for.
        """
        self.captured, self.n, self.outputs, self.labels = captured, captured.n, captured.outputs, labels
        self.groups, self.directions, self.readout, self.sweeps = groups, directions, readout, sweeps
        self.activation_cache: dict[UseKey, Tensor] = {}  # activations, kept from one direction to the next
        self.names = {name for group in groups for name in group.names}
        self.group_uses = _assign_uses(captured, groups)
        self.factored: list[ParameterUse] = []
        self.starts_at_readout = False  # sweeps start at the input of the readout, whose own tangents need none
        for group, uses in zip(groups, self.group_uses, strict=True):
            if isinstance(group, ReadoutGroup):
                self.starts_at_readout = True
            elif isinstance(group, ChannelGroup) or group.factored:
                self.factored += uses
        self.readout_use = self._find_readout_use() if self.starts_at_readout or self.factored else None
        separate_keys = {use.key for use in self.factored}
        if self.starts_at_readout and readout is not None:
            separate_keys.add(readout.key)
        self.swept = [use for use in captured.uses if use.key not in separate_keys]

    def _find_readout_use(self) -> ParameterUse:
        """Return the use of the readout, whose output is that of the model.

        Raises:
            PassMismatchError: in this pass the output of the model is another one.
        """
        assert self.readout is not None
        for use in self.captured.uses:
            edge, outputs = use.edge, self.captured.outputs
            if use.key == self.readout.key and edge.node is outputs.grad_fn and edge.output_nr == outputs.output_nr:
                return use
        parameters = {name for _, names in self.readout.key.slots for name in names.split(", ")}
        factored = {name for use in self.factored for name in use.parameters}
        raise PassMismatchError(frozenset({name for name in parameters if name in self.names} | factored))

    def sweep(self, block: range) -> Iterator[tuple[int, list[tuple[ParameterUse, UseGradients]]]]:
        """Run one backward pass per output direction in ``block``; yield the index within the block and the gradients.

        The gradients are pairs of a recorded use and its output gradient or tangents with one direction (k = 1); the list is
        empty if no use is on the graph of the outputs.
        """
        edges = [use.edge for use in self.swept]
        start: Tensor | GradientEdge | None = self.outputs
        readout = self.readout
        if self.starts_at_readout and self.readout_use is not None and readout is not None:
            # The outputs are those of the readout: start the sweeps at its input, with rows of W or of R.
            start = self.readout_use.input_edge
            rows = readout.compressed if self.sweeps == len(readout.compressed) else readout.weight
            cotangents = rows[block.start : block.stop, None].expand(-1, self.n, -1)
        else:
            cotangents = self.cotangents(block).transpose(0, 1)
        for direction, cotangent in enumerate(cotangents):
            if edges and start is not None and self.outputs.requires_grad:
                gradients = backward_pass(start, edges, cotangent)
                pairs = zip(self.swept, gradients, strict=True)
                yield direction, [(use, one_direction(use, gradient, self.n)) for use, gradient in pairs]
            else:  # no use is on the graph of the outputs
                yield direction, []

    def cotangents(self, block: range) -> Tensor:
        """Return the cotangents (n examples, k, C outputs) of the k output directions in ``block``."""
        return self.directions.cotangents(self.outputs.detach(), block, self.labels)

    def factored_gradients(self) -> dict[UseKey, UseGradients]:
        """Return the factors D_nk of output gradients of the form W_ck D_nk (example n, channel k), by key of the use.

        W_ck are the weights of the readout layer for output c. For the trace kernel D_nk is multiplied by √(Σ_c W_ck²).
        """
        gradients: dict[UseKey, UseGradients] = {}
        if self.factored and self.readout is not None and self.readout_use is not None:
            weight = self.readout.weight
            ones = torch.ones(1, self.n, weight.shape[1], dtype=weight.dtype, device=weight.device)
            edges = [use.edge for use in self.factored]
            (channel_gradients,) = hidden_gradients(self.readout_use, ones, edges)
            for use, gradient in zip(self.factored, channel_gradients, strict=True):
                if gradient is not None and self.directions.outputs == "trace":
                    gradient = scaled_by_channel(use, gradient, self.readout.scale)
                gradients[use.key] = one_direction(use, gradient, self.n)
        return gradients

    def combination(self, block: range, examples: Tensor) -> tuple[Combination, Tensor]:
        """Return a random combination of the directions in ``block`` and of the examples, and its cotangents (n, C).

        ``examples`` are the weights (n,) of the examples.
        """
        generator = torch.Generator().manual_seed(block.start)
        weights = torch.randn(len(block), generator=generator, dtype=torch.float64).to(self.outputs)
        readout = self.readout if self.readout_use is not None else None
        if readout is not None and self.starts_at_readout and self.sweeps == len(readout.compressed):
            cotangent = readout.expansion[:, block.start : block.stop] @ weights
            cotangents = cotangent.expand(self.n, -1)
        else:
            cotangents = torch.einsum("nkc,k->nc", self.cotangents(block), weights)
            cotangent = cotangents[0] if self.directions.target is None else None
        channels = None
        if readout is not None and cotangent is not None:
            channels = cotangent @ readout.weight
            if self.directions.outputs == "trace":
                channels = torch.where(readout.scale > 0, channels / readout.scale, 0)
        return Combination(weights, examples, cotangent, channels), cotangents * examples[:, None]

    def gradients(self, block: range, *, all_directions: bool) -> dict[UseKey, UseGradients]:
        """Return the gradients in the output directions of ``block``, by key of the recorded use.

        With ``all_directions`` the result includes those of :meth:`factored_gradients`, which serve all directions.
        """
        gradients: dict[UseKey, UseGradients] = {}
        for direction, use_gradients in self.sweep(block):
            for use, gradient in use_gradients:
                store_direction(gradients, use, gradient, direction, len(block))
        return gradients | (self.factored_gradients() if all_directions else {})


class ResidentRows:
    """All examples of one side of the kernel, whose autograd graphs stay in memory during one backward pass per direction.

    Output gradients of the groups in ``streaming`` are returned per direction; those of the other groups are collected.
    """

    def __init__(self, forward_passes: Sequence[ForwardPass], numbers_per_row: int, streaming: set[int]) -> None:
        self.forward_passes = forward_passes
        self.streaming = [
            {use.key for index in streaming for use in forward_pass.group_uses[index]}
            for forward_pass in forward_passes
        ]
        self.n = sum(forward_pass.n for forward_pass in forward_passes)
        outputs = forward_passes[0].outputs
        self.stream_buffer = torch.empty(self.n * numbers_per_row, dtype=outputs.dtype, device=outputs.device)
        self.collected: list[dict[UseKey, UseGradients]] = [{} for _ in forward_passes]

    def factored_gradients(self) -> list[dict[UseKey, UseGradients]]:
        """Return the result of :meth:`ForwardPass.factored_gradients` for each forward pass."""
        return [forward_pass.factored_gradients() for forward_pass in self.forward_passes]

    def sweep(self, direction: int) -> list[dict[UseKey, UseGradients]]:
        """Run the backward pass of one direction and return, per forward pass, the gradients of the streaming uses by key.

        The gradients of the other uses are stored in ``collected``.
        """
        gradients_per_pass = []
        for forward_pass, collected, streaming in zip(self.forward_passes, self.collected, self.streaming, strict=True):
            ((_, use_gradients),) = forward_pass.sweep(range(direction, direction + 1))
            gradients_per_pass.append({use.key: gradient for use, gradient in use_gradients if use.key in streaming})
            for use, gradient in use_gradients:
                if use.key not in streaming:
                    store_direction(collected, use, gradient, direction, forward_pass.sweeps)
        return gradients_per_pass

    def tangents(
        self, index: int, gradients: Sequence[dict[UseKey, UseGradients]], k: int, combine: Combine
    ) -> Buffers:
        """Return the tangents of the group ``index`` for all examples in k output directions, as named tensors.

        ``gradients`` holds one dict per forward pass. Groups with ``streams`` share a buffer that the next call overwrites.
        """
        group = self.forward_passes[0].groups[index]
        buffer_shape, buffer = group.buffer_shape(self.n, k), None
        if buffer_shape is not None:
            buffer = (
                self.stream_buffer[: buffer_shape[0] * buffer_shape[1]].view(buffer_shape)
                if group.streams
                else self.stream_buffer.new_empty(buffer_shape)
            )
        assembler = TangentAssembler(self.n, buffer)
        for forward_pass, use_gradients in zip(self.forward_passes, gradients, strict=True):
            n, uses = forward_pass.n, forward_pass.group_uses[index]
            out = None if buffer is None else buffer[assembler.start : assembler.start + n]
            cache = forward_pass.activation_cache if group.streams else None
            group_gradients = [use_gradients.get(use.key) for use in uses]
            like = forward_pass.outputs.detach()
            assembler.add(group.write(uses, group_gradients, n, k, combine, like=like, cache=cache, out=out))
        return assembler.buffers

    def drop(self, index: int) -> None:
        """Free the collected gradients of the group ``index``."""
        for forward_pass, collected in zip(self.forward_passes, self.collected, strict=True):
            for use in forward_pass.group_uses[index]:
                collected.pop(use.key, None)


def _assign_uses(captured: Capture, groups: Sequence[Group]) -> list[list[ParameterUse]]:
    """Return the uses of each group in a pass.

    Raises:
        PassMismatchError: uses of parameters without a group or of two groups, or of a form that the group does not have.
    """
    group_of_name = {name: index for index, group in enumerate(groups) for name in group.names}
    group_uses: list[list[ParameterUse]] = [[] for _ in groups]
    wrong_names = set(captured.uncovered)
    for use in captured.uses:
        indices = {group_of_name.get(name) for name in use.parameters}
        index = indices.pop()
        if index is None or indices or not use.located:
            wrong_names |= use.parameters
        else:
            group_uses[index].append(use)
    for group, uses in zip(groups, group_uses, strict=True):
        if not group.accepts(uses, captured.n):
            wrong_names |= set(group.names)
    if wrong_names:
        raise PassMismatchError(frozenset(wrong_names))
    return group_uses
