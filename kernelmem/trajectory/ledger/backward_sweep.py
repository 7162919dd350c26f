"""Ledger by example or step: one sweep from the last step to the first.

Two ways to compute A_t(x) · g_i. If a step carries nothing to later ones (plain gradient descent) and a layer has one
position per row, both are outer products, and so is their inner product: Σ_q (a_q · a_i)(g_q · g_i) without forming a
tangent. With momentum the same holds for the sum of steps that A_t is, as long as they are few (:mod:`.factored_adjoint`).
Otherwise A_t is carried from step to step, one number per row, output and parameter (:mod:`.dense_adjoint`).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from kernelmem.tangents.capture import UseKey
from kernelmem.trajectory.integration.adaptive_nodes import AdaptiveNodes
from kernelmem.trajectory.integration.step_integral import (
    MAX_NUMBERS,
    Integrand,
    OutputChange,
    QuadratureNodes,
    factor_numbers,
    mean_tangents,
    output_change,
)
from kernelmem.trajectory.ledger.averaged_weights import WeightAverage
from kernelmem.trajectory.ledger.dense_adjoint import SLICE_PARAMETERS, DenseAdjoint
from kernelmem.trajectory.ledger.factored_adjoint import MIN_NUMBERS, FactoredAdjoint
from kernelmem.trajectory.ledger.result import LedgerEntries
from kernelmem.trajectory.ledger.sweep_setup import Block, SweepSetup
from kernelmem.trajectory.network.network import seeded
from kernelmem.trajectory.network.tangent_factors import DenseTangents, OuterFactors, Tangents, ZeroTangents, to_dense
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import ParameterStep, filter_class
from kernelmem.trajectory.trace import (
    MAX_NUMBERS_TOGETHER,
    MAX_STEPS_TOGETHER,
    TracedSteps,
    can_share_pass,
    concatenate_batches,
    equal_shapes,
    loss_directions,
)


class BackwardSweep:
    """Sweep from the last step to the first, which carries the effect A_t(x) of the gradient of step t on the outputs.

    Cost: for every step the integral of m rows and one tangent of every example in the batch. If nothing is carried,
    products of factors; otherwise m·k·P·B operations and memory for m·k·P numbers.
    """

    def __init__(
        self, setup: SweepSetup, *, n_sources: int, by_step: bool = False, history: Tensor | None = None
    ) -> None:
        """Initialize a ledger of zeros with ``n_sources`` examples, or steps if ``by_step``.

        ``history`` (m, T, n, k): filled with the contribution of each example in each step.
        """
        self.setup, self.by_step, self.history = setup, by_step, history
        self.eval_network, self.rows, self.target_functions = setup.eval_network, setup.rows, setup.target_functions
        self.nodes = AdaptiveNodes(setup.quadrature, setup.step_tolerance)
        m, k = self.rows.n, len(self.target_functions.names)
        self.entries = LedgerEntries.zeros(m, n_sources, k, setup.n_steps + (setup.coefficients is not None))
        self.filter = filter_class(setup.optimizer)()
        self.dense: dict[str, DenseAdjoint] = {}  # of parameters with a recursion
        self.factored: dict[str, FactoredAdjoint] = {}  # of those whose adjoint is kept as factors instead
        self.average: WeightAverage | None = None

    def start_from_average(self, last: dict[str, Tensor], averaged: dict[str, Tensor], coefficients: Tensor) -> None:
        """Start the sweep at the averaged weights Σ_t a_t w_t, before :meth:`sweep` is called.

        The path then has one more segment, from the ``last`` weights to the ``averaged`` ones; ``coefficients`` are
        the a_t.
        """
        self.eval_network.set_state(last)
        segments = Segments.from_states([last, averaged], list(self.eval_network.parameters))
        T, k, P = len(self.entries.residuals) - 1, len(self.target_functions.names), self.eval_network.n_parameters
        J = torch.zeros(self.rows.n, k, P, dtype=torch.float64)
        for row_indices, tangents in self._mean_tangents(segments, slice(T, T + 1)):
            J[row_indices] = to_dense(tangents, list(self.eval_network.sizes))[0]
        difference = self.eval_network.parameter_vector(averaged) - self.eval_network.parameter_vector(last)
        self.average = WeightAverage(J, self.eval_network.slices, -coefficients.cumsum(0)[:-1], difference)

    def finish(self) -> LedgerEntries:
        """Return the entries after the first step of the run."""
        if self.average is not None:
            self.entries.rounding.add_(self.average.tangents @ self.average.remainder)
        return self.entries

    def sweep(self, traced: TracedSteps) -> None:
        """Process these steps from the last to the first, in blocks that share a pass."""
        stop = max(0, min(len(traced.steps), self.setup.steps.stop - traced.start))
        self.setup.advance(len(traced.steps) - stop)
        while stop:
            start = self._block_start(traced, stop)
            self._add_block(traced.select(start, stop))
            self.setup.advance(stop - start)
            stop = start

    def _block_start(self, traced: TracedSteps, stop: int) -> int:
        """Return the position in ``traced`` of the first step that is computed in one pass with step ``stop`` − 1."""
        numbers = self.rows.n * len(self.target_functions.names) * self.eval_network.n_parameters
        can_share = (
            self.setup.train_network.supports_shared_passes(traced.steps[stop - 1].evaluating)
            and self.eval_network.supports_blocks
        )
        max_steps = min(MAX_STEPS_TOGETHER, max(1, MAX_NUMBERS_TOGETHER // numbers)) if can_share else 1
        start, lowest_start = stop - 1, max(0, stop - max_steps)
        if traced.start + stop > self.setup.steps.start:
            lowest_start = max(lowest_start, self.setup.steps.start - traced.start)
        last = stop - 1
        while (
            start > lowest_start
            and can_share_pass(traced.steps[last], traced.steps[start - 1])
            and equal_shapes(traced.batches[last], traced.batches[start - 1])
        ):
            start -= 1
        return start

    def _add_block(self, steps: TracedSteps) -> None:
        """Add a block of steps: compute their tangents and gradients in one pass, and then apply the recursion backward."""
        is_explained = steps.start in self.setup.steps
        if not is_explained and not any(self._is_carried(name) for name in self.eval_network.parameters):
            return  # before the explained steps, and nothing is carried to them
        m, k = self.rows.n, len(self.target_functions.names)
        self.eval_network.set_state(steps.states[0])
        segments = Segments.from_states(steps.states, list(self.eval_network.parameters))
        step_slice = slice(steps.start, steps.stop)
        tangent_groups: Iterable[tuple[Tensor, Tangents]]
        if is_explained:
            tangent_groups = self._mean_tangents(segments, step_slice)
        else:  # gradients of earlier steps act only through what is carried
            tangent_groups = [(torch.arange(m), ZeroTangents((len(segments), m, k), self.eval_network.sizes))]
        products = [torch.zeros(m, k, batch.rows.n, dtype=torch.float64) for batch in steps.batches]
        block = Block(steps, self._gradients(steps, segments), products)
        self._add_products(block, tangent_groups, segments)
        for t, (batch, product) in enumerate(zip(steps.batches, products, strict=True), steps.start):
            example_products = product.transpose(1, 2)
            if self.by_step:
                self.entries.contributions[:, t] += product.sum(2)
            else:
                self.entries.contributions.index_add_(1, batch.examples, example_products)
            if self.history is not None:
                self.history[:, t].index_add_(1, batch.examples, example_products)

    def _add_products(
        self, block: Block, tangent_groups: Iterable[tuple[Tensor, Tangents]], segments: Segments
    ) -> None:
        """Compute the inner products of a block's cotangents and gradients, and add its rounding and decay to the ledger.

        ``tangent_groups`` are pairs of row indices and their mean tangents on ``segments``.
        """
        rounding = torch.stack(block.steps.rounding)
        if self.average is not None:
            self.entries.rounding.add_(self.average.subtract_steps(segments, rounding, block.steps.start))
        rounding_steps = {
            name: rounding[:, columns].view(-1, *self.eval_network.parameters[name].shape)
            for name, columns in self.eval_network.slices.items()
        }
        for row_indices, tangents in tangent_groups:
            self.entries.rounding.index_add_(0, row_indices, self._inner_products(tangents, rounding_steps).sum(0))
            factor_pairs_by_use: dict[UseKey, list[tuple[str, OuterFactors, OuterFactors]]] = {}
            for name in self.eval_network.parameters:
                J = g = None
                if not self._has_recursion(name, block.steps_of_parameter(name)):
                    J, g = tangents.outer_factors(name), block.gradients.outer_factors(name)
                if J is not None and g is not None:
                    factor_pairs_by_use.setdefault(J.use, []).append((name, J, g))
                elif self._keeps_factors(name, row_indices, tangents, block):
                    self._contract_kept_factors(name, tangents, block)
                else:
                    adjoint = self._dense_adjoint(name)
                    adjoint.add_block(block, tangents, row_indices, self.entries.decay, self.average)
            for factor_pairs in factor_pairs_by_use.values():
                self._contract_factors(factor_pairs, row_indices, block)
        for adjoint in self.dense.values():
            adjoint.finish_block()

    def _mean_tangents(self, segments: Segments, step_slice: slice) -> Iterable[tuple[Tensor, Tangents]]:
        """Return an iterable of pairs (row indices, mean tangents of these rows) on all segments.

        The residual is within the tolerance or within rounding. The number of nodes that sufficed for the following
        step is tried first, with its residual computed from the tangents. If the residual is too large, or the factors of
        the tangents take too much memory, nodes are chosen from slopes before tangents are computed.
        """
        integrand = self.setup.integrand(segments)
        change, steps = output_change(integrand), segments.steps()
        dense_numbers = math.prod(integrand.sizes) * self.eval_network.n_parameters
        for candidate in self.nodes.candidates(integrand, change):
            keeps_factors = factor_numbers(integrand, candidate.nodes) <= MAX_NUMBERS
            if not keeps_factors and dense_numbers > MAX_NUMBERS:
                break
            residual, tangent_groups = change.values.clone(), []
            for row_indices, tangents in mean_tangents(integrand, candidate.nodes):
                if dense_numbers <= MAX_NUMBERS and not (keeps_factors and tangents.has_factors()):
                    tangents = DenseTangents(
                        to_dense(tangents, list(self.eval_network.sizes)), self.eval_network.slices
                    )
                tangent_groups.append((row_indices, tangents))
                residual[:, row_indices] -= self._inner_products(tangents, steps)
            if self.nodes.accepts(candidate, residual):
                self.entries.residuals[step_slice] = residual
                self.entries.evaluations[step_slice] = candidate.nodes.evaluations
                return tangent_groups
        nodes = self.nodes.refine(integrand)
        self.entries.evaluations[step_slice] = nodes.evaluations
        return self._tangents_with_residuals(integrand, change, nodes, step_slice)

    def _tangents_with_residuals(
        self, integrand: Integrand, change: OutputChange, nodes: QuadratureNodes, step_slice: slice
    ) -> Iterator[tuple[Tensor, Tangents]]:
        """Yield pairs (row indices, mean tangents of these rows), and record their residuals."""
        self.entries.residuals[step_slice] = change.values
        steps = integrand.segments.steps()
        for row_indices, tangents in mean_tangents(integrand, nodes):
            residual = self.entries.residuals[step_slice]
            residual[:, row_indices] -= self._inner_products(tangents, steps)
            yield row_indices, tangents

    def _inner_products(self, tangents: Tangents, steps: dict[str, Tensor]) -> Tensor:
        """Return the inner products of the mean tangents with the steps, (S, r, k), for S segments, r rows and k functions.

        They are computed from factors if possible, and otherwise from slices of the dense tangents.
        """
        inner_products = tangents.inner_products(steps)
        if inner_products is not None:
            return inner_products
        total = torch.zeros(tangents.shape, dtype=torch.float64)
        for name, step in steps.items():
            for parameter_slice in tangents.parts(name, SLICE_PARAMETERS):
                J = tangents.form(name, parameter_slice, slice(None), reuse=True)
                total += (J.flatten(1, 2) @ step.reshape(len(step), -1)[:, parameter_slice, None]).view(tangents.shape)
        return total

    def _gradients(self, steps: TracedSteps, segments: Segments) -> Tangents:
        """Return the gradients of the weighted losses of all examples of S steps, as tangents of B_1 + ... + B_S rows.

        B_s is the batch size of step s; there is one segment and one direction.
        """
        batch = concatenate_batches(steps.batches)
        train_network, first = self.setup.train_network, steps.steps[0]
        train_network.set_state(steps.states[0])
        train_network.set_modes(first.evaluating)
        blocks = None
        if len(steps.steps) > 1:
            blocks = Blocks(tuple(step_batch.rows.n for step_batch in steps.batches), segments.start)
        with seeded(first.random):
            return train_network.tangent_factors(batch.rows, loss_directions(self.setup.loss, batch), blocks)[0]

    def _has_recursion(self, name: str, steps: Sequence[ParameterStep | None]) -> bool:
        """Return True if the effect A_t of a parameter's gradients is not only a multiple of the mean tangent.

        This is the case with momentum, with a denominator in the optimizer's formula, and for averaged weights.
        """
        if self._is_carried(name) or self.average is not None:
            return True
        return any(s is not None and (s.denominator is not None or self.filter.has_momentum(s.options)) for s in steps)

    def _is_carried(self, name: str) -> bool:
        """Return True if gradients of earlier steps act on the outputs through the momentum of later ones."""
        return name in self.factored or (name in self.dense and self.dense[name].is_carried)

    def _dense_adjoint(self, name: str) -> DenseAdjoint:
        """Return the dense adjoint of a parameter; an adjoint that was kept as factors so far is formed."""
        if name not in self.dense:
            sizes = self.rows.n, len(self.target_functions.names), self.eval_network.sizes[name]
            self.dense[name] = DenseAdjoint(name, self.filter, sizes)
            if name in self.factored:
                factored = self.factored.pop(name)
                self.dense[name].set_tiles(factored.form(SLICE_PARAMETERS), factored.factor)
        return self.dense[name]

    def _keeps_factors(self, name: str, row_indices: Tensor, tangents: Tangents, block: Block) -> bool:
        """Return True if the adjoint of a parameter is kept as factors, which a dense one would cost more than."""
        g, J = block.gradients.outer_factors(name), tangents.outer_factors(name)
        steps = [step for step in block.steps_of_parameter(name) if step is not None]
        m, k = self.rows.n, len(self.target_functions.names)
        if name in self.dense or self.average is not None or len(row_indices) < m or g is None or g.activations is None:
            return False
        if (J is None and not isinstance(tangents, ZeroTangents)) or any(s.denominator is not None for s in steps):
            return False
        if name not in self.factored:
            if m * k * self.eval_network.sizes[name] < MIN_NUMBERS:
                return False
            out, fan_in = g.gradients.shape[-1], g.activations.shape[-1]
            self.factored[name] = FactoredAdjoint(self.filter, m, k, out, fan_in)
        has_decay = any(step.weights is not None for step in steps)
        return not self.factored[name].exceeds_dense(block.batch_sizes[0], has_decay=has_decay)

    def _contract_kept_factors(self, name: str, tangents: Tangents, block: Block) -> None:
        """Apply the recursion of a weight, whose adjoint is kept as factors, to the steps of a block."""
        J, g = tangents.outer_factors(name), block.gradients.outer_factors(name)
        assert g is not None
        stops = list(itertools.accumulate(block.batch_sizes))
        for s, step in reversed(list(enumerate(block.steps_of_parameter(name)))):
            if step is not None:
                gradients = g.rows(slice(stops[s] - block.batch_sizes[s], stops[s]))
                J_s = None if J is None else J.segment(s)
                decay = self.factored[name].add_step(J_s, gradients, step, block.products[s])
                if decay is not None:
                    self.entries.decay.add_(decay)

    def _contract_factors(
        self, factor_pairs: Sequence[tuple[str, OuterFactors, OuterFactors]], row_indices: Tensor, block: Block
    ) -> None:
        """Add the inner products of a weight and its bias from their outer factors.

        Axes: q nodes, r rows of x at ``row_indices``, k functions φ, B examples, i inputs and o outputs of the layer:
        product[r, k, B] = Σ_q scale[q, r, B] Σ_o g[q, r, k, o] e[B, o],  scale[q, r, B] = −h (1 + Σ_i a[q, r, i] b[B, i]).
        """
        start = 0
        for s, size in enumerate(block.batch_sizes):
            examples = slice(start, start + size)
            start += size
            g = factor_pairs[0][1].gradients[s]  # (q, r, k, o)
            e = factor_pairs[0][2].gradients[0, 0, examples, 0]  # (B, o)
            q, r, k = g.shape[:3]
            scale = torch.zeros(q, r, size, dtype=torch.float64)
            for name, J, gradient in factor_pairs:
                step = block.steps.parameter_steps[s].get(name)
                if step is None:
                    continue
                rate = step.options["lr"] * (-1.0 if step.options.get("maximize") else 1.0)
                if step.frozen:
                    pass  # its examples have no effect; decay has
                elif J.activations is None or gradient.activations is None:
                    scale -= rate
                else:
                    b = gradient.activations[0, 0, examples]  # (B, i)
                    inner = J.activations[s].flatten(0, 1) @ b.T  # (q · r, B)
                    scale.sub_(inner.view(q, r, size), alpha=rate)
                if step.weights is not None:
                    decay_rate = step.options["lr"] * step.options["weight_decay"]
                    self.entries.decay.index_add_(
                        0, row_indices, -decay_rate * J.segment(s).inner_products(step.weights[None])[0]
                    )
            product = (g.flatten(0, 2) @ e.T).view(q, r, k, size)
            block.products[s].index_add_(0, row_indices, product.mul_(scale[:, :, None]).sum(0))
