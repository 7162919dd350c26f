"""The network under analysis: float64, its weights set step by step, tangents of rows anywhere between two of them.

Every row may stand at a place of its own on the line from w to w + d: a layer's output is affine in its weights, so at
place s it is (1 − s) · (the layer with w) + s · (the layer with w + d), and no row needs weights of its own. All nodes of
all rows then go through the network in one pass. Weights that are computed from parameters (weight norm) are no affine
function of them, nor are operations that no rule knows: such networks take one pass a node.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kernelmem.ground.batches import Rows
from kernelmem.runs.replay import set_modes
from kernelmem.tangents.capture import Call, Capture, Recorder, Rule, Use, capture
from kernelmem.tangents.dense import rowwise_jacobian
from kernelmem.tangents.engine import RULES
from kernelmem.tangents.groups import MixedGroup
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.products import differentiable_kernels, load_dual_rules
from kernelmem.tangents.survey import survey
from kernelmem.tangents.sweeps import one_direction

__all__ = ["Line", "Network", "every_output", "seeded", "take"]

REPLICATE = 2**18  # parameters up to which k copies of a row are cheaper than k sweeps


@dataclass(frozen=True)
class Line:
    """The way from one state of the weights to the next, and where on it (0 to 1) each row stands."""

    start: Mapping[str, Tensor]
    stop: Mapping[str, Tensor]
    places: Tensor  # (n,) float64

    def at(self, place: float) -> dict[str, Tensor]:
        """The state there."""
        return {name: torch.lerp(self.start[name].double(), self.stop[name].double(), place) for name in self.start}

    def rows(self, index: Tensor) -> "Line":
        """The same with other rows."""
        return Line(self.start, self.stop, self.places[index])


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
        few = rows.to(dtype=torch.float64, device=torch.device("cpu"))
        if evaluating is not None:
            self.set_modes(evaluating)
        with seeded(None):
            self.found = survey(self.prepared, few, RULES)
        self.sizes = {name: parameter.numel() for name, parameter in self.selected.items()}
        starts = [0]
        for size in self.sizes.values():
            starts.append(starts[-1] + size)
        self.slices = {name: slice(a, b) for name, a, b in zip(self.sizes, starts[:-1], starts[1:], strict=True)}
        self.n_parameters, self.n_outputs = starts[-1], self.prepared.n_outputs
        # Derived weights are no affine function of the parameters; what no rule covers is not met at all.
        two = Rows(few.slice(0, min(2, few.n)), min(2, few.n))
        with seeded(None):
            derived = any(use.derived for use in self.capture(two, None).uses)
        self.affine = not self.found.dense and not derived
        self.piecewise: bool | None = None  # whether it has operations with kinks; None: not seen yet
        # About what a pass keeps of a row.
        self.row_numbers = 2 * self.found.saved + sum(sum(pair) for pair in self.found.elements.values()) + 1
        shapes = {name: parameter.shape for name, parameter in self.selected.items()}
        self.groups = [
            MixedGroup(group.names, group.keys, group.layer, tuple(shapes[name] for name in group.names))
            for group in self.found.groups
        ]

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Put recorded parameters and buffers in place."""
        with torch.no_grad():
            for name, tensor in [*self.prepared.module.named_parameters(), *self.prepared.module.named_buffers()]:
                if name in state:
                    tensor.copy_(state[name])

    def set_modes(self, evaluating: frozenset[str]) -> None:
        """Put every module in train mode, but these."""
        set_modes(self.prepared.module, evaluating)

    def flat(self, state: Mapping[str, Tensor]) -> Tensor:
        """The selected parameters of a state as one vector (P,)."""
        return torch.cat([state[name].detach().double().flatten() for name in self.selected])

    def outputs(self, rows: Rows) -> Tensor:
        """F at the weights that are set: (n, C)."""
        with torch.no_grad():
            return self.prepared.outputs(rows.slice(0, rows.n), rows.n)

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

    def tangents(
        self, rows: Rows, directions: Callable[[Tensor, Tensor], Tensor], line: Line | None = None
    ) -> tuple[Tensor, Tensor]:
        """Σ_c v_nkc ∂f_c(x_n)/∂θ as (n, k, P), and the outputs (n, C).

        The directions v (n, k, C) are made of the outputs and the ordinals of the rows.
        With ``line`` every row at its own place on it, otherwise at the weights that are set.
        """
        if line is not None and not self.affine:
            return self._place_by_place(rows, directions, line)
        captured = self.capture(rows, line)
        cotangents = directions(captured.outputs.detach(), torch.arange(rows.n))
        k = cotangents.shape[1]
        if k > 1 and self.n_parameters <= REPLICATE and not self.found.dense:
            index = torch.arange(rows.n).repeat_interleave(k)
            many = take(rows, index)
            place = None if line is None else line.rows(index)
            copies = self._sweep(self.capture(many, place), cotangents.reshape(rows.n * k, 1, -1), many)
            return copies.view(rows.n, k, -1), captured.outputs.detach()
        return self._sweep(captured, cotangents, rows), captured.outputs.detach()

    def slopes(self, rows: Rows, line: Line) -> tuple[Tensor, Tensor]:
        """F (n, C) of every row at its own place on the line, and its derivative by the place."""
        if not self.affine:
            step = self.flat(line.stop) - self.flat(line.start)
            tangents, outputs = self._place_by_place(rows, every_output, line)
            return outputs, tangents @ step
        load_dual_rules()
        with differentiable_kernels(torch.device("cpu")), forward_ad.dual_level():
            dual = forward_ad.make_dual(line.places, torch.ones_like(line.places))
            found = self._along(rows, Line(line.start, line.stop, dual))
            outputs, slopes = forward_ad.unpack_dual(found)
            return outputs, torch.zeros_like(outputs) if slopes is None else slopes

    def outputs_along(self, rows: Rows, line: Line) -> Tensor:
        """F of every row at its own place on the line: (n, C)."""
        if self.affine:
            return self._along(rows, line)
        return self._place_by_place(rows, lambda f, _: f.new_zeros(len(f), 0, f.shape[1]), line)[1]

    def _along(self, rows: Rows, line: Line) -> Tensor:
        with torch.no_grad(), _LineForward(line, self.found.layouts, self.selected, RULES, self.found.skip):
            return self.prepared.outputs(rows.slice(0, rows.n), rows.n)

    def _place_by_place(
        self, rows: Rows, directions: Callable[[Tensor, Tensor], Tensor], line: Line
    ) -> tuple[Tensor, Tensor]:
        """One pass for all rows at the same place."""
        tangents, outputs = [], []
        places, inverse = torch.unique(line.places, return_inverse=True)
        order = []
        for i, place in enumerate(places):
            index = (inverse == i).nonzero()[:, 0]
            self.set_state(line.at(float(place)))
            found, values = self.tangents(take(rows, index), lambda f, own, index=index: directions(f, index[own]))
            tangents.append(found)
            outputs.append(values)
            order.append(index)
        back = torch.cat(order).argsort()
        return torch.cat(tangents)[back], torch.cat(outputs)[back]

    def capture(self, rows: Rows, line: Line | None) -> Capture:
        """One forward pass that meets every use of the parameters, each row at its own place if there is a line."""

        def recorder(*arguments: Any) -> Recorder:
            return Recorder(*arguments) if line is None else _LineRecorder(line, self.found.layouts, *arguments)

        found = self.found
        batch = rows.slice(0, rows.n)
        return capture(
            self.prepared,
            batch,
            rows.n,
            RULES,
            skip=found.skip,
            dense=found.dense,
            layouts=found.layouts,
            recorder=recorder,
        )

    def _sweep(self, captured: Capture, cotangents: Tensor, rows: Rows) -> Tensor:
        n, k = cotangents.shape[:2]
        uses = {use.key: use for use in captured.uses}
        tangents = cotangents.new_zeros(n, k, self.n_parameters)
        edges = [use.edge for use in captured.uses]
        for c in range(k if edges and captured.outputs.requires_grad else 0):
            gradients = torch.autograd.grad(
                captured.outputs, edges, cotangents[:, c], retain_graph=c + 1 < k, allow_unused=True
            )
            stacks = {
                use.key: one_direction(use, gradient, n) for use, gradient in zip(captured.uses, gradients, strict=True)
            }
            for group in self.groups:
                own: list[Use] = [uses[key] for key in group.keys]
                found = group.write(own, [stacks[key] for key in group.keys], n, 1, "diagonal")["tangents"][:, 0]
                for name, part in zip(
                    group.names, found.split([self.sizes[name] for name in group.names], 1), strict=True
                ):
                    tangents[:, c, self.slices[name]] = part
        if self.found.dense:
            single = [rows.slice(i, i + 1) for i in range(n)]
            dense = rowwise_jacobian(self.prepared, single, list(self.found.dense), cotangents)
            start = 0
            for name in self.found.dense:
                tangents[:, :, self.slices[name]] = dense[:, :, start : start + self.sizes[name]]
                start += self.sizes[name]
        return tangents


