"""Network under analysis: float64, with weights set from recorded states or given block by block of the rows.

Weights that are computed from parameters (weight norm) are not an affine function of them, and operations without a rule
cannot be given other weights: such networks take one pass for each block and place. So do networks that mix the rows of a
batch, or whose operations cannot run on some of the rows (tested once, on four rows).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kernelmem.core.batches import Rows
from kernelmem.core.errors import VerificationError
from kernelmem.recording.replay import Forward, random_state, set_modes
from kernelmem.tangents.capture import Capture
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian
from kernelmem.tangents.derivatives.jvp import Linearized, differentiable_kernels, load_dual_rules
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.prepare import check_eval_mode, prepare
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import PassMismatchError, Survey, misplaced_names, survey
from kernelmem.trajectory.network.capture_pass import capture_pass
from kernelmem.trajectory.network.shared_passes import passes_are_shared
from kernelmem.trajectory.network.tangent_factors import (
    DenseTangents,
    FactoredTangents,
    Tangents,
    output_gradients,
    to_dense,
)
from kernelmem.trajectory.network.weight_blocks import (
    BlockForward,
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
        """Copy the model and put the modules ``evaluating`` in eval mode and the others in train mode.

        If ``evaluating`` is None, all modules are in eval mode.
        """
        self.prepared = prepare(
            model, rows, forward=forward, parameters=parameters, dtype=torch.float64, device="cpu", evaluation=True
        )
        self.parameters = self.prepared.parameters
        if evaluating is None:  # normalization without running statistics mixes rows even in eval mode
            check_eval_mode(self.prepared.module)
        self.test_rows = take(rows.to(dtype=torch.float64, device=torch.device("cpu")), torch.arange(4) % rows.n)
        self.sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        starts = [0]
        for size in self.sizes.values():
            starts.append(starts[-1] + size)
        self.slices = {name: slice(a, b) for name, a, b in zip(self.sizes, starts[:-1], starts[1:], strict=True)}
        self.n_parameters, self.n_outputs = starts[-1], self.prepared.n_outputs
        module = self.prepared.module
        self.shared_tensor_ids = frozenset(id(tensor) for tensor in [*module.parameters(), *module.buffers()])
        self.piecewise: bool | None = None  # True if it has operations with kinks; None: not known yet
        self._modes: frozenset[str] | None = None
        self._checked_places: set[tuple[frozenset[str] | None, int, int]] = set()
        self._surveys: dict[frozenset[str] | None, tuple[Survey, bool, bool]] = {}  # by modes
        if evaluating is not None:
            self.set_modes(evaluating)
        else:
            self._update_survey(None)

    def _update_survey(self, modes: frozenset[str] | None) -> None:
        """Survey how the network uses its parameters in its current modes, once for each combination of modes."""
        self._modes = modes
        if modes in self._surveys:
            self.survey, self.affine, self.supports_blocks = self._surveys[modes]
            return
        self.affine = self.supports_blocks = False
        with seeded(None):
            self.survey = survey(self.prepared, self.test_rows, RULES, certify=not self._mixes_rows())
            # Derived weights are not affine in the parameters; operations without a rule are not captured.
            derived = any(use.derived for use in self.capture(take(self.test_rows, torch.arange(2))).uses)
            self.affine = not self.survey.dense and not derived
            can_share = passes_are_shared() and self.affine and not self.survey.located
            self.supports_blocks = can_share and self._blocks_are_independent()
        self._surveys[modes] = self.survey, self.affine, self.supports_blocks

    def _mixes_rows(self) -> bool:
        """Return True if outputs depend on other rows of the batch: batch normalization in training mode."""
        return any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            for module in self.prepared.module.modules()
        )

    @property
    def numbers_per_row(self) -> int:
        """Approximate number of floating-point numbers that one pass keeps in memory per row."""
        return 2 * self.survey.saved + sum(sum(pair) for pair in self.survey.elements.values()) + 1

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy recorded parameters and buffers into the network."""
        with torch.no_grad():
            for name, tensor in [*self.prepared.module.named_parameters(), *self.prepared.module.named_buffers()]:
                if name in state:
                    tensor.copy_(state[name])

    def supports_shared_passes(self, evaluating: frozenset[str]) -> bool:
        """Return True if steps with different weights can share a pass with the modules ``evaluating`` in eval mode."""
        self.set_modes(evaluating)
        return self.supports_blocks

    def set_modes(self, evaluating: frozenset[str]) -> None:
        """Put the named modules in eval mode and all others in train mode."""
        set_modes(self.prepared.module, evaluating)
        self._update_survey(evaluating)

    def parameter_vector(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the selected parameters of a state as one vector (P,)."""
        return torch.cat([state[name].detach().double().flatten() for name in self.parameters])

    def outputs(self, rows: Rows, blocks: Blocks | None = None) -> Tensor:
        """Return the C outputs of n rows, (n, C), at the current weights, or at the weights in ``blocks``."""
        with torch.no_grad():
            outputs = None
            for index, run in self.passes(rows, blocks):
                if len(index) == rows.n:
                    return run()
                outputs = torch.empty(rows.n, self.n_outputs, dtype=torch.float64) if outputs is None else outputs
                outputs[index] = run()
        assert outputs is not None
        return outputs

    def passes(self, rows: Rows, blocks: Blocks | None = None) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Yield, for each pass that the outputs of n rows take, the indices of its rows and a function that runs it.

        There is one pass, unless the network cannot evaluate rows with different weights together.
        """
        if blocks is not None and not self._in_one_pass(blocks):
            for index, _ in self._visit_weights(blocks):
                yield index, partial(self._run, take(rows, index), None)
        else:
            yield torch.arange(rows.n), partial(self._run, rows, blocks)

    def _run(self, rows: Rows, blocks: Blocks | None) -> Tensor:
        if blocks is None:
            return self.prepared.outputs(rows.slice(0, rows.n), rows.n)
        arguments = (self.survey.batch_axes, self.shared_tensor_ids, self.parameters, RULES, self.survey.skip)
        with BlockForward(blocks, *arguments):
            return self.prepared.outputs(rows.slice(0, rows.n), rows.n)

    def slopes(
        self, rows: Rows, blocks: Blocks, directions: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs f(x), (n, C), of n rows, and their derivatives, (n, C).

        These are along ``directions`` (S, *shape for each parameter), or along the segment of each row if it is None.
        """
        if not self._in_one_pass(blocks):
            return self._slopes_per_block(rows, blocks, directions)
        load_dual_rules()
        with differentiable_kernels(), forward_ad.dual_level():
            dual = dual_places(blocks) if directions is None else dual_blocks(blocks, directions)
            outputs, slopes = forward_ad.unpack_dual(self.outputs(rows, dual))
            return outputs, torch.zeros_like(outputs) if slopes is None else slopes

    def tangent_factors(
        self,
        rows: Rows,
        directions: Directions,
        blocks: Blocks | None = None,
        *,
        row_axes: tuple[int, int, int] | None = None,
    ) -> tuple[Tangents, Tensor]:
        """Return the tangents Σ_q Σ_c v_kc ∂f_c/∂θ of S · r rows, summed over q nodes, and the outputs f (n, C).

        The n = S · q · r rows lie in the order ``row_axes`` = (S, q, r), with None for (1, 1, n). The k directions v
        (n, k, C) are computed by ``directions`` from the outputs and the indices of the rows; θ are the parameters.
        """
        row_axes = row_axes or (1, 1, rows.n)
        if not self.affine or (blocks is not None and not self._in_one_pass(blocks)):
            return self._dense_tangents_per_block(rows, directions, blocks, row_axes)
        captured = self.capture(rows, blocks)
        if not self.affine:  # found out in this pass
            return self._dense_tangents_per_block(rows, directions, blocks, row_axes)
        outputs = captured.outputs.detach()
        cotangents = directions(outputs, torch.arange(rows.n))
        gradients = output_gradients(captured, cotangents)
        return FactoredTangents(captured, gradients, self.sizes, row_axes, cotangents.shape[1]), outputs

    def tangents(self, rows: Rows, directions: Directions, blocks: Blocks | None = None) -> tuple[Tensor, Tensor]:
        """Return Σ_c v_nkc ∂f_c(x_n)/∂θ, (n, k, P), and the outputs f (n, C), for n rows and P parameters θ.

        The k directions v (n, k, C) are computed by ``directions`` from the outputs and the indices of the rows.
        """
        factors, outputs = self.tangent_factors(rows, directions, blocks)
        return to_dense(factors, list(self.sizes))[0], outputs

    def gradient(
        self, rows: Rows, loss: Callable[[Tensor], Tensor], state: Mapping[str, Tensor], random: bytes | None
    ) -> dict[str, Tensor]:
        """Return the gradient, by parameter name, of a scalar loss of the outputs at the weights and buffers of ``state``.

        ``random`` is the recorded random state, with which random numbers are drawn as in the run.
        """
        self.set_state(state)
        with seeded(random), torch.enable_grad():
            value = loss(self.prepared.outputs(rows.slice(0, rows.n), rows.n))
            gradients = torch.autograd.grad(
                value, list(self.parameters.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(self.parameters, gradients, strict=True))

    def capture(self, rows: Rows, blocks: Blocks | None = None) -> Capture:
        """Run one forward pass, capture every use of the parameters, and locate the rows of each use."""
        while True:
            try:
                return self._capture(rows, blocks)
            except PassMismatchError as mismatch:
                if blocks is not None and passes_are_shared():
                    raise
                located, dense = self.survey.located, frozenset(self.survey.dense)
                if mismatch.names <= dense:
                    raise VerificationError(
                        f"a model that uses {', '.join(sorted(mismatch.names)[:3])} in another way in each pass",
                        expected="the same computation in each pass over the same rows",
                        hint="remove randomness other than dropout from the forward pass",
                    ) from mismatch
                dense |= mismatch.names & located
                with seeded(None):
                    self.survey = survey(
                        self.prepared,
                        self.test_rows,
                        RULES,
                        located=(located | mismatch.names) - dense,
                        dense=dense,
                        certify=not self._mixes_rows(),
                    )
                self.affine = self.affine and not self.survey.dense
                self.supports_blocks = False
                self._surveys[self._modes] = self.survey, self.affine, self.supports_blocks

    def _capture(self, rows: Rows, blocks: Blocks | None) -> Capture:
        captured = capture_pass(self.prepared, self.survey, rows, blocks, self.shared_tensor_ids)
        places = self._modes, len(captured.uses), rows.n
        if places not in self._checked_places and not self._mixes_rows():
            names = misplaced_names(captured)
            if names:
                raise PassMismatchError(frozenset(names))
            self._checked_places.add(places)
        return captured

    def _in_one_pass(self, blocks: Blocks) -> bool:
        """Return True if one pass can evaluate rows with the weights of all these blocks."""
        return self.supports_blocks or (self.affine and len(blocks.counts) == 1 and passes_are_shared())

    def _visit_weights(self, blocks: Blocks) -> Iterator[tuple[Tensor, int]]:
        """Set the weights of every block and place in turn, and yield the indices of the rows there with the block."""
        for block, rows in blocks.row_slices():
            places = torch.zeros(rows.stop - rows.start) if blocks.places is None else blocks.places[rows]
            for place in torch.unique(places):
                self.set_state(blocks.state(block, float(place)))
                yield rows.start + (places == place).nonzero()[:, 0], block

    def _slopes_per_block(
        self, rows: Rows, blocks: Blocks, directions: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs and slopes of n rows, each (n, C), from one pass for each set of rows with equal weights."""
        outputs, slopes = (torch.empty(rows.n, self.n_outputs, dtype=torch.float64) for _ in range(2))
        for index, block in self._visit_weights(blocks):
            if directions is not None:
                direction = {name: u[block] for name, u in directions.items()}
            else:
                assert blocks.stop is not None
                direction = {name: blocks.stop[name][block] - w[block] for name, w in blocks.start.items()}
            linear = Linearized(self.prepared, rows.map(lambda leaf, i=index: leaf[i]), len(index), mode="reverse")
            slopes[index] = linear.jvp(direction)
            outputs[index] = self.outputs(take(rows, index))
        return outputs, slopes

    def _dense_tangents_per_block(
        self, rows: Rows, directions: Directions, blocks: Blocks | None, row_axes: tuple[int, int, int]
    ) -> tuple[Tangents, Tensor]:
        """Return dense tangents and the outputs (n, C) of n rows, from one pass for each set of rows with equal weights."""
        S, q, r = row_axes
        outputs = torch.empty(rows.n, self.n_outputs, dtype=torch.float64)
        total: Tensor | None = None
        groups = [(torch.arange(rows.n), 0)] if blocks is None else self._visit_weights(blocks)
        for index, _ in groups:
            block_rows = take(rows, index)
            random = torch.get_rng_state()
            captured = self.capture(block_rows)
            outputs[index] = captured.outputs.detach()
            cotangents = directions(captured.outputs.detach(), index)
            tangents = self._dense_tangents(block_rows, captured, cotangents, random)
            if total is None:
                total = torch.zeros(S, r, cotangents.shape[1], self.n_parameters, dtype=torch.float64)
            segment, row = index // (q * r), index % r
            total.index_put_((segment, row), tangents, accumulate=True)
        assert total is not None
        return DenseTangents(total, self.slices), outputs

    def _dense_tangents(self, rows: Rows, captured: Capture, cotangents: Tensor, random: Tensor) -> Tensor:
        """Return the tangents of n rows in k directions with respect to all P parameters, (n, k, P), from a captured pass.

        ``cotangents`` (n, k, C) are the directions in the space of the C outputs, ``random`` the random state before the
        pass.
        """
        n, k = cotangents.shape[:2]
        gradients = output_gradients(captured, cotangents)
        tangents = cotangents.new_zeros(n, k, self.n_parameters)
        names = [name for name in self.parameters if name not in self.survey.dense]
        group = MixedGroup(tuple(names), (), "", tuple(self.parameters[name].shape for name in names))
        use_gradients = [gradients.get(use.key) for use in captured.uses]
        if names:
            values = group.write(captured.uses, use_gradients, n, k, "full", like=cotangents)["tangents"]
            for name, part in zip(names, values.split([self.sizes[name] for name in names], 2), strict=True):
                tangents[:, :, self.slices[name]] = part
        if self.survey.dense:
            dense = self._dense_jacobian(rows, cotangents, random)
            sizes = [self.sizes[name] for name in self.survey.dense]
            for name, parameter_tangents in zip(self.survey.dense, dense.split(sizes, 2), strict=True):
                tangents[:, :, self.slices[name]] = parameter_tangents
        return tangents

    def _dense_jacobian(self, rows: Rows, cotangents: Tensor, random: Tensor) -> Tensor:
        """Return the tangents (n, k, p) of the p entries of the parameters that no rule covers.

        In eval mode every row is a pass of its own. In train mode the rows share dropout masks and batch statistics: there
        is one pass of the batch, with the random numbers of the captured one, and a backward pass for each row and direction.
        """
        names = list(self.survey.dense)
        if not any(module.training for module in self.prepared.module.modules()):
            single_rows = [rows.slice(i, i + 1) for i in range(rows.n)]
            return rowwise_jacobian(self.prepared, single_rows, names, cotangents)
        with random_state(random), torch.enable_grad():
            outputs = self.prepared.outputs(rows.slice(0, rows.n), rows.n)
        parameters = [self.parameters[name] for name in names]
        tangents = []
        for i, directions in enumerate(cotangents):
            for direction in directions:
                gradients = torch.autograd.grad(
                    outputs[i], parameters, direction, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                tangents.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(tangents).unflatten(0, cotangents.shape[:2])

    def _blocks_are_independent(self) -> bool:
        """Return True if one pass over blocks with different weights gives the outputs that each block gives separately."""
        rows = self.test_rows
        different_weights = {
            name: torch.stack([p.detach(), 0.9 * p.detach() - 0.01]) for name, p in self.parameters.items()
        }
        equal_weights = {name: torch.stack([p.detach(), p.detach()]) for name, p in self.parameters.items()}
        self.supports_blocks = True
        for weights, counts in ((different_weights, (1, 3)), (different_weights, (2, 2)), (equal_weights, (2, 2))):
            try:
                joint_outputs = self.outputs(rows, Blocks(counts, weights))
                unblocked = self.outputs(rows)
            except Exception:  # of any type, raised inside the user's module
                return False
            for block, block_rows in Blocks(counts, weights).row_slices():
                if weights is equal_weights:
                    separate_outputs = unblocked[block_rows]
                else:
                    self.set_state({name: w[block] for name, w in weights.items()})
                    separate_outputs = self.outputs(take(rows, torch.arange(block_rows.start, block_rows.stop)))
                    self.set_state({name: w[0] for name, w in equal_weights.items()})
                if not torch.allclose(joint_outputs[block_rows], separate_outputs, rtol=1e-9, atol=1e-12):
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
