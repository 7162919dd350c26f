"""Network under analysis: float64, with weights set from recorded states or given block by block of the rows.

Weights that are computed from parameters (weight norm) are not an affine function of them, and operations without a rule
cannot be given other weights: such networks take one pass for each block and place. So do networks that mix the rows of a
batch, or whose operations cannot run on some of the rows (tested once, on four rows).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kernelmem.core.batches import Rows
from kernelmem.recording.gradient_check import Forward, random_state
from kernelmem.recording.replay import set_modes
from kernelmem.tangents.capture import Capture, OperationRecorder, capture
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian
from kernelmem.tangents.derivatives.jvp import Linearized, differentiable_kernels, load_dual_rules
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.prepare import check_eval_mode, prepare
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import Survey, survey
from kernelmem.trajectory.network.tangent_factors import (
    DenseTangents,
    FactoredTangents,
    Tangents,
    join,
    output_gradients,
)
from kernelmem.trajectory.network.weight_blocks import (
    BlockForward,
    BlockRecorder,
    Blocks,
    dual_blocks,
    dual_places,
)

Directions = Callable[[Tensor, Tensor], Tensor]  # outputs (n, C), indices of the rows (n,) -> (n, k, C)


class Network:
    """A private float64 copy of a model whose weights are set from recorded states."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        *,
        parameters: Sequence[str],
        forward: Forward | None = None,
        evaluating: frozenset[str] | None = None,
    ) -> None:
        """Copy the model, with the modules ``evaluating`` in eval mode and the others in train mode; None: all in eval mode."""
        self.prepared = prepare(
            model, rows, forward=forward, parameters=parameters, dtype=torch.float64, device="cpu", evaluation=True
        )
        self.selected = self.prepared.parameters
        if evaluating is None:  # normalization without running statistics mixes rows even in eval mode
            check_eval_mode(self.prepared.module)
        self.test_rows = take(rows.to(dtype=torch.float64, device=torch.device("cpu")), torch.arange(4) % rows.n)
        self.sizes = {name: parameter.numel() for name, parameter in self.selected.items()}
        starts = [0]
        for size in self.sizes.values():
            starts.append(starts[-1] + size)
        self.slices = {name: slice(a, b) for name, a, b in zip(self.sizes, starts[:-1], starts[1:], strict=True)}
        self.n_parameters, self.n_outputs = starts[-1], self.prepared.n_outputs
        module = self.prepared.module
        self.fixed = frozenset(id(tensor) for tensor in [*module.parameters(), *module.buffers()])
        self.piecewise: bool | None = None  # whether it has operations with kinks; None: not known yet
        self._surveys: dict[frozenset[str] | None, tuple[Survey, bool, bool]] = {}  # by modes
        if evaluating is not None:
            self.set_modes(evaluating)
        else:
            self._update_survey(None)

    def _update_survey(self, modes: frozenset[str] | None) -> None:
        """Survey how the network uses its parameters in its current modes, once for each combination of modes."""
        if modes in self._surveys:
            self.survey, self.affine, self.in_blocks = self._surveys[modes]
            return
        with seeded(None):
            self.survey = survey(self.prepared, self.test_rows, RULES)
            # Derived weights are not affine in the parameters; operations without a rule are not captured.
            derived = any(use.derived for use in self.capture(take(self.test_rows, torch.arange(2))).uses)
            self.affine = not self.survey.dense and not derived
            self.in_blocks = self.affine and self._blocks_are_independent()
        self._surveys[modes] = self.survey, self.affine, self.in_blocks

    @property
    def row_numbers(self) -> int:
        """Numbers that a pass keeps per row (approximately)."""
        return 2 * self.survey.saved + sum(sum(pair) for pair in self.survey.elements.values()) + 1

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy recorded parameters and buffers into the network."""
        with torch.no_grad():
            for name, tensor in [*self.prepared.module.named_parameters(), *self.prepared.module.named_buffers()]:
                if name in state:
                    tensor.copy_(state[name])

    def takes_steps_together(self, evaluating: frozenset[str]) -> bool:
        """Return True if steps in these modes can share a pass."""
        self.set_modes(evaluating)
        return self.in_blocks

    def set_modes(self, evaluating: frozenset[str]) -> None:
        """Put these modules in eval mode and all others in train mode."""
        set_modes(self.prepared.module, evaluating)
        self._update_survey(evaluating)

    def flat(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the selected parameters of a state as one vector (P,)."""
        return torch.cat([state[name].detach().double().flatten() for name in self.selected])

    def outputs(self, rows: Rows, blocks: Blocks | None = None) -> Tensor:
        """Return f(x) (n, C) at the current weights, or at those of the blocks."""
        with torch.no_grad():
            if blocks is None:
                return self.prepared.outputs(rows.slice(0, rows.n), rows.n)
            if self._in_one_pass(blocks):
                arguments = (self.survey.batch_axes, self.fixed, self.selected, RULES, self.survey.skip)
                with BlockForward(blocks, *arguments):
                    return self.prepared.outputs(rows.slice(0, rows.n), rows.n)
            outputs = torch.empty(rows.n, self.n_outputs, dtype=torch.float64)
            for index, _ in self._set_each(blocks):
                outputs[index] = self.outputs(take(rows, index))
            return outputs

    def slopes(
        self, rows: Rows, blocks: Blocks, directions: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return f(x) (n, C) and its derivative along ``directions`` (S, *shape), or with respect to each row's place."""
        if not self._in_one_pass(blocks):
            return self._slopes_each(rows, blocks, directions)
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
        row_axes: tuple[int, int, int] | None = None,
    ) -> tuple[Tangents, Tensor]:
        """Return Σ_q Σ_c v_kc ∂f_c/∂θ of n = S · q · r rows in the order of ``row_axes``, and their outputs (n, C).

        The directions v (n, k, C) are computed from the outputs and the indices of the rows. ``row_axes`` None: (1, 1, n).
        """
        row_axes = row_axes or (1, 1, rows.n)
        if not self.affine or (blocks is not None and not self._in_one_pass(blocks)):
            return self._dense_tangents_each(rows, directions, blocks, row_axes)
        captured = self.capture(rows, blocks)
        outputs = captured.outputs.detach()
        cotangents = directions(outputs, torch.arange(rows.n))
        gradients = output_gradients(captured, cotangents)
        return FactoredTangents(captured, gradients, self.sizes, row_axes, cotangents.shape[1]), outputs

    def tangents(self, rows: Rows, directions: Directions, blocks: Blocks | None = None) -> tuple[Tensor, Tensor]:
        """Return Σ_c v_nkc ∂f_c(x_n)/∂θ as (n, k, P), and the outputs (n, C)."""
        factors, outputs = self.factors(rows, directions, blocks)
        return join(factors, list(self.sizes))[0], outputs

    def gradient(
        self, rows: Rows, loss: Callable[[Tensor], Tensor], state: Mapping[str, Tensor], random: bytes | None
    ) -> dict[str, Tensor]:
        """Return the gradient of a scalar loss of the outputs at a state, with the recorded random numbers."""
        self.set_state(state)
        with seeded(random), torch.enable_grad():
            value = loss(self.prepared.outputs(rows.slice(0, rows.n), rows.n))
            gradients = torch.autograd.grad(
                value, list(self.selected.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(self.selected, gradients, strict=True))

    def capture(self, rows: Rows, blocks: Blocks | None = None) -> Capture:
        """Run one forward pass and capture every use of the parameters."""

        def recorder(*arguments: Any) -> OperationRecorder:
            if blocks is None:
                return OperationRecorder(*arguments)
            return BlockRecorder(blocks, self.survey.batch_axes, self.fixed, *arguments)

        survey = self.survey
        return capture(
            self.prepared,
            rows.slice(0, rows.n),
            rows.n,
            RULES,
            skip=survey.skip,
            dense=survey.dense,
            batch_axes=survey.batch_axes,
            recorder=recorder,
        )

    def _in_one_pass(self, blocks: Blocks) -> bool:
        return self.in_blocks or (self.affine and len(blocks.counts) == 1)

    def _set_each(self, blocks: Blocks) -> Iterator[tuple[Tensor, int]]:
        """Set the weights of every block and place in turn; yield the indices of the rows there, and the block."""
        for block, rows in blocks.each():
            places = torch.zeros(rows.stop - rows.start) if blocks.places is None else blocks.places[rows]
            for place in torch.unique(places):
                self.set_state(blocks.state(block, float(place)))
                yield rows.start + (places == place).nonzero()[:, 0], block

    def _slopes_each(
        self, rows: Rows, blocks: Blocks, directions: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        outputs, slopes = (torch.empty(rows.n, self.n_outputs, dtype=torch.float64) for _ in range(2))
        for index, block in self._set_each(blocks):
            if directions is not None:
                along = {name: u[block] for name, u in directions.items()}
            else:
                assert blocks.stop is not None
                along = {name: blocks.stop[name][block] - w[block] for name, w in blocks.start.items()}
            linear = Linearized(self.prepared, rows.map(lambda leaf, i=index: leaf[i]), len(index), mode="reverse")
            slopes[index] = linear.jvp(along)
            outputs[index] = self.outputs(take(rows, index))
        return outputs, slopes

    def _dense_tangents_each(
        self, rows: Rows, directions: Directions, blocks: Blocks | None, row_axes: tuple[int, int, int]
    ) -> tuple[Tangents, Tensor]:
        """Return dense tangents and outputs, with one pass for all rows with the same weights."""
        S, q, r = row_axes
        outputs = torch.empty(rows.n, self.n_outputs, dtype=torch.float64)
        total: Tensor | None = None
        groups = [(torch.arange(rows.n), 0)] if blocks is None else self._set_each(blocks)
        for index, _ in groups:
            part = take(rows, index)
            captured = self.capture(part)
            outputs[index] = captured.outputs.detach()
            cotangents = directions(captured.outputs.detach(), index)
            tangents = self._dense_tangents(part, captured, cotangents)
            if total is None:
                total = torch.zeros(S, r, cotangents.shape[1], self.n_parameters, dtype=torch.float64)
            segment, row = index // (q * r), index % r
            total.index_put_((segment, row), tangents, accumulate=True)
        assert total is not None
        return DenseTangents(total, self.slices), outputs

    def _dense_tangents(self, rows: Rows, captured: Capture, cotangents: Tensor) -> Tensor:
        """Return the tangents with respect to all kinds of parameters: (n, k, P)."""
        n, k = cotangents.shape[:2]
        uses = {use.key: use for use in captured.uses}
        gradients = output_gradients(captured, cotangents)
        tangents = cotangents.new_zeros(n, k, self.n_parameters)
        shapes = {name: parameter.shape for name, parameter in self.selected.items()}
        for group in self.survey.groups:
            mixed = MixedGroup(group.names, group.keys, group.layer, tuple(shapes[name] for name in group.names))
            of_group = [gradients.get(key) for key in group.keys]
            values = mixed.write([uses[key] for key in group.keys], of_group, n, k, "full")["tangents"]
            sizes = [self.sizes[name] for name in group.names]
            for name, part in zip(group.names, values.split(sizes, 2), strict=True):
                tangents[:, :, self.slices[name]] = part
        if self.survey.dense:
            single = [rows.slice(i, i + 1) for i in range(n)]
            dense = rowwise_jacobian(self.prepared, single, list(self.survey.dense), cotangents)
            sizes = [self.sizes[name] for name in self.survey.dense]
            for name, part in zip(self.survey.dense, dense.split(sizes, 2), strict=True):
                tangents[:, :, self.slices[name]] = part
        return tangents

    def _blocks_are_independent(self) -> bool:
        """Check that blocks of rows with different weights in one pass have the outputs of each block alone."""
        rows = self.test_rows
        shifted = {name: torch.stack([p.detach(), 0.9 * p.detach() - 0.01]) for name, p in self.selected.items()}
        same = {name: torch.stack([p.detach(), p.detach()]) for name, p in self.selected.items()}
        self.in_blocks = True
        for weights, counts in ((shifted, (1, 3)), (shifted, (2, 2)), (same, (2, 2))):
            try:
                together = self.outputs(rows, Blocks(counts, weights))
                unblocked = self.outputs(rows)
            except Exception:  # of any type, raised inside the user's module
                return False
            for block, part in Blocks(counts, weights).each():
                index = torch.arange(part.start, part.stop)
                one = Blocks((len(index),), {name: w[block : block + 1] for name, w in weights.items()})
                alone = unblocked[part] if weights is same else self.outputs(take(rows, index), one)
                if not torch.allclose(together[part], alone, rtol=1e-9, atol=1e-12):
                    return False
        return True


def each_output(outputs: Tensor, _: Tensor) -> Tensor:
    """Return each output as a direction: (n, C, C)."""
    n, C = outputs.shape
    return torch.eye(C, dtype=outputs.dtype).expand(n, C, C)


def take(rows: Rows, index: Tensor) -> Rows:
    """Return the rows at ``index``, repeats allowed."""
    return Rows(rows.map(lambda leaf: leaf[index]), len(index))


def seeded(random: bytes | None) -> AbstractContextManager[None]:
    """Set torch's random state to the recorded one inside, and restore it outside."""
    return random_state(None if random is None else torch.frombuffer(bytearray(random), dtype=torch.uint8))
