"""From the last step to the first: every gradient's share in the change of what is explained.

Two ways to A_t(x) · g_i. Where a step hands nothing on to later ones (plain gradient descent) and a layer has one position
a row, both are outer products, and so is their inner product: Σ_q (a_q · a_i)(g_q · g_i), no tangent is formed. Otherwise
A_t is carried from step to step, a number for every row, output and parameter, and met slice by slice.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from kernelmem.trajectory.integration.node_schedule import NodeSchedule
from kernelmem.trajectory.integration.step_integral import (
    NUMBERS,
    START,
    OutputChange,
    QuadratureNodes,
    factor_numbers,
    initial_panels,
    mean_tangents,
    nodes_on,
    output_change,
    refine,
)
from kernelmem.trajectory.ledger.averaged_weights import WeightAverage
from kernelmem.trajectory.ledger.result import LedgerEntries
from kernelmem.trajectory.ledger.sweep_setup import SweepSetup
from kernelmem.trajectory.network.network import seeded
from kernelmem.trajectory.network.tangent_factors import DenseTangents, OuterFactors, Tangents, ZeroTangents, join
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import AdjointState, ParameterStep, filter_of
from kernelmem.trajectory.trace import (
    MOST_STEPS,
    TOGETHER,
    TracedSteps,
    can_share_pass,
    concatenate_batches,
    loss_directions,
)

__all__ = ["BackwardSweep"]

WIDTH = 2048  # about as many parameters are worked on at a time,
SLICE = 2**18  # and about as many numbers of their tangents, which then stay in cache,
ROWS = 128  # but no fewer rows of a product than this


class BackwardSweep:
    """Carries A_t(x) from traced to traced, the last one first.

    Cost: for every step the integral of m rows and one tangent of every example in the batch. Where nothing is carried,
    products of factors; otherwise m·k·P·B operations and memory for m·k·P numbers.
    """

    def __init__(
        self, setup: SweepSetup, *, n_sources: int, by_step: bool = False, history: Tensor | None = None
    ) -> None:
        """Start with zeros for ``n_sources`` examples, or steps if ``by_step``.

        ``history`` (m, T, n, k): filled with the contribution of each example in each step.
        """
        self.setup, self.by_step, self.history = setup, by_step, history
        self.tested, self.rows, self.phi = setup.tested, setup.rows, setup.phi
        self.n_nodes, self.schedule = setup.quadrature.n_nodes or START, NodeSchedule()
        m, k = self.rows.n, len(self.phi.names)
        self.entries = LedgerEntries.zeros(m, n_sources, k, setup.n_steps + (setup.coefficients is not None))
        self.filter = filter_of(setup.optimizer)()
        self.carried: dict[str, Tensor] = {}  # q (m, k, size) of the parameters that have one
        self.factors: dict[str, float] = {}
        self.average: WeightAverage | None = None

    def from_average(self, last: dict[str, Tensor], averaged: dict[str, Tensor], coefficients: Tensor) -> None:
        """Begin at averaged weights Σ_t a_t w_t: one more segment, from w_T to them; before the first traced."""
        self.tested.set_state(last)
        segments = Segments.of([last, averaged], list(self.tested.selected))
        T, k, P = len(self.entries.residuals) - 1, len(self.phi.names), self.tested.n_parameters
        _, found = self._mean_tangents(segments, slice(T, T + 1))
        whole = torch.zeros(self.rows.n, k, P, dtype=torch.float64)
        for index, tangents in found:
            whole[index] = join(tangents, list(self.tested.sizes))[0]
        difference = self.tested.flat(averaged) - self.tested.flat(last)
        self.average = WeightAverage(whole, self.tested.slices, -coefficients.cumsum(0)[:-1], difference)

    def finish(self) -> LedgerEntries:
        """The lines, once all tracedes were taken."""
        if self.average is not None:
            self.entries.rounding.add_(self.average.tangents @ self.average.left)
        return self.entries

    def back(self, traced: TracedSteps) -> None:
        """Take the steps of one traced."""
        stop = max(0, min(len(traced.steps), self.setup.steps.stop - traced.start))
        self.setup.advance(len(traced.steps) - stop)
        while stop:
            start = self._first(traced, stop)
            self._piece(traced, start, stop)
            self.setup.advance(stop - start)
            stop = start

    def _first(self, traced: TracedSteps, stop: int) -> int:
        """The first of the steps that are taken together with step ``stop`` − 1."""
        numbers = self.rows.n * len(self.phi.names) * self.tested.n_parameters
        together = self.setup.trained.takes_steps_together(traced.steps[stop - 1].evaluating) and self.tested.in_blocks
        most = min(MOST_STEPS, max(1, TOGETHER // numbers)) if together else 1
        start, lowest = stop - 1, max(0, stop - most)
        if traced.start + stop > self.setup.steps.start:
            lowest = max(lowest, self.setup.steps.start - traced.start)
        while start > lowest and can_share_pass(traced.steps[stop - 1], traced.steps[start - 1]):
            start -= 1
        return start

    def _piece(self, traced: TracedSteps, start: int, stop: int) -> None:
        """Steps start..stop−1 of the traced together: their mean tangents, their gradients, then one after the other."""
        if traced.start + start < self.setup.steps.start and not self.carried:
            return  # before what is explained, and nothing of it acts on
        states = traced.states[start : stop + 1]
        self.tested.set_state(states[0])
        segments = Segments.of(states, list(self.tested.selected))
        first = traced.start + start
        every = slice(first, first + len(segments))
        found: Iterable[tuple[Tensor, Tangents]]
        if first in self.setup.steps:
            nodes, found = self._mean_tangents(segments, every)
            if self.setup.quadrature.n_nodes is None:
                self.n_nodes = self.schedule.next(self.n_nodes, nodes.n_nodes, len(segments))
        else:  # gradients of steps before act on through what is carried
            shape = (len(segments), self.rows.n, len(self.phi.names))
            found = [(torch.arange(self.rows.n), ZeroTangents(shape, self.tested.sizes))]
        gradients = self._gradients(traced, start, stop, segments)
        batches = traced.batches[start:stop]
        sizes = [batch.rows.n for batch in batches]
        k = len(self.phi.names)
        shares = [torch.zeros(self.rows.n, k, B, dtype=torch.float64) for B in sizes]
        moved, rounding = traced.moved[start:stop], torch.stack(traced.rounding[start:stop])
        factors = dict(self.factors)
        rounding_of = {
            name: rounding[:, part].view(-1, *self.tested.selected[name].shape)
            for name, part in self.tested.slices.items()
        }
        if self.average is not None:
            self.entries.rounding.add_(self.average.passed(segments, rounding, first))
        for index, tangents in found:
            self.entries.rounding.index_add_(0, index, self._along(tangents, rounding_of).sum(0))
            crossed: dict[int, list[tuple[str, OuterFactors, OuterFactors]]] = {}
            for name in self.tested.selected:
                own = [step.get(name) for step in moved]
                pair = None if self._carries(name, own) else (tangents.vector(name), gradients.vector(name))
                if pair is not None and pair[0] is not None and pair[1] is not None:
                    crossed.setdefault(pair[0].key, []).append((name, pair[0], pair[1]))
                else:
                    factors[name] = self._formed(name, index, tangents, gradients, own, first, shares, sizes)
            for members in crossed.values():
                self._crossed(members, index, moved, shares, sizes)
        self.factors = factors
        for i, (batch, own) in enumerate(zip(batches, shares, strict=True)):
            if self.by_step:
                self.entries.contributions[:, first + i] += own.sum(2)
            else:
                self.entries.contributions.index_add_(1, batch.examples, own.transpose(1, 2))
            if self.history is not None:
                self.history[:, first + i].index_add_(1, batch.examples, own.transpose(1, 2))

    def _mean_tangents(
        self, segments: Segments, every: slice
    ) -> tuple[QuadratureNodes, Iterable[tuple[Tensor, Tangents]]]:
        """J̄ of all rows on all segments, with a residual within the tolerance, or within rounding.

        The order that was enough for the step after is taken first, and its residual found from the factors; where they do
        not tell it, or it is too large, slopes are evaluated before tangents are.
        """
        tested, rows, phi = self.tested, self.rows, self.phi
        panels = initial_panels(tested, rows, segments)
        must = output_change(tested, rows, segments, phi)
        limit = must.limit(panels, self.setup.step_tolerance)
        for n_nodes in [self.n_nodes] if self.schedule.known is None else [self.n_nodes, self.schedule.known]:
            nodes = nodes_on([(panel, n_nodes) for panel in panels], len(segments), rows.n)
            if factor_numbers(tested, rows, nodes, phi) > NUMBERS:
                break
            explained = torch.zeros_like(must.values)
            tried = list(mean_tangents(tested, rows, segments, phi, nodes))
            along = [own.along(segments.steps()) for _, own in tried]
            if any(part is None for part in along):
                break
            for (index, _), part in zip(tried, along, strict=True):
                assert part is not None
                explained[:, index] = part
            residual = must.values - explained
            if bool((residual.abs().amax(2) <= limit).all()):
                self.entries.residuals[every], self.entries.evaluations[every] = residual, nodes.evaluations
                return nodes, tried
        nodes = refine(tested, rows, segments, phi, panels, n_nodes=self.n_nodes, tolerance=self.setup.step_tolerance)
        self.entries.evaluations[every] = nodes.evaluations
        return nodes, self._measured(segments, must, nodes, every)

    def _measured(
        self, segments: Segments, must: OutputChange, nodes: QuadratureNodes, every: slice
    ) -> Iterator[tuple[Tensor, Tangents]]:
        """The tangents at these nodes; what they leave is written down on the way."""
        self.entries.residuals[every] = must.values
        steps = segments.steps()
        for index, tangents in mean_tangents(self.tested, self.rows, segments, self.phi, nodes):
            residual = self.entries.residuals[every]
            residual[:, index] -= self._along(tangents, steps)
            yield index, tangents

    def _along(self, tangents: Tangents, steps: dict[str, Tensor]) -> Tensor:
        """⟨J̄, step⟩, (S, r, k): from factors, or by forming J̄ a slice at a time."""
        found = tangents.along(steps)
        if found is not None:
            return found
        total = torch.zeros(tangents.shape, dtype=torch.float64)
        for name, step in steps.items():
            for part in tangents.parts(name, WIDTH):
                own = tangents.form(name, part, slice(None))
                total += (own.flatten(1, 2) @ step.reshape(len(step), -1)[:, part, None]).view(tangents.shape)
        return total

    def _gradients(self, traced: TracedSteps, start: int, stop: int, segments: Segments) -> Tangents:
        """The gradients of all examples of these steps: rows (1, B in all), one direction."""
        step = traced.steps[start]
        batch = concatenate_batches(traced.batches[start:stop])
        self.setup.trained.set_state(traced.states[start])
        self.setup.trained.set_modes(step.evaluating)
        blocks = None
        if stop - start > 1:
            counts = tuple(own.rows.n for own in traced.batches[start:stop])
            blocks = Blocks(counts, segments.start)
        with seeded(step.random):
            return self.setup.trained.factors(batch.rows, loss_directions(self.setup.loss, batch), blocks)[0]

    def _carries(self, name: str, moved: Sequence[ParameterStep | None]) -> bool:
        """Whether A_t of a parameter is more than a multiple of the mean tangent."""
        return (
            name in self.carried
            or self.average is not None
            or any(
                own is not None and (own.denominator is not None or self.filter.carries(own.options)) for own in moved
            )
        )

    def _formed(
        self,
        name: str,
        index: Tensor,
        tangents: Tangents,
        gradients: Tangents,
        moved: Sequence[ParameterStep | None],
        first: int,
        shares: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> float:
        """Carry one parameter's slices through the steps; returns the factor of the first one."""
        S, r, k = tangents.shape
        keeps = name in self.carried or any(own is not None and self.filter.carries(own.options) for own in moved)
        if keeps and name not in self.carried:
            self.carried[name] = torch.zeros(self.rows.n, k, self.tested.sizes[name], dtype=torch.float64)
        contiguous = len(index) == self.rows.n
        factor = self.factors.get(name, 0.0)
        # what is kept as factors is cut by units, what is formed anywhere
        cut = gradients if isinstance(tangents, DenseTangents | ZeroTangents) else tangents
        for part in cut.parts(name, max(WIDTH, SLICE // (S * r * k))):
            width = part.stop - part.start
            own_gradients = gradients.form(name, part, slice(None))[0, :, 0].split(sizes)
            step = max(-(-ROWS // k), SLICE // (S * k * width))
            for i in range(0, r, step):
                piece = slice(i, min(i + step, r))
                who = piece if contiguous else index[piece]
                own = tangents.form(name, part, piece)
                if self.average is not None:
                    own = self.average.added(own, name, who, part, first)
                carried = AdjointState(self.carried[name][who, :, part] if keeps else None, self.factors.get(name, 0.0))
                for s in reversed(range(S)):
                    one = moved[s]
                    if one is None:
                        continue
                    cotangent, decay = self.filter.backward(own[s], one.part(part), carried)
                    flat = cotangent.reshape(-1, width)
                    if isinstance(who, slice):
                        shares[s][who].view(-1, sizes[s]).addmm_(flat, own_gradients[s].T)
                    else:
                        shares[s].index_add_(0, who, (flat @ own_gradients[s].T).view(-1, k, sizes[s]))
                    if decay is not None:
                        self.entries.decay.index_add_(0, index[piece], decay)
                if keeps and not contiguous:
                    assert carried.q is not None
                    self.carried[name][who, :, part] = carried.q
                factor = carried.factor
        return factor

    def _crossed(
        self,
        members: Sequence[tuple[str, OuterFactors, OuterFactors]],
        index: Tensor,
        moved: Sequence[dict[str, ParameterStep]],
        shares: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> None:
        """A weight and its bias, by products of their factors."""
        starts = [sum(sizes[:s]) for s in range(len(sizes))]
        for s, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            own = slice(start, start + size)
            g = members[0][1].gradients[s]  # (q, r, k, out)
            q, r, k = g.shape[:3]
            scale = torch.zeros(q, r, size, dtype=torch.float64)
            for name, left, right in members:
                one = moved[s].get(name)
                if one is None:
                    continue
                rate = one.options["lr"] * (-1.0 if one.options.get("maximize") else 1.0)
                if left.activations is None or right.activations is None:
                    scale -= rate
                else:
                    inner = left.activations[s].flatten(0, 1) @ right.activations[0, 0, own].T
                    scale.sub_(inner.view(q, r, size), alpha=rate)
                if one.weights is not None:
                    strength = one.options["lr"] * one.options["weight_decay"]
                    self.entries.decay.index_add_(0, index, -strength * left.segment(s).along(one.weights[None])[0])
            product = (g.flatten(0, 2) @ members[0][2].gradients[0, 0, own, 0].T).view(q, r, k, size)
            shares[s].index_add_(0, index, product.mul_(scale[:, :, None]).sum(0))
