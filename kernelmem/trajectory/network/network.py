"""The network under analysis: float64, its weights set from recorded states, or given block by block of the rows.

Weights that are computed from parameters (weight norm) are no affine function of them, and operations that no rule knows
take no weights of ours: such networks take one pass for each block and place. So do networks in which the rows of a batch
see each other, or whose operations cannot be run on some of the rows (found out once, on three rows).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kernelmem.core.batches import Rows
from kernelmem.recording.replay import set_modes
from kernelmem.tangents.capture import Capture, OperationRecorder, capture
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian
from kernelmem.tangents.derivatives.jvp import Linearized, differentiable_kernels, load_dual_rules
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.prepare import check_eval_mode, prepare
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import Survey, survey
from kernelmem.trajectory.network.tangent_factors import DenseTangents, FactoredTangents, Tangents, join, sweeps
from kernelmem.trajectory.network.weight_blocks import (
    BlockForward,
    BlockRecorder,
    Blocks,
    dual_blocks,
    dual_places,
    each,
)

__all__ = ["Directions", "Network", "each_output", "seeded", "take"]

Directions = Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), ordinals (n,) -> (n, k, C)


class Network:
    """A private float64 copy of a model whose weights are set from recorded states."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        *,
        parameters: Sequence[str],
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        evaluating: frozenset[str] | None = None,
    ) -> None:
        """Copy the model; None: all of it in eval mode, otherwise the modules of these names, the others in train mode."""
        self.prepared = prepare(
            model, rows, forward=forward, parameters=parameters, dtype=torch.float64, device="cpu", evaluation=True
        )
        self.selected = self.prepared.parameters
        if evaluating is None:  # normalization without running statistics mixes rows even so
            check_eval_mode(self.prepared.module)
        self.few = take(rows.to(dtype=torch.float64, device=torch.device("cpu")), torch.arange(4) % rows.n)
        self.sizes = {name: parameter.numel() for name, parameter in self.selected.items()}
        starts = [0]
        for size in self.sizes.values():
            starts.append(starts[-1] + size)
        self.slices = {name: slice(a, b) for name, a, b in zip(self.sizes, starts[:-1], starts[1:], strict=True)}
        self.n_parameters, self.n_outputs = starts[-1], self.prepared.n_outputs
        module = self.prepared.module
        self.fixed = frozenset(id(tensor) for tensor in [*module.parameters(), *module.buffers()])
        self.piecewise: bool | None = None  # whether it has operations with kinks; None: not seen yet
        self._known: dict[frozenset[str] | None, tuple[Survey, bool, bool]] = {}
        if evaluating is not None:
            self.set_modes(evaluating)
        else:
            self._look(None)

    def _look(self, modes: frozenset[str] | None) -> None:
        """Find out what the network does with its parameters in these modes, which it is in: once."""
        if modes in self._known:
            self.found, self.affine, self.in_blocks = self._known[modes]
            return
        with seeded(None):
            self.found = survey(self.prepared, self.few, RULES)
            # Derived weights are no affine function of the parameters; what no rule covers is not met at all.
            derived = any(use.derived for use in self.capture(take(self.few, torch.arange(2))).uses)
            self.affine = not self.found.dense and not derived
            self.in_blocks = self.affine and self._rows_are_their_own()
        self._known[modes] = self.found, self.affine, self.in_blocks

    @property
    def row_numbers(self) -> int:
        """About what a pass keeps of a row."""
        return 2 * self.found.saved + sum(sum(pair) for pair in self.found.elements.values()) + 1

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Put recorded parameters and buffers in place."""
        with torch.no_grad():
            for name, tensor in [*self.prepared.module.named_parameters(), *self.prepared.module.named_buffers()]:
                if name in state:
                    tensor.copy_(state[name])

    def takes_steps_together(self, evaluating: frozenset[str]) -> bool:
        """Whether steps in these modes can share a pass."""
        self.set_modes(evaluating)
        return self.in_blocks

    def set_modes(self, evaluating: frozenset[str]) -> None:
        """Put every module in train mode, but these."""
        set_modes(self.prepared.module, evaluating)
        self._look(evaluating)

    def flat(self, state: Mapping[str, Tensor]) -> Tensor:
        """The selected parameters of a state as one vector (P,)."""
        return torch.cat([state[name].detach().double().flatten() for name in self.selected])

    def outputs(self, rows: Rows, blocks: Blocks | None = None) -> Tensor:
        """F at the weights that are set, or at those of the blocks: (n, C)."""
        with torch.no_grad():
            if blocks is None:
                return self.prepared.outputs(rows.slice(0, rows.n), rows.n)
            if self._in_one_pass(blocks):
                arguments = (self.found.batch_axes, self.fixed, self.selected, RULES, self.found.skip)
                with BlockForward(blocks, *arguments):
                    return self.prepared.outputs(rows.slice(0, rows.n), rows.n)
            found = torch.empty(rows.n, self.n_outputs, dtype=torch.float64)
            for index, _ in self._apart(blocks):
                found[index] = self.outputs(take(rows, index))
            return found

    def slopes(
        self, rows: Rows, blocks: Blocks, directions: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """F (n, C), and its derivative: along ``directions`` (S, *shape), or by each row's place on its line."""
        if not self._in_one_pass(blocks):
            return self._slopes_apart(rows, blocks, directions)
        load_dual_rules()
        with differentiable_kernels(torch.device("cpu")), forward_ad.dual_level():
            dual = dual_places(blocks) if directions is None else dual_blocks(blocks, directions)
            outputs, slopes = forward_ad.unpack_dual(self.outputs(rows, dual))
            return outputs, torch.zeros_like(outputs) if slopes is None else slopes

    def factors(
        self,
        rows: Rows,
        directions: Directions,
        blocks: Blocks | None = None,
        *,
        lying: tuple[int, int, int] | None = None,
    ) -> tuple[Tangents, Tensor]:
        """Σ_q Σ_c v_kc ∂f_c/∂θ of rows that lie as (S, q, r), and their outputs (n, C).

        The directions v (n, k, C) are made of the outputs and the ordinals of the rows. ``lying`` None: (1, 1, n).
        """
        lying = lying or (1, 1, rows.n)
        if not self.affine or (blocks is not None and not self._in_one_pass(blocks)):
            return self._formed_apart(rows, directions, blocks, lying)
        captured = self.capture(rows, blocks)
        outputs = captured.outputs.detach()
        cotangents = directions(outputs, torch.arange(rows.n))
        stacks = sweeps(captured, cotangents)
        return FactoredTangents(captured, stacks, self.sizes, lying, cotangents.shape[1]), outputs

    def tangents(self, rows: Rows, directions: Directions, blocks: Blocks | None = None) -> tuple[Tensor, Tensor]:
        """Σ_c v_nkc ∂f_c(x_n)/∂θ as (n, k, P), and the outputs (n, C)."""
        found, outputs = self.factors(rows, directions, blocks)
        return join(found, list(self.sizes))[0], outputs

    def gradient(
        self, batch: Any, loss: Callable[[Tensor, Tensor], Tensor], state: Mapping[str, Tensor], random: bytes | None
    ) -> dict[str, Tensor]:
        """The gradient of Σ_i weight_i · loss_i of a batch at a state, with the random numbers that it had."""
        self.set_state(state)
        with seeded(random), torch.enable_grad():
            outputs = self.prepared.outputs(batch.rows.slice(0, batch.rows.n), batch.rows.n)
            total = (batch.weights * loss(outputs, batch.targets)).sum()
            found = torch.autograd.grad(total, list(self.selected.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(self.selected, found, strict=True))

    def capture(self, rows: Rows, blocks: Blocks | None = None) -> Capture:
        """One forward pass that meets every use of the parameters."""

        def recorder(*arguments: Any) -> OperationRecorder:
            if blocks is None:
                return OperationRecorder(*arguments)
            return BlockRecorder(blocks, self.found.batch_axes, self.fixed, *arguments)

        found = self.found
        return capture(
            self.prepared,
            rows.slice(0, rows.n),
            rows.n,
            RULES,
            skip=found.skip,
            dense=found.dense,
            batch_axes=found.batch_axes,
            recorder=recorder,
        )

    def _in_one_pass(self, blocks: Blocks) -> bool:
        return self.in_blocks or (self.affine and len(blocks.counts) == 1)

    def _apart(self, blocks: Blocks) -> Iterator[tuple[Tensor, int]]:
        """Set the weights of every block and place in turn; give the rows there, and the block."""
        for block, own in each(blocks):
            places = torch.zeros(own.stop - own.start) if blocks.places is None else blocks.places[own]
            for place in torch.unique(places):
                self.set_state(blocks.state(block, float(place)))
                yield own.start + (places == place).nonzero()[:, 0], block

    def _slopes_apart(
        self, rows: Rows, blocks: Blocks, directions: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        outputs, slopes = (torch.empty(rows.n, self.n_outputs, dtype=torch.float64) for _ in range(2))
        for index, block in self._apart(blocks):
            if directions is not None:
                along = {name: u[block] for name, u in directions.items()}
            else:
                assert blocks.stop is not None
                along = {name: blocks.stop[name][block] - w[block] for name, w in blocks.start.items()}
            linear = Linearized(self.prepared, rows.map(lambda leaf, i=index: leaf[i]), len(index), mode="reverse")
            slopes[index] = linear.jvp(along)
            outputs[index] = self.outputs(take(rows, index))
        return outputs, slopes

    def _formed_apart(
        self, rows: Rows, directions: Directions, blocks: Blocks | None, lying: tuple[int, int, int]
    ) -> tuple[Tangents, Tensor]:
        """One pass for all rows with the same weights, tangents in full."""
        S, q, r = lying
        outputs = torch.empty(rows.n, self.n_outputs, dtype=torch.float64)
        total: Tensor | None = None
        groups = [(torch.arange(rows.n), 0)] if blocks is None else self._apart(blocks)
        for index, _ in groups:
            own = take(rows, index)
            captured = self.capture(own)
            outputs[index] = captured.outputs.detach()
            cotangents = directions(captured.outputs.detach(), index)
            found = self._whole(own, captured, cotangents)
            if total is None:
                total = torch.zeros(S, r, cotangents.shape[1], self.n_parameters, dtype=torch.float64)
            segment, row = index // (q * r), index % r
            total.index_put_((segment, row), found, accumulate=True)
        assert total is not None
        return DenseTangents(total, self.slices), outputs

    def _whole(self, rows: Rows, captured: Capture, cotangents: Tensor) -> Tensor:
        """Tangents of every kind of parameter: (n, k, P)."""
        n, k = cotangents.shape[:2]
        uses = {use.key: use for use in captured.uses}
        stacks = sweeps(captured, cotangents)
        tangents = cotangents.new_zeros(n, k, self.n_parameters)
        shapes = {name: parameter.shape for name, parameter in self.selected.items()}
        for group in self.found.groups:
            mixed = MixedGroup(group.names, group.keys, group.layer, tuple(shapes[name] for name in group.names))
            own = [stacks.get(key) for key in group.keys]
            found = mixed.write([uses[key] for key in group.keys], own, n, k, "full")["tangents"]
            sizes = [self.sizes[name] for name in group.names]
            for name, part in zip(group.names, found.split(sizes, 2), strict=True):
                tangents[:, :, self.slices[name]] = part
        if self.found.dense:
            single = [rows.slice(i, i + 1) for i in range(n)]
            dense = rowwise_jacobian(self.prepared, single, list(self.found.dense), cotangents)
            sizes = [self.sizes[name] for name in self.found.dense]
            for name, part in zip(self.found.dense, dense.split(sizes, 2), strict=True):
                tangents[:, :, self.slices[name]] = part
        return tangents

    def _rows_are_their_own(self) -> bool:
        """Whether rows in blocks with weights of their own give what each block gives by itself."""
        few = self.few
        shifted = {name: torch.stack([p.detach(), 0.9 * p.detach() - 0.01]) for name, p in self.selected.items()}
        same = {name: torch.stack([p.detach(), p.detach()]) for name, p in self.selected.items()}
        self.in_blocks = True
        for weights, counts in ((shifted, (1, 3)), (shifted, (2, 2)), (same, (2, 2))):
            try:
                together = self.outputs(few, Blocks(counts, weights))
                whole = self.outputs(few)
            except Exception:  # raised from inside the user's module, of many types
                return False
            for block, own in each(Blocks(counts, weights)):
                index = torch.arange(own.start, own.stop)
                one = Blocks((len(index),), {name: w[block : block + 1] for name, w in weights.items()})
                alone = whole[own] if weights is same else self.outputs(take(few, index), one)
                if not torch.allclose(together[own], alone, rtol=1e-9, atol=1e-12):
                    return False
        return True


def each_output(outputs: Tensor, _: Tensor) -> Tensor:
    """Each output by itself as a direction: (n, C, C)."""
    n, C = outputs.shape
    return torch.eye(C, dtype=outputs.dtype).expand(n, C, C)


def take(rows: Rows, index: Tensor) -> Rows:
    """The rows at ``index``, repeats allowed."""
    return Rows(rows.map(lambda leaf: leaf[index]), len(index))


@contextmanager
def seeded(random: bytes | None) -> Iterator[None]:
    """Draw from the recorded state of torch's generator inside, and leave that outside as it was."""
    before = torch.get_rng_state()
    if random is not None:
        torch.set_rng_state(torch.frombuffer(bytearray(random), dtype=torch.uint8))
    try:
        yield
    finally:
        torch.set_rng_state(before)
