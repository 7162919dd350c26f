"""Ledger by group of examples or by layer: one sweep along the run that keeps the groups only.

Given its statistics the optimizer is a linear filter, so the filtered gradients of each group are its part of every step:
d_t = Σ_g d_t^g + decay + rounding. The effect of a part on the outputs is the derivative along it, ∫₀¹ J(x; w + s d) d^g ds,
computed with dual numbers for all outputs at once, without forming a tangent. Memory: G·P numbers for any number of rows and
outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from kernelmem.trajectory.integration.node_schedule import NodeSchedule
from kernelmem.trajectory.integration.step_integral import (
    MAX_NUMBERS,
    START,
    QuadratureNodes,
    initial_panels,
    nodes_on,
    output_change,
    refine,
)
from kernelmem.trajectory.ledger.result import LedgerEntries
from kernelmem.trajectory.ledger.sweep_setup import SweepSetup
from kernelmem.trajectory.network.network import seeded, take
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import filter_of
from kernelmem.trajectory.trace import TracedSteps, loss_directions


@dataclass(frozen=True)
class Groups:
    """Sources into which every step is split: groups of examples, or layers."""

    names: tuple[str, ...]
    of_example: Tensor | None  # (n,) of 0..G−1; None: layers
    of_parameter: dict[str, int] | None = None  # index of its layer


def layers(parameters: Sequence[str]) -> Groups:
    """Return one group for each module that holds parameters."""
    modules = [name.rpartition(".")[0] or name for name in parameters]
    names = tuple(dict.fromkeys(modules))
    return Groups(names, None, {name: names.index(module) for name, module in zip(parameters, modules, strict=True)})


def read_groups(by: object, parameters: Sequence[str], n: int) -> Groups:
    """Read ``by=``: "layer", or one integer or name per training example.

    Raises:
        InputError: fewer than n, or not integers or names.
    """
    if isinstance(by, str):
        return layers(parameters)
    groups = getattr(by, "tolist", lambda: by)()  # tensors, arrays, pandas
    if not isinstance(groups, list | tuple) or len(groups) < n:
        count = f" and length {len(groups)}" if isinstance(groups, list | tuple) else ""
        raise InputError(
            f"by of type {type(by).__name__}{count}",
            expected=f"one integer 0, 1, ... or name for each of the {n} training examples",
            hint='pass groups in the order of the recorded indices, or by="layer"',
        )
    if all(isinstance(group, str) for group in groups):
        names = tuple(dict.fromkeys(groups))
        return Groups(names, torch.tensor([names.index(group) for group in groups]))
    index = as_labels(by, "by", n=len(groups))  # type: ignore[arg-type]
    return Groups(tuple(str(g) for g in range(int(index.max()) + 1)), index)


class GroupedSweep:
    """Adds the traced steps of a run in their order.

    Cost: for every step and node one dual pass of m rows for each group, decay and rounding.
    """

    def __init__(self, setup: SweepSetup, groups: Groups) -> None:
        """Start with zeros for these groups or layers."""
        self.setup, self.groups = setup, groups
        self.tested, self.rows, self.phi = setup.tested, setup.rows, setup.phi
        self.n_nodes, self.schedule = setup.quadrature.n_nodes or START, NodeSchedule()
        m, k, G, coefficients = self.rows.n, len(self.phi.names), len(groups.names), setup.coefficients
        self.entries = LedgerEntries.zeros(m, G, k, setup.n_steps + (coefficients is not None))
        self.filter = filter_of(setup.optimizer)()
        self.filter_states: dict[str, dict[str, Tensor]] = {name: {} for name in self.tested.selected}
        self.gamma = None if coefficients is None else -coefficients.cumsum(0)
        self.average_parts = {  # Σ_t γ_t d_t, split like every step
            name: torch.zeros(G + 2, *p.shape, dtype=torch.float64) for name, p in self.tested.selected.items()
        }

    def to_average(self, last: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
        """Add the segment from w_T to the averaged weights, Σ_t γ_t d_t plus rounding. To be called after all steps."""
        self.tested.set_state(last)
        segments = Segments.of([last, averaged], list(self.tested.selected))
        for name, step in segments.steps().items():
            self.average_parts[name][-1] += step[0] - self.average_parts[name].sum(0)
        self._integrate(segments, self.average_parts, len(self.entries.residuals) - 1)

    def along(self, traced: TracedSteps) -> None:
        """Add some traced steps."""
        for i in range(len(traced.steps)):
            self._add_step(traced.part(i, i + 1))
            self.setup.advance(1)

    def _add_step(self, step: TracedSteps) -> None:
        t = step.start
        self.tested.set_state(step.states[0])
        segments = Segments.of(step.states, list(self.tested.selected))
        if t >= self.setup.steps.stop:
            return
        parts = self._parts(step)  # of earlier steps too: what they carry acts on the explained steps
        if self.gamma is not None:
            for name, part in parts.items():
                self.average_parts[name] += self.gamma[t] * part
        if t >= self.setup.steps.start:
            self._integrate(segments, parts, t)

    def _integrate(self, segments: Segments, parts: dict[str, Tensor], t: int) -> None:
        """Add the derivatives along the parts, integrated over one segment, to the entries."""
        integrand, tolerance = self.setup.integrand(segments), self.setup.step_tolerance
        panels, change = initial_panels(integrand), output_change(integrand)
        nodes = nodes_on([(panel, self.n_nodes) for panel in panels], 1, self.rows.n)
        effects = self._derivatives(segments, nodes, parts)
        residual = change.values[0] - effects.sum(1)
        if bool((residual.abs().amax(1) > change.limit(panels, tolerance)[0]).any()):
            nodes = refine(integrand, panels, n_nodes=self.n_nodes, tolerance=tolerance)
            effects = self._derivatives(segments, nodes, parts)
            residual = change.values[0] - effects.sum(1)
        if self.setup.quadrature.n_nodes is None:
            self.n_nodes = self.schedule.next(self.n_nodes, nodes.n_nodes)
        self.entries.contributions.add_(effects[:, :-2])
        self.entries.decay.add_(effects[:, -2])
        self.entries.rounding.add_(effects[:, -1])
        self.entries.residuals[t], self.entries.evaluations[t] = residual, nodes.evaluations[0]

    def _parts(self, step: TracedSteps) -> dict[str, Tensor]:
        """Split one step: (G + 2, *shape) of each parameter, of the groups, decay and rounding."""
        G, gradients = len(self.groups.names), self._gradients(step)
        parts = {}
        for name, parameter in self.tested.selected.items():
            split = torch.zeros(G + 2, parameter.numel(), dtype=torch.float64)
            split[-1] = step.rounding[0][self.tested.slices[name]]
            moved = step.moved[0].get(name)
            if moved is not None:
                options = moved.options
                g = -gradients[name] if options.get("maximize") else gradients[name]  # (G or 1, p)
                strength, decoupled = options.get("weight_decay", 0.0), self.filter.decoupled(options)
                coupled = torch.zeros_like(g[:1])
                if strength and not decoupled:
                    assert moved.weights is not None
                    coupled[0] = strength * moved.weights
                filtered = self.filter.linear(torch.cat([g, coupled]), moved, self.filter_states[name])
                if self.groups.of_parameter is None:
                    split[:G] = filtered[:-1]
                else:
                    split[self.groups.of_parameter[name]] = filtered[0]
                split[-2] = filtered[-1]
                if strength and decoupled:
                    assert moved.weights is not None
                    split[-2] -= options["lr"] * strength * moved.weights
            parts[name] = split.view(G + 2, *parameter.shape)
        return parts

    def _gradients(self, step: TracedSteps) -> dict[str, Tensor]:
        """Return the weighted loss gradients of each parameter summed over each group, (G, p); for layers over all, (1, p)."""
        trained, batch = self.setup.trained, step.batches[0]
        trained.set_state(step.states[0])
        trained.set_modes(step.steps[0].evaluating)
        with seeded(step.steps[0].random):
            factors, _ = trained.factors(batch.rows, loss_directions(self.setup.loss, batch))
        sums = {}
        for name, size in trained.sizes.items():
            parts = [factors.form(name, part, slice(None))[0, :, 0] for part in factors.parts(name, size)]
            by_example = torch.cat(parts, 1)  # (B, p)
            if self.groups.of_example is None:
                sums[name] = by_example.sum(0, keepdim=True)
            else:
                total = torch.zeros(len(self.groups.names), size, dtype=torch.float64)
                sums[name] = total.index_add_(0, self.groups.of_example[batch.examples], by_example)
        return sums

    def _derivatives(self, segments: Segments, nodes: QuadratureNodes, parts: dict[str, Tensor]) -> Tensor:
        """Return ∫₀¹ ∂φ/∂w · part ds of every row, (m, D, k) for D parts."""
        m, k, D = self.rows.n, len(self.phi.names), len(next(iter(parts.values())))
        index, weights, blocks = self._blocks_at(segments, nodes)
        S = len(blocks.counts)
        total = torch.zeros(m, D, k, dtype=torch.float64)
        together = max(1, min(D, MAX_NUMBERS // (S * self.tested.n_parameters + blocks.n * self.tested.row_numbers)))
        for start in range(0, D, together):
            d = min(together, D - start)
            along = {name: part[start : start + d].repeat_interleave(S, 0) for name, part in parts.items()}
            row = index.repeat(d)
            outputs, slopes = self.tested.slopes(take(self.rows, row), blocks.repeat(d), along)
            rates = (self.phi.directions(outputs, row) * slopes[:, None]).sum(2)  # (d · n, k)
            weighted = rates.view(d, -1, k) * weights[:, None]
            sums = torch.zeros(m, d, k, dtype=torch.float64)
            total[:, start : start + d] += sums.index_add_(0, index, weighted.transpose(0, 1))
        return total

    def _blocks_at(self, segments: Segments, nodes: QuadratureNodes) -> tuple[Tensor, Tensor, Blocks]:
        """Return rows (n,), the weights of their nodes (n,), and the network's weights there."""
        m = self.rows.n
        if (0, -1) in nodes.of:
            places, weights = (torch.tensor(values, dtype=torch.float64) for values in nodes.of[0, -1])
            blocks = segments.points(torch.zeros(len(places), dtype=torch.int64), places, m)
            return torch.arange(m).repeat(len(places)), weights.repeat_interleave(m), blocks
        index = torch.tensor([row for (_, row), (places, _) in nodes.of.items() for _ in places])
        places, weights = (
            torch.tensor([value for pair in nodes.of.values() for value in pair[i]], dtype=torch.float64)
            for i in (0, 1)
        )
        return index, weights, segments.lines(torch.zeros(len(index), dtype=torch.int64), places)
