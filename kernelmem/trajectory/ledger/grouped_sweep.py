"""The ledger of groups of examples, or of layers: forward along the run in one pass, nothing kept but the groups.

The optimizer is a linear filter given its statistics, so each group's own gradients, filtered, are its part of every step:
d_t = Σ_g d_t^g + decay + rounding. What a part did to the outputs is the derivative along it, ∫₀¹ J(x; w + s d) d^g ds, by
dual numbers: all outputs at once, and no tangent is formed. Memory: G·P numbers, whatever the number of rows and outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from kernelmem.trajectory.integration.node_schedule import NodeSchedule
from kernelmem.trajectory.integration.step_integral import (
    NUMBERS,
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

__all__ = ["GroupedSweep", "Groups", "layers", "read_groups"]


@dataclass(frozen=True)
class Groups:
    """How the examples' part of every step is split."""

    names: tuple[str, ...]
    of_example: Tensor | None  # (n,) of 0..G−1; None: by layers
    of_parameter: dict[str, int] | None = None  # its layer


def layers(parameters: Sequence[str]) -> Groups:
    """One group for each module that holds parameters."""
    owners = [name.rpartition(".")[0] or name for name in parameters]
    names = tuple(dict.fromkeys(owners))
    return Groups(names, None, {name: names.index(own) for name, own in zip(parameters, owners, strict=True)})


