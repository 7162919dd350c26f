"""Adjoint of one parameter with one number per row, function and entry of the parameter, in tiles.

A tile holds some entries of the parameter for all rows. It is contiguous in memory, and small enough that some of its rows,
the mean tangents of these rows and the gradients of a batch stay in cache while the recursion and the product use them.

With q = scale · J̄ / s + f · q⁺ and A = effect · q the tiles hold p = s q: the denominators s scale the gradients of the batch
instead of the mean tangents, and the product that forms J̄ adds it to p: p = scale · J̄ + f · (s / s⁺) p⁺.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kernelmem.trajectory.ledger.averaged_weights import WeightAverage
from kernelmem.trajectory.ledger.sweep_setup import Block
from kernelmem.trajectory.network.tangent_factors import DenseTangents, Tangents, ZeroTangents
from kernelmem.trajectory.optimizers import AdjointState, ParameterFilter, ParameterStep, Recursion

SLICE_PARAMETERS = 2048  # approximate number of parameters that are contracted at a time
SLICE_NUMBERS = 2**18  # entries of their tangents, few enough to stay in cache
SLICE_ROWS = 128  # smallest number of rows of a matrix product


@dataclass(frozen=True)
class _Rows:
    """Some rows of x in a block of steps, and the ledger's decay line (m, k)."""

    block: Block
    tangents: Tangents
    indices: Tensor
    decay: Tensor
    average: WeightAverage | None


@dataclass(frozen=True)
class _Step:
    """Step s of a block with its recursion, for all entries of the parameter or those of a tile."""

    s: int
    parameter_step: ParameterStep
    recursion: Recursion
    carry: float | Tensor = 0.0  # factor of p
    gradients: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, width)
    divisor: Tensor | None = None  # of p, if the gradients are not divided by the denominators


