"""The ledger of groups of examples, or of layers: forward along the run in one pass, nothing kept but the groups.

The optimizer is a linear filter given its statistics, so each group's own gradients, filtered, are its part of every step:
d_t = Σ_g d_t^g + decay + rounding. What a part did to the outputs is the derivative along it, ∫₀¹ J(x; w + s d) d^g ds, by
dual numbers: all outputs at once, and no tangent is formed. Memory: G·P numbers, whatever the number of rows and outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from kernelmem.recording.run import Run
from kernelmem.trajectory.integration.node_schedule import NodeSchedule
from kernelmem.trajectory.integration.step_integral import NUMBERS, START, Nodes, change, edges, nodes_on, refine
from kernelmem.trajectory.ledger.result import LedgerEntries
from kernelmem.trajectory.network.network import Network, seeded, take
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.optimizers import filter_of
from kernelmem.trajectory.targets import Explained
from kernelmem.trajectory.trace import PerExample, Stretch, loss_directions

__all__ = ["GroupedSweep", "Groups", "groups_of", "layers"]


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


def groups_of(groups: Any, parameters: Sequence[str], n: int) -> Groups:
    """Read ``groups=``: "layer", or n integers or names.

    Raises:
        InputError: not one for each example.
    """
    if isinstance(groups, str):
        if groups != "layer":
            raise InputError(
                f"groups={groups!r}", expected='"layer", or one group for each training example', hint="pass labels"
            )
        return layers(parameters)
    given = groups.tolist() if hasattr(groups, "tolist") else groups
    if not isinstance(given, list | tuple) or len(given) < n:
        count = f" and length {len(given)}" if isinstance(given, list | tuple) else ""
        raise InputError(
            f"groups of type {type(groups).__name__}{count}",
            expected=f"one integer 0, 1, ... or name for each of the {n} training examples",
            hint='pass groups in the order of the recorded indices, or groups="layer"',
        )
    if all(isinstance(own, str) for own in given):
        names = tuple(dict.fromkeys(given))
        return Groups(names, torch.tensor([names.index(own) for own in given]))
    index = as_labels(groups, "groups", n=len(given))
    return Groups(tuple(str(g) for g in range(int(index.max()) + 1)), index)


class GroupedSweep:
    """Takes stretches of a run in their order.

    Cost: for every step and node one dual pass of m rows for each group, decay and rounding.
    """

    def __init__(
        self,
        run: Run,
        trained: Network,
        tested: Network,
        rows: Rows,
        what: Explained,
        loss: PerExample,
        groups: Groups,
        *,
        tolerance: float,
        order: int | None,
        between: tuple[int, int],
        coefficients: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """``groups`` are of the examples, or of the layers; what is explained is the change in steps ``between``.

        ``coefficients`` (T + 1,): of the weights in their average, where that is what is explained.
        """
        self.trained, self.tested, self.rows, self.what, self.loss = trained, tested, rows, what, loss
        self.groups, self.tolerance, self.progress = groups, tolerance / len(run), progress
        self.between = range(*between)
        self.chosen, self.order, self.pace = order, order or START, NodeSchedule()
        m, k, G = rows.n, len(what.names), len(groups.names)
        self.lines = LedgerEntries.zeros(m, G, k, len(run) + (coefficients is not None))
        self.filter = filter_of(run.optimizer)()
        self.carried: dict[str, dict[str, Tensor]] = {name: {} for name in tested.selected}
        self.shares = None if coefficients is None else -coefficients.cumsum(0)
        self.shared = {  # Σ_t γ_t of the parts of every step
            name: torch.zeros(G + 2, *p.shape, dtype=torch.float64) for name, p in tested.selected.items()
        }

    def to_average(self, last: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
        """Take the segment from w_T to the averaged weights, Σ_t γ_t d_t and rounding; after the last stretch."""
        names = list(self.tested.selected)
        self.tested.set_state(last)
        segments = Segments.of([last, averaged], names)
        for name, step in segments.steps().items():
            self.shared[name][-1] += step[0] - self.shared[name].sum(0)
        self._account(segments, self.shared, len(self.lines.residuals) - 1)

    def along(self, stretch: Stretch) -> None:
        """Take the steps of one stretch."""
        for i in range(len(stretch.steps)):
            self._step(stretch, i)
            if self.progress is not None:
                self.progress(1)

    def _step(self, stretch: Stretch, i: int) -> None:
        tested, t = self.tested, stretch.start + i
        tested.set_state(stretch.states[i])
        segments = Segments.of(stretch.states[i : i + 2], list(tested.selected))
        if t >= self.between.stop:
            return
        parts = self._parts(stretch, i)  # what is carried on from steps before is part of those that are explained
        if self.shares is not None:
            for name, part in parts.items():
                self.shared[name] += self.shares[t] * part
        if t >= self.between.start:
            self._account(segments, parts, t)

    def _account(self, segments: Segments, parts: dict[str, Tensor], t: int) -> None:
        """Integrate the derivatives along the parts of one segment, and add them to the lines."""
        tested, rows, what = self.tested, self.rows, self.what
        panels = edges(tested, rows, segments)
        must = change(tested, rows, segments, what)
        nodes = nodes_on([(panel, self.order) for panel in panels], 1, rows.n)
        found = self._derivatives(segments, nodes, parts)
        residual = must.values[0] - found.sum(1)
        if bool((residual.abs().amax(1) > must.limit(panels, self.tolerance)[0]).any()):
            nodes = refine(tested, rows, segments, what, panels, order=self.order, tolerance=self.tolerance)
            found = self._derivatives(segments, nodes, parts)
            residual = must.values[0] - found.sum(1)
        if self.chosen is None:
            self.order = self.pace.next(self.order, nodes.order)
        self.lines.contributions.add_(found[:, :-2])
        self.lines.decay.add_(found[:, -2])
        self.lines.rounding.add_(found[:, -1])
        self.lines.residuals[t], self.lines.evaluations[t] = residual, nodes.evaluations[0]

    def _parts(self, stretch: Stretch, i: int) -> dict[str, Tensor]:
        """The step as parts (G + 2, *shape) of each parameter: of the groups, of decay, of rounding."""
        G, moved, rounding = len(self.groups.names), stretch.moved[i], stretch.rounding[i]
        gradients = self._gradients(stretch, i)
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
                step = self.filter.linear(torch.cat([own, coupled]), one, self.carried[name])
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

    def _gradients(self, stretch: Stretch, i: int) -> dict[str, Tensor]:
        """The weighted gradients of the examples of each group, summed: (G, p); of all examples where layers are asked."""
        step, batch = stretch.steps[i], stretch.batches[i]
        self.trained.set_state(stretch.states[i])
        self.trained.set_modes(step.evaluating)
        with seeded(step.random):
            found, _ = self.trained.factors(batch.rows, loss_directions(self.loss, batch))
        summed = {}
        for name, size in self.trained.sizes.items():
            own = torch.cat([found.form(name, part, slice(None))[0, :, 0] for part in found.parts(name, size)], 1)
            if self.groups.of_example is None:
                summed[name] = own.sum(0, keepdim=True)
            else:
                total = torch.zeros(len(self.groups.names), size, dtype=torch.float64)
                summed[name] = total.index_add_(0, self.groups.of_example[batch.examples], own)
        return summed

    def _derivatives(self, segments: Segments, nodes: Nodes, parts: dict[str, Tensor]) -> Tensor:
        """∫₀¹ ∂φ/∂w · part ds of every row: (m, parts, k)."""
        m, k, D = self.rows.n, len(self.what.names), len(next(iter(parts.values())))
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
                rates = (self.what.directions(outputs, every) * slopes[:, None]).sum(2)  # (G · n, k)
                weighted = rates.view(G, -1, k) * weights[:, None]
                part = torch.zeros(m, G, k, dtype=torch.float64)
                total[:, d : d + G] += part.index_add_(0, index, weighted.transpose(0, 1))
        return total

    def _nodes(self, segments: Segments, nodes: Nodes) -> Iterator[tuple[Tensor, Tensor, Blocks]]:
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