def every_output(outputs: Tensor, _: Tensor) -> Tensor:
    """Each output by itself as a direction: (n, C, C)."""
    n, C = outputs.shape
    return torch.eye(C, dtype=outputs.dtype).expand(n, C, C)


def take(rows: Rows, index: Tensor) -> Rows:
    """The rows at ``index``, repeats allowed."""
    return Rows(rows.map(lambda leaf: leaf[index]), len(index))


@contextmanager
def seeded(random: bytes | None) -> Iterator[None]:
    """Draw from the recorded state of torch's generator inside, and leave that outside as it was."""
    with torch.random.fork_rng(devices=[]):
        if random is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(random), dtype=torch.uint8))
        yield


class _LineRecorder(Recorder):
    """Runs every operation at both ends of the line, and puts each row between them at its own place."""

    def __init__(self, line: Line, layouts: Mapping[int, Any], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.line, self.layouts = line, layouts

    def run(
        self, call: Call, names: dict[str, str], derived: dict[str, Tensor], weights: dict[str, Tensor | None]
    ) -> Tensor:
        """(1 − s) · (the operation with w) + s · (the operation with w + d), s of each row."""
        assert not derived, "such a network takes one pass a place"
        ends = [
            call.run({slot: end[names[slot]] if slot in names else weight for slot, weight in weights.items()})
            for end in (self.line.start, self.line.stop)
        ]
        layout = self.layouts[self.calls]
        places = self.line.places
        if layout.multiplicity > 1:
            m = layout.multiplicity
            places = places.repeat_interleave(m) if layout.major else places.repeat(m)
        shape = [1] * ends[0].ndim
        shape[layout.axis] = -1
        return torch.lerp(ends[0], ends[1], places.view(shape))


class _LineForward(_LineRecorder):
    """The same, without keeping what sweeps need: for values and slopes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self.rules.get(func)
        if isinstance(rule, Rule):
            call = rule.read(func, args, kwargs)
            weights = {} if call is None else call.weights
            names = {slot: self.names[id(value)] for slot, value in weights.items() if id(value) in self.names}
            if call is not None and names:
                self.calls += 1
                if self.calls not in self.skip:
                    return self.run(call, names, {}, weights)
        elif rule is not None:
            with self:
                output = rule.expand(func, args, kwargs)
            if output is not NotImplemented:
                return output
        return func(*args, **kwargs)
