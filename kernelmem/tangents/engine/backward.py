"""Backward sweeps through one forward pass: output gradients of each use, direction by direction."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kernelmem.tangents.capture import Capture, ParameterUse
from kernelmem.tangents.engine.accumulate import TangentAssembler
from kernelmem.tangents.groups.base import Buffers, Combine, Group, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.groups.outer import ChannelGroup, ReadoutGroup
from kernelmem.tangents.survey import Readout, hidden_gradients, scaled_by_channel


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
        """Find which uses need a backward pass per direction, and which have gradients that factor under the readout."""
        self.n, self.outputs, self.labels = captured.n, captured.outputs, labels
        self.uses = {use.key: use for use in captured.uses}
        self.groups, self.directions, self.readout, self.sweeps = groups, directions, readout, sweeps
        self.activation_cache: dict[int, Tensor] = {}  # activations, kept from one direction to the next
        factored_groups = [group for group in groups if isinstance(group, ChannelGroup) or group.factored]
        self.factored = [self.uses[key] for group in factored_groups for key in group.keys]
        self.readout_keys = {key for group in groups if isinstance(group, ReadoutGroup) for key in group.keys}
        separate_keys = self.readout_keys.union(use.key for use in self.factored)
        self.swept = [use for use in captured.uses if use.key not in separate_keys]

    def uses_of(self, group: Group) -> list[ParameterUse]:
        """Return the recorded operations that use the parameters of ``group``."""
        return [self.uses[key] for key in group.keys]

    def sweep(self, block: range) -> Iterator[tuple[int, list[tuple[ParameterUse, UseGradients]]]]:
        """Run one backward pass per output direction in ``block``; yield the index within the block and the gradients.

        The gradients are pairs of a recorded use and its output gradient or tangents with one direction (k = 1); the list is
        empty if no use is on the graph of the outputs.
        """
        edges = [use.edge for use in self.swept]
        start: Tensor | GradientEdge | None = self.outputs
        readout = self.readout
        if self.readout_keys and readout is not None:
            # The outputs are those of the readout: start the sweeps at its input, with rows of W or of R.
            start = self.uses[readout.key].input_edge
            rows = readout.compressed if self.sweeps == len(readout.compressed) else readout.weight
            cotangents = rows[block.start : block.stop, None].expand(-1, self.n, -1)
        else:
            cotangents = self.cotangents(block).transpose(0, 1)
        for direction, cotangent in enumerate(cotangents):
            if edges and start is not None and self.outputs.requires_grad:
                gradients = torch.autograd.grad(start, edges, cotangent, retain_graph=True, allow_unused=True)
                pairs = zip(self.swept, gradients, strict=True)
                yield direction, [(use, one_direction(use, gradient, self.n)) for use, gradient in pairs]
            else:  # no use is on the graph of the outputs
                yield direction, []

    def cotangents(self, block: range) -> Tensor:
        """Return the cotangents (n examples, k, C outputs) of the k output directions in ``block``."""
        return self.directions.cotangents(self.outputs.detach(), block, self.labels)

    def factored_gradients(self) -> dict[int, UseGradients]:
        """Return the factors D_nk of output gradients of the form W_ck D_nk (example n, channel k), by key of the use.

        W_ck are the weights of the readout layer for output c. For the trace kernel D_nk is multiplied by √(Σ_c W_ck²).
        """
        gradients: dict[int, UseGradients] = {}
        if self.factored and self.readout is not None:
            weight = self.readout.weight
            ones = torch.ones(1, self.n, weight.shape[1], dtype=weight.dtype, device=weight.device)
            edges = [use.edge for use in self.factored]
            (channel_gradients,) = hidden_gradients(self.uses[self.readout.key], ones, edges)
            for use, gradient in zip(self.factored, channel_gradients, strict=True):
                if gradient is not None and self.directions.outputs == "trace":
                    gradient = scaled_by_channel(use, gradient, self.readout.scale)
                gradients[use.key] = one_direction(use, gradient, self.n)
        return gradients

    def gradients(self, block: range, *, all_directions: bool) -> dict[int, UseGradients]:
        """Return the gradients in the output directions of ``block``, by key of the recorded use.

        With ``all_directions`` the result includes those of :meth:`factored_gradients`, which serve all directions.
        """
        gradients: dict[int, UseGradients] = {}
        for direction, use_gradients in self.sweep(block):
            for use, gradient in use_gradients:
                store_direction(gradients, use, gradient, direction, len(block))
        return gradients | (self.factored_gradients() if all_directions else {})


class ResidentRows:
    """All examples of one side of the kernel, whose autograd graphs stay in memory during one backward pass per direction.

    Output gradients of the uses in ``streaming`` are returned per direction; those of the other uses are collected.
    """

    def __init__(self, forward_passes: Sequence[ForwardPass], numbers_per_row: int, streaming: set[int]) -> None:
        self.forward_passes, self.streaming = forward_passes, streaming
        self.n = sum(forward_pass.n for forward_pass in forward_passes)
        outputs = forward_passes[0].outputs
        self.stream_buffer = torch.empty(self.n * numbers_per_row, dtype=outputs.dtype, device=outputs.device)
        self.collected: list[dict[int, UseGradients]] = [{} for _ in forward_passes]

    def factored_gradients(self) -> list[dict[int, UseGradients]]:
        """Return the result of :meth:`ForwardPass.factored_gradients` for each forward pass."""
        return [forward_pass.factored_gradients() for forward_pass in self.forward_passes]

    def sweep(self, direction: int) -> list[dict[int, UseGradients]]:
        """Run the backward pass of one direction and return, per forward pass, the gradients of the streaming uses by key.

        The gradients of the other uses are stored in ``collected``.
        """
        gradients_per_pass = []
        for forward_pass, collected in zip(self.forward_passes, self.collected, strict=True):
            ((_, use_gradients),) = forward_pass.sweep(range(direction, direction + 1))
            gradients_per_pass.append(
                {use.key: gradient for use, gradient in use_gradients if use.key in self.streaming}
            )
            for use, gradient in use_gradients:
                if use.key not in self.streaming:
                    store_direction(collected, use, gradient, direction, forward_pass.sweeps)
        return gradients_per_pass

    def tangents(self, group: Group, gradients: Sequence[dict[int, UseGradients]], k: int, combine: Combine) -> Buffers:
        """Return the tangents of one group for all examples in k output directions, as named tensors.

        ``gradients`` holds one dict per forward pass. Groups with ``streams`` share a buffer that the next call overwrites.
        """
        buffer_shape, buffer = group.buffer_shape(self.n, k), None
        if buffer_shape is not None:
            buffer = (
                self.stream_buffer[: buffer_shape[0] * buffer_shape[1]].view(buffer_shape)
                if group.streams
                else self.stream_buffer.new_empty(buffer_shape)
            )
        assembler = TangentAssembler(self.n, buffer)
        for forward_pass, use_gradients in zip(self.forward_passes, gradients, strict=True):
            n = forward_pass.n
            out = None if buffer is None else buffer[assembler.start : assembler.start + n]
            cache = forward_pass.activation_cache if group.streams else None
            group_gradients = [use_gradients.get(key) for key in group.keys]
            assembler.add(
                group.write(forward_pass.uses_of(group), group_gradients, n, k, combine, cache=cache, out=out)
            )
        return assembler.buffers

    def drop(self, group: Group) -> None:
        """Free the collected gradients of a group."""
        for collected in self.collected:
            for key in group.keys:
                collected.pop(key, None)


def store_direction(
    stored: dict[int, UseGradients], use: ParameterUse, gradient: UseGradients, direction: int, k: int
) -> None:
    """Write the gradient of one use in one of k directions into ``stored``, which maps the key of a use to its gradients.

    Output gradients get their k directions along the axis that the rule asks for, tangents along axis 1; None means 0.
    """
    target = stored.get(use.key)
    if gradient is None:
        if isinstance(target, Tensor):
            target.select(use.rule.direction_axis(use) % target.ndim, direction).zero_()
        elif target is not None:
            for tangents in target.values():
                tangents[:, direction] = 0.0
        return
    if isinstance(gradient, Tensor):
        axis = use.rule.direction_axis(use) % gradient.ndim
        if not isinstance(target, Tensor):
            shape = (*gradient.shape[:axis], k, *gradient.shape[axis + 1 :])
            target = stored[use.key] = gradient.new_empty(shape) if direction == 0 else gradient.new_zeros(shape)
        target.select(axis, direction).copy_(gradient.select(axis, 0))
        return
    if not isinstance(target, dict):
        target = stored[use.key] = {slot: t.new_zeros(len(t), k, *t.shape[2:]) for slot, t in gradient.items()}
    for slot, tangent in gradient.items():
        target[slot][:, direction] = tangent[:, 0]


def one_direction(use: ParameterUse, gradient: Tensor | None, n: int) -> UseGradients:
    """Return the output gradient of a use with an axis of one direction, or None if ``gradient`` is None.

    If the rule of the use has no outer-product form, return instead the tangents of its n examples, by slot.
    """
    if gradient is None:
        return None
    rows = use.rule.arrange(use, use.batch_axis.rows(gradient, n))
    with_direction = rows.unsqueeze(use.rule.direction_axis(use) % (rows.ndim + 1))
    if use.rule.outer_shape(use, n) is not None:
        return with_direction
    return use.rule.direct_tangents(use, with_direction, n)  # reduced at once, while the gradient is in cache
