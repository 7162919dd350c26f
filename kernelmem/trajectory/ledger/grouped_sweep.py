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
from kernelmem.trajectory.integration.adaptive_nodes import AdaptiveNodes
from kernelmem.trajectory.integration.step_integral import (
    MAX_NUMBERS,
    QuadratureNodes,
    output_change,
)
from kernelmem.trajectory.ledger.closure import check_parts
from kernelmem.trajectory.ledger.result import LedgerEntries
from kernelmem.trajectory.ledger.sweep_setup import SweepSetup
from kernelmem.trajectory.network.network import seeded, take
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import filter_class
from kernelmem.trajectory.trace import TracedSteps, loss_directions


@dataclass(frozen=True)
class Groups:
    """Sources into which every step is split: groups of examples, or layers."""

    names: tuple[str, ...]
    example_groups: Tensor | None  # (n,) of 0..G−1; None: layers
    parameter_layers: dict[str, int] | None = None  # index of the layer of each parameter


def layer_groups(parameters: Sequence[str]) -> Groups:
    """Return one group for each module that holds parameters."""
    modules = [name.rpartition(".")[0] or name for name in parameters]
    names = tuple(dict.fromkeys(modules))
    return Groups(names, None, {name: names.index(module) for name, module in zip(parameters, modules, strict=True)})


def read_groups(by: object, parameters: Sequence[str], n: int) -> Groups:
    """Read ``by=``: "layer", or one integer or name per training example.

    Raises:
        InputError: ``by`` has fewer than n entries, or its entries are not integers or names.
    """
    if isinstance(by, str):
        return layer_groups(parameters)
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
    example_groups = as_labels(by, "by", n=len(groups))  # type: ignore[arg-type]
    return Groups(tuple(str(g) for g in range(int(example_groups.max()) + 1)), example_groups)