def read_groups(by: object, parameters: Sequence[str], n: int) -> Groups:
    """Read ``by=``: "layer", or n integers or names.

    Raises:
        InputError: not one for each example.
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
    """Takes tracedes of a run in their order.

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
        self.average_parts = {  # Σ_t γ_t of the parts of every step
            name: torch.zeros(G + 2, *p.shape, dtype=torch.float64) for name, p in self.tested.selected.items()
        }

    def to_average(self, last: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
        """Take the segment from w_T to the averaged weights, Σ_t γ_t d_t and rounding; after the last traced."""
        names = list(self.tested.selected)
        self.tested.set_state(last)
        segments = Segments.of([last, averaged], names)
        for name, step in segments.steps().items():
            self.average_parts[name][-1] += step[0] - self.average_parts[name].sum(0)
        self._integrate(segments, self.average_parts, len(self.entries.residuals) - 1)

    def along(self, traced: TracedSteps) -> None:
        """Take the steps of one traced."""
        for i in range(len(traced.steps)):
            self._step(traced, i)
            self.setup.advance(1)

    def _step(self, traced: TracedSteps, i: int) -> None:
        tested, t = self.tested, traced.start + i
        tested.set_state(traced.states[i])
        segments = Segments.of(traced.states[i : i + 2], list(tested.selected))
        if t >= self.setup.steps.stop:
            return
        parts = self._parts(traced, i)  # what is carried on from steps before is part of those that are explained
        if self.gamma is not None:
            for name, part in parts.items():
                self.average_parts[name] += self.gamma[t] * part
        if t >= self.setup.steps.start:
            self._integrate(segments, parts, t)

    def _integrate(self, segments: Segments, parts: dict[str, Tensor], t: int) -> None:
        """Integrate the derivatives along the parts of one segment, and add them to the lines."""
        tested, rows, phi = self.tested, self.rows, self.phi
        panels = initial_panels(tested, rows, segments)
        must = output_change(tested, rows, segments, phi)
        nodes = nodes_on([(panel, self.n_nodes) for panel in panels], 1, rows.n)
        found = self._derivatives(segments, nodes, parts)
        residual = must.values[0] - found.sum(1)
        if bool((residual.abs().amax(1) > must.limit(panels, self.setup.step_tolerance)[0]).any()):
            nodes = refine(
                tested, rows, segments, phi, panels, n_nodes=self.n_nodes, tolerance=self.setup.step_tolerance
            )
            found = self._derivatives(segments, nodes, parts)
            residual = must.values[0] - found.sum(1)
        if self.setup.quadrature.n_nodes is None:
            self.n_nodes = self.schedule.next(self.n_nodes, nodes.n_nodes)
        self.entries.contributions.add_(found[:, :-2])
        self.entries.decay.add_(found[:, -2])
        self.entries.rounding.add_(found[:, -1])
        self.entries.residuals[t], self.entries.evaluations[t] = residual, nodes.evaluations[0]

    def _parts(self, traced: TracedSteps, i: int) -> dict[str, Tensor]:
        """The step as parts (G + 2, *shape) of each parameter: of the groups, of decay, of rounding."""
        G, moved, rounding = len(self.groups.names), traced.moved[i], traced.rounding[i]
        gradients = self._gradients(traced, i)
        parts = {}
        for name, parameter in self.tested.selected.items():
            whole = torch.zeros(G + 2, parameter.numel(), dtype=torch.float64)
            whole[-1] = rounding[self.tested.slices[name]]
            one = moved.get(name)
            if one is not None:
                own = gradients[name]  # (G or 1, p)
                own = -own if one.options.get("maximize") else own
                strength, decoupled = one.options.get("weight_decay", 0.0), self.filter.decoupled(one.options)
                coupled = torch.zeros_like(own[:1])
                if strength and not decoupled:
                    assert one.weights is not None
                    coupled[0] = strength * one.weights
                step = self.filter.linear(torch.cat([own, coupled]), one, self.filter_states[name])
                if self.groups.of_parameter is None:
                    whole[:G] = step[:-1]
                else:
                    whole[self.groups.of_parameter[name]] = step[0]
                whole[-2] = step[-1]
                if strength and decoupled:
                    assert one.weights is not None
                    whole[-2] -= one.options["lr"] * strength * one.weights
            parts[name] = whole.view(G + 2, *parameter.shape)
        return parts

    def _gradients(self, traced: TracedSteps, i: int) -> dict[str, Tensor]:
        """The weighted gradients of the examples of each group, summed: (G, p); of all examples where layers are asked."""
        step, batch = traced.steps[i], traced.batches[i]
        self.setup.trained.set_state(traced.states[i])
        self.setup.trained.set_modes(step.evaluating)
        with seeded(step.random):
            found, _ = self.setup.trained.factors(batch.rows, loss_directions(self.setup.loss, batch))
        summed = {}
        for name, size in self.setup.trained.sizes.items():
            own = torch.cat([found.form(name, part, slice(None))[0, :, 0] for part in found.parts(name, size)], 1)
            if self.groups.of_example is None:
                summed[name] = own.sum(0, keepdim=True)
            else:
                total = torch.zeros(len(self.groups.names), size, dtype=torch.float64)
                summed[name] = total.index_add_(0, self.groups.of_example[batch.examples], own)
        return summed

    def _derivatives(self, segments: Segments, nodes: QuadratureNodes, parts: dict[str, Tensor]) -> Tensor:
        """∫₀¹ ∂φ/∂w · part ds of every row: (m, parts, k)."""
        m, k, D = self.rows.n, len(self.phi.names), len(next(iter(parts.values())))
        total = torch.zeros(m, D, k, dtype=torch.float64)
        for index, weights, blocks in self._nodes(segments, nodes):
            B = len(blocks.counts)
            # About as many parts at a time as weights of that many blocks are worth a pass.
            together = max(1, min(D, NUMBERS // (B * self.tested.n_parameters + blocks.n * self.tested.row_numbers)))
            for d in range(0, D, together):
                some = {name: part[d : d + together] for name, part in parts.items()}
                G = len(next(iter(some.values())))
                many = Blocks(
                    blocks.counts * G,
                    {name: w.repeat(G, *[1] * (w.ndim - 1)) for name, w in blocks.start.items()},
                    None
                    if blocks.stop is None
                    else {name: w.repeat(G, *[1] * (w.ndim - 1)) for name, w in blocks.stop.items()},
                    None if blocks.places is None else blocks.places.repeat(G),
                )
                along = {name: part.repeat_interleave(B, 0) for name, part in some.items()}
                every = index.repeat(G)
                outputs, slopes = self.tested.slopes(take(self.rows, every), many, along)
                rates = (self.phi.directions(outputs, every) * slopes[:, None]).sum(2)  # (G · n, k)
                weighted = rates.view(G, -1, k) * weights[:, None]
                part = torch.zeros(m, G, k, dtype=torch.float64)
                total[:, d : d + G] += part.index_add_(0, index, weighted.transpose(0, 1))
        return total

    def _nodes(self, segments: Segments, nodes: QuadratureNodes) -> Iterator[tuple[Tensor, Tensor, Blocks]]:
        """Ordinals of rows (n,), the weights of their nodes (n,), and where they stand."""
        m = self.rows.n
        if (0, -1) in nodes.of:
            places, weights = (torch.tensor(values, dtype=torch.float64) for values in nodes.of[0, -1])
            blocks = segments.points(torch.zeros(len(places), dtype=torch.int64), places, m)
            yield torch.arange(m).repeat(len(places)), weights.repeat_interleave(m), blocks
            return
        index = torch.tensor([row for (_, row), (places, _) in nodes.of.items() for _ in places])
        places, weights = (
            torch.tensor([value for own in nodes.of.values() for value in own[which]], dtype=torch.float64)
            for which in (0, 1)
        )
        yield index, weights, segments.lines(torch.zeros(len(index), dtype=torch.int64), places)