class DenseAdjoint:
    """Recursion of one parameter for m rows and k functions, with its adjoint (m, k, size) if something is carried."""

    def __init__(self, name: str, parameter_filter: ParameterFilter, sizes: tuple[int, int, int]) -> None:
        """Start with zeros for ``sizes`` = (m, k, size); memory for them is taken when a step has momentum."""
        self.name, self.filter, self.sizes = name, parameter_filter, sizes
        self.slices: list[slice] = []
        self.tiles: list[Tensor] = []  # q or p, (m, k, width) for each slice
        self.factor = 0.0  # by which the next step multiplies q
        self.denominator: Tensor | None = None  # of the last step that was processed, if tiles are p
        self._after_block: tuple[float, Tensor | None] = 0.0, None

    @property
    def is_carried(self) -> bool:
        """True if the adjoint is not known to be zero."""
        return bool(self.tiles)

    def set_tiles(self, tiles: list[tuple[slice, Tensor]], factor: float) -> None:
        """Set q to the ``tiles``, pairs of a slice of the parameter and q there."""
        self.slices, self.tiles = [part for part, _ in tiles], [tile for _, tile in tiles]
        self._after_block = factor, None
        self.finish_block()

    def finish_block(self) -> None:
        """Take over the state after a block, once all of its rows were added."""
        self.factor, self.denominator = self._after_block

    def add_block(
        self, block: Block, tangents: Tangents, row_indices: Tensor, decay: Tensor, average: WeightAverage | None
    ) -> None:
        """Apply the recursion to some rows in the steps of a block, and add their inner products and ``decay`` (m, k).

        ``average`` has a share in the mean tangents of all steps.
        """
        S, r, k = tangents.shape
        steps, slices = block.steps_of_parameter(self.name), self.slices
        if not slices:
            # Factored tangents are cut between units of the layer, dense ones anywhere.
            sliced = block.gradients if isinstance(tangents, DenseTangents | ZeroTangents) else tangents
            slices = sliced.parts(self.name, max(SLICE_PARAMETERS, SLICE_NUMBERS // (S * r * k)))
        if not self.tiles and any(step is not None and self.filter.has_momentum(step.options) for step in steps):
            m, self.slices = self.sizes[0], slices
            self.tiles = [torch.zeros(m, k, part.stop - part.start, dtype=torch.float64) for part in slices]
        rows = _Rows(block, tangents, row_indices, decay, average)
        moved = [(s, step, self.filter.recursion(step)) for s, step in enumerate(steps) if step is not None]
        multiples = [_Step(s, step, recursion) for s, step, recursion in moved if recursion is not None]
        if average is None and len(multiples) == len(moved):
            self._after_block = self._add_multiples(rows, multiples[::-1])
        else:
            assert self.denominator is None
            self._after_block = self._add_effects(rows, steps, slices), None

    def _chunks(self, rows: _Rows, part: slice) -> list[tuple[slice, slice | Tensor]]:
        """Return slices of the rows at hand that stay in cache with a slice of the parameter, and their indices in x."""
        S, r, k = rows.tangents.shape
        n_rows = max(-(-SLICE_ROWS // k), SLICE_NUMBERS // (S * k * (part.stop - part.start)))
        chunks = [slice(start, min(start + n_rows, r)) for start in range(0, r, n_rows)]
        contiguous = r == self.sizes[0]
        return [(chunk, chunk if contiguous else rows.indices[chunk]) for chunk in chunks]

    def _add_effects(self, rows: _Rows, steps: Sequence[ParameterStep | None], slices: list[slice]) -> float:
        """Add the effects A_t of any recursion, and return the factor of the step before the block."""
        block, factor = rows.block, self.factor
        for i, part in enumerate(slices):
            batch_gradients = block.gradients.form(self.name, part, slice(None))[0, :, 0]
            gradients = batch_gradients.split(block.batch_sizes)  # S tensors (B, width)
            part_steps = [None if step is None else step.entries(part) for step in steps]
            for chunk, indices in self._chunks(rows, part):
                J = rows.tangents.form(self.name, part, chunk, reuse=True)  # (S, rows, k, width)
                if rows.average is not None:
                    J = rows.average.add_share(J, self.name, indices, part, block.steps.start)
                state = AdjointState(self.tiles[i][indices] if self.tiles else None, self.factor)
                for s in reversed(range(len(steps))):
                    step = part_steps[s]
                    if step is None:
                        continue
                    A, decay = self.filter.backward(J[s], step, state)
                    _add_product(block.products[s], indices, A.flatten(0, 1), gradients[s])
                    if decay is not None:
                        rows.decay.index_add_(0, rows.indices[chunk], decay)
                if self.tiles and not isinstance(indices, slice):
                    assert state.q is not None
                    self.tiles[i][indices] = state.q
                factor = state.factor
        return factor

    def _add_multiples(self, rows: _Rows, steps: Sequence[_Step]) -> tuple[float, Tensor | None]:
        """Add the effects A_t that are multiples of q; return the factor and denominator that the step before needs.

        ``steps`` are those in which the parameter moved, the last one first.
        """
        block, tangents = rows.block, rows.tangents
        outer = tangents.outer_factors(self.name) if len(block.products) == 1 else None
        if outer is not None and outer.activations is None:
            outer = None  # a bias
        for i, part in enumerate(self.slices):
            part_steps = self._part_steps(rows, steps, part)
            for chunk, indices in self._chunks(rows, part):
                J = None if outer is not None else tangents.form(self.name, part, chunk, reuse=True)
                p = self.tiles[i][indices]  # (rows, k, width)
                for step in part_steps:
                    options, weights = step.parameter_step.options, step.parameter_step.weights
                    p.mul_(step.carry)
                    if outer is not None:
                        outer.add_to(p, part, chunk, step.recursion.scale)
                    elif J is not None:
                        p.add_(J[step.s], alpha=step.recursion.scale)
                    effect = step.recursion.effect
                    if not step.parameter_step.frozen:
                        sign = -1.0 if options.get("maximize") else 1.0
                        A = p if step.divisor is None else p / step.divisor
                        _add_product(block.products[step.s], indices, A.flatten(0, 1), step.gradients, sign * effect)
                    if weights is None:
                        continue
                    if not self.filter.has_decoupled_decay(options):
                        rows.decay.index_add_(0, rows.indices[chunk], options["weight_decay"] * effect * (p @ weights))
                    elif J is not None:
                        rate = -options["lr"] * options["weight_decay"]
                        rows.decay.index_add_(0, rows.indices[chunk], rate * (J[step.s] @ weights))
                if not isinstance(indices, slice):
                    self.tiles[i][indices] = p
        for step in steps:
            options, weights = step.parameter_step.options, step.parameter_step.weights
            if outer is not None and weights is not None and self.filter.has_decoupled_decay(options):
                rate = -options["lr"] * options["weight_decay"]
                rows.decay.index_add_(0, rows.indices, rate * outer.inner_products(weights[None])[0])
        if not steps:
            return self.factor, self.denominator
        return steps[-1].recursion.factor, steps[-1].parameter_step.denominator

    def _part_steps(self, rows: _Rows, steps: Sequence[_Step], part: slice) -> list[_Step]:
        """Return the steps for a slice of the parameter; their weights are divided by the denominators if decay is coupled."""
        block, factor = rows.block, self.factor
        gradients = block.gradients.form(self.name, part, slice(None))[0, :, 0].split(block.batch_sizes)
        n_cotangents = rows.tangents.shape[1] * rows.tangents.shape[2]
        denominator = None if self.denominator is None else self.denominator[part]
        part_steps = []
        for step in steps:
            entries, g, carry, divisor = step.parameter_step.entries(part), gradients[step.s], factor, None
            s = entries.denominator
            if s is not None:
                g, divisor = (g, s) if n_cotangents < len(g) else (g / s, None)
                carry = factor if denominator is None else s / denominator * factor
                if entries.weights is not None and not self.filter.has_decoupled_decay(entries.options):
                    entries = replace(entries, weights=entries.weights / s)
            part_steps.append(_Step(step.s, entries, step.recursion, carry, g, divisor))
            factor, denominator = step.recursion.factor, s
        return part_steps


def _add_product(product: Tensor, indices: slice | Tensor, A: Tensor, gradients: Tensor, alpha: float = 1.0) -> None:
    """Add alpha · A gᵀ to some rows of ``product`` (m, k, B), with A (rows · k, width) and gradients g (B, width)."""
    k, B = product.shape[1:]
    if isinstance(indices, slice):
        product[indices].view(-1, B).addmm_(A, gradients.T, alpha=alpha)
    else:
        product.index_add_(0, indices, (A @ gradients.T).view(-1, k, B), alpha=alpha)