class GroupedSweep:
    """Sums the contributions of groups over the traced steps of a run, from the first to the last.

    Cost: for every step and node one dual pass of m rows for each group, decay and rounding.
    """

    def __init__(self, setup: SweepSetup, groups: Groups) -> None:
        """Initialize the ledger with zero contributions from each group or layer."""
        self.setup, self.groups = setup, groups
        self.eval_network, self.rows, self.target_functions = setup.eval_network, setup.rows, setup.target_functions
        self.nodes = AdaptiveNodes(setup.quadrature, setup.step_tolerance)
        m, k, G, coefficients = self.rows.n, len(self.target_functions.names), len(groups.names), setup.coefficients
        self.entries = LedgerEntries.zeros(m, G, k, setup.n_steps + (coefficients is not None))
        self.filter = filter_class(setup.optimizer)()
        self.filter_states: dict[str, dict[str, Tensor]] = {name: {} for name in self.eval_network.parameters}
        self.gamma = None if coefficients is None else -coefficients.cumsum(0)
        self.average_parts = {  # Σ_t γ_t d_t, split like every step
            name: torch.zeros(G + 2, *p.shape, dtype=torch.float64) for name, p in self.eval_network.parameters.items()
        }

    def add_average(self, last: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
        """Add the segment from w_T to the averaged weights, Σ_t γ_t d_t plus rounding. Call this after the last step."""
        self.eval_network.set_state(last)
        segments = Segments.from_states([last, averaged], list(self.eval_network.parameters))
        for name, step in segments.steps().items():
            self.average_parts[name][-1] += step[0] - self.average_parts[name].sum(0)
        self._integrate(segments, self.average_parts, len(self.entries.residuals) - 1)

    def add_steps(self, traced: TracedSteps) -> None:
        """Add the contributions of these traced steps."""
        for i in range(len(traced.steps)):
            self._add_step(traced.select(i, i + 1))
            self.setup.advance(1)

    def _add_step(self, step: TracedSteps) -> None:
        """Add one step: advance the filters, and integrate if the step is explained."""
        t = step.start
        self.eval_network.set_state(step.states[0])
        segments = Segments.from_states(step.states, list(self.eval_network.parameters))
        if t >= self.setup.steps.stop:
            return
        step_parts = self._split_step(step)  # for earlier steps too, whose momentum acts on the explained steps
        if self.gamma is not None:
            for name, part in step_parts.items():
                self.average_parts[name] += self.gamma[t] * part
        if t >= self.setup.steps.start:
            self._integrate(segments, step_parts, t)

    def _integrate(self, segments: Segments, step_parts: dict[str, Tensor], t: int) -> None:
        """Add the integral over one segment of the derivatives along the parts of step t to the entries of the ledger."""
        integrand = self.setup.integrand(segments)
        change = output_change(integrand)
        for candidate in self.nodes.candidates(integrand, change):
            nodes, effects = candidate.nodes, self._derivatives(segments, candidate.nodes, step_parts)
            residual = change.values[0] - effects.sum(1)
            if self.nodes.accepts(candidate, residual[None]):
                break
        else:
            nodes = self.nodes.refine(integrand)
            effects = self._derivatives(segments, nodes, step_parts)
            residual = change.values[0] - effects.sum(1)
        self.entries.contributions.add_(effects[:, :-2])
        self.entries.decay.add_(effects[:, -2])
        self.entries.rounding.add_(effects[:, -1])
        self.entries.residuals[t], self.entries.evaluations[t] = residual, nodes.evaluations[0]

    def _split_step(self, step: TracedSteps) -> dict[str, Tensor]:
        """Return the step of each parameter split into G + 2 parts, (G + 2, *shape): G groups, decay and rounding."""
        G, gradients = len(self.groups.names), self._gradients(step)
        step_parts = {}
        for name, parameter in self.eval_network.parameters.items():
            split_values = torch.zeros(G + 2, parameter.numel(), dtype=torch.float64)
            split_values[-1] = step.rounding[0][self.eval_network.slices[name]]
            parameter_step = step.parameter_steps[0].get(name)
            if parameter_step is not None:
                options = parameter_step.options
                g = -gradients[name] if options.get("maximize") else gradients[name]  # (G or 1, p)
                g = torch.zeros_like(g) if parameter_step.frozen else g
                weight_decay, is_decoupled = options.get("weight_decay", 0.0), self.filter.has_decoupled_decay(options)
                coupled_decay = torch.zeros_like(g[:1])
                if weight_decay and not is_decoupled:
                    assert parameter_step.weights is not None
                    coupled_decay[0] = weight_decay * parameter_step.weights
                filtered = self.filter.filter_gradients(
                    torch.cat([g, coupled_decay]), parameter_step, self.filter_states[name]
                )
                if self.groups.parameter_layers is None:
                    split_values[:G] = filtered[:-1]
                else:
                    split_values[self.groups.parameter_layers[name]] = filtered[0]
                split_values[-2] = filtered[-1]
                if weight_decay and is_decoupled:
                    assert parameter_step.weights is not None
                    split_values[-2] -= options["lr"] * weight_decay * parameter_step.weights
            step_parts[name] = split_values.view(G + 2, *parameter.shape)
        before, after = step.states
        check_parts(step_parts, {name: after[name].double() - before[name].double() for name in step_parts})
        return step_parts

    def _gradients(self, step: TracedSteps) -> dict[str, Tensor]:
        """Return, for each parameter of p entries, the weighted loss gradients summed over each of G groups, (G, p).

        If the groups are layers, there is one sum over all examples, (1, p).
        """
        train_network, batch = self.setup.train_network, step.batches[0]
        train_network.set_state(step.states[0])
        train_network.set_modes(step.steps[0].evaluating)
        with seeded(step.steps[0].random):
            factors, _ = train_network.tangent_factors(batch.rows, loss_directions(self.setup.loss, batch))
        summed = {}
        for name, size in train_network.sizes.items():
            slices = [
                factors.form(name, parameter_slice, slice(None))[0, :, 0]
                for parameter_slice in factors.parts(name, size)
            ]
            example_gradients = torch.cat(slices, 1)  # (B, p)
            if self.groups.example_groups is None:
                summed[name] = example_gradients.sum(0, keepdim=True)
            else:
                total = torch.zeros(len(self.groups.names), size, dtype=torch.float64)
                summed[name] = total.index_add_(0, self.groups.example_groups[batch.examples], example_gradients)
        return summed

    def _derivatives(self, segments: Segments, nodes: QuadratureNodes, step_parts: dict[str, Tensor]) -> Tensor:
        """Return the integrals ∫₀¹ ∂φ/∂w · part ds, (m, D, k), for m rows, D parts of the step and k functions φ."""
        m, k, D = self.rows.n, len(self.target_functions.names), len(next(iter(step_parts.values())))
        row_indices, weights, blocks = self._blocks_at(segments, nodes)
        S = len(blocks.counts)
        total = torch.zeros(m, D, k, dtype=torch.float64)
        n_together = max(
            1,
            min(D, MAX_NUMBERS // (S * self.eval_network.n_parameters + blocks.n * self.eval_network.numbers_per_row)),
        )
        for start in range(0, D, n_together):
            n_directions = min(n_together, D - start)
            directions = {
                name: part[start : start + n_directions].repeat_interleave(S, 0) for name, part in step_parts.items()
            }
            row = row_indices.repeat(n_directions)
            outputs, slopes = self.eval_network.slopes(take(self.rows, row), blocks.repeat(n_directions), directions)
            rates = (self.target_functions.directions(outputs, row) * slopes[:, None]).sum(2)  # (n_directions · n, k)
            weighted = rates.view(n_directions, -1, k) * weights[:, None]
            summed = torch.zeros(m, n_directions, k, dtype=torch.float64)
            total[:, start : start + n_directions] += summed.index_add_(0, row_indices, weighted.transpose(0, 1))
        return total

    def _blocks_at(self, segments: Segments, nodes: QuadratureNodes) -> tuple[Tensor, Tensor, Blocks]:
        """Return row indices (n,), quadrature weights (n,), and blocks with the network's weights at n pairs (row, node)."""
        m = self.rows.n
        if (0, -1) in nodes.by_row:
            places, weights = (torch.tensor(values, dtype=torch.float64) for values in nodes.by_row[0, -1])
            blocks = segments.blocks_at_places(torch.zeros(len(places), dtype=torch.int64), places, m)
            return torch.arange(m).repeat(len(places)), weights.repeat_interleave(m), blocks
        row_indices = torch.tensor([row for (_, row), (places, _) in nodes.by_row.items() for _ in places])
        places, weights = (
            torch.tensor([value for pair in nodes.by_row.values() for value in pair[i]], dtype=torch.float64)
            for i in (0, 1)
        )
        return row_indices, weights, segments.rows_at_places(torch.zeros(len(row_indices), dtype=torch.int64), places)
