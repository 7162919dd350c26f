"""Passes in which not all rows see the same weights: many steps of a run, and many places of a step, in one pass.

Rows come in blocks, each with weights of its own; and a block may lie on a line from w to w + d, every row at a place of
its own: a layer's output is affine in its weights, so at place s it is (1 − s) · (the layer with w) + s · (the layer with
w + d), and no row needs weights of its own. Only the operations that use parameters are run block by block; all others,
and the sweeps back, see one batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernelmem.tangents.capture import Again, Call, Recorder, Rule
from kernelmem.tangents.layout import Layout

__all__ = ["BlockForward", "BlockRecorder", "Blocks", "Segments"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """What every row of a pass sees: S blocks of ``counts`` rows."""

    counts: tuple[int, ...]
    start: Mapping[str, Sequence[Tensor]]  # of every parameter, S of its shape
    stop: Mapping[str, Sequence[Tensor]] | None = None  # the other ends of the lines
    places: Tensor | None = None  # (n,) of each row on its line, 0 to 1

    @property
    def n(self) -> int:
        """Rows in all."""
        return sum(self.counts)

    def state(self, block: int, place: float) -> dict[str, Tensor]:
        """The weights at one place of one block's line."""
        if self.stop is None:
            return {name: parts[block] for name, parts in self.start.items()}
        return {name: torch.lerp(parts[block], self.stop[name][block], place) for name, parts in self.start.items()}


@dataclass(frozen=True)
class Segments:
    """S steps of a run, each a line from its weights to the next."""

    start: Mapping[str, Tensor]  # (S, *shape), float64
    stop: Mapping[str, Tensor]

    @classmethod
    def of(cls, states: Sequence[State], names: Sequence[str]) -> "Segments":
        """The lines between S + 1 states that follow each other."""
        joined = {name: torch.stack([state[name].detach().double() for state in states]) for name in names}
        return cls({name: w[:-1] for name, w in joined.items()}, {name: w[1:] for name, w in joined.items()})

    def __len__(self) -> int:
        return len(next(iter(self.start.values())))

    def select(self, block: slice) -> "Segments":
        """Some of them."""
        start, stop = ({name: w[block] for name, w in end.items()} for end in (self.start, self.stop))
        return Segments(start, stop)

    def lines(self, segments: Tensor, places: Tensor) -> Blocks:
        """Rows on their lines; ``segments`` (n,) ascending, ``places`` (n,)."""
        own, counts = torch.unique_consecutive(segments, return_counts=True)
        index = own.tolist()
        start, stop = ({name: [w[i] for i in index] for name, w in end.items()} for end in (self.start, self.stop))
        return Blocks(tuple(counts.tolist()), start, stop, places)

    def points(self, segments: Tensor, places: Tensor, count: int) -> Blocks:
        """One block of ``count`` rows at each point; ``segments`` and ``places`` (b,)."""
        found = {}
        for name, start in self.start.items():
            share = places.view(-1, *[1] * (start.ndim - 1))
            found[name] = list(torch.lerp(start[segments], self.stop[name][segments], share))
        return Blocks((count,) * len(segments), found)

    def steps(self, segments: Tensor) -> dict[str, Tensor]:
        """w_{t+1} − w_t of the named segments, (b, *shape)."""
        return {name: self.stop[name][segments] - start[segments] for name, start in self.start.items()}


def narrowed(tree: Any, fixed: frozenset[int], axis: int, length: int, start: int, count: int) -> Any:
    """Arguments of a call with those of its tensors that hold all rows cut to some of them."""
    if isinstance(tree, Tensor):
        cut = id(tree) not in fixed and tree.ndim > axis and tree.shape[axis] == length
        return tree.narrow(axis, start, count) if cut else tree
    if isinstance(tree, dict):
        return {key: narrowed(item, fixed, axis, length, start, count) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(narrowed(item, fixed, axis, length, start, count) for item in tree)
    return tree


def run_blocks(
    blocks: Blocks,
    layout: Layout,
    fixed: frozenset[int],
    call: Call,
    names: Mapping[str, str],
    weights: Mapping[str, Tensor | None],
    again: Again,
) -> Tensor:
    """Run one operation, the rows of each block with that block's weights."""

    def with_weights(own: Call, end: Mapping[str, Sequence[Tensor]], block: int) -> Tensor:
        return own.run({slot: end[names[slot]][block] if slot in names else w for slot, w in weights.items()})

    calls, m, start = [call], layout.multiplicity, 0
    if len(blocks.counts) > 1:
        calls = []
        for count in blocks.counts:
            piece = again(
                lambda tree, i=start, c=count: narrowed(tree, fixed, layout.axis, blocks.n * m, i * m, c * m)
            )
            assert piece is not None
            calls.append(piece)
            start += count
    ends = [blocks.start] if blocks.stop is None else [blocks.start, blocks.stop]
    whole = []
    for end in ends:
        parts = [with_weights(own, end, block) for block, own in enumerate(calls)]
        whole.append(parts[0] if len(parts) == 1 else torch.cat(parts, layout.axis))
    if blocks.places is None:
        return whole[0]
    places = blocks.places
    if m > 1:
        places = places.repeat_interleave(m) if layout.major else places.repeat(m)
    shape = [1] * whole[0].ndim
    shape[layout.axis] = -1
    return torch.lerp(whole[0], whole[1], places.view(shape))


class BlockRecorder(Recorder):
    """Meets every use of the parameters, each block of rows with its own."""

    def __init__(self, blocks: Blocks, layouts: Mapping[int, Layout], fixed: frozenset[int], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.blocks, self.layouts, self.fixed = blocks, layouts, fixed

    def run(self, call: Call, names: dict[str, str], weights: dict[str, Tensor | None], again: Again) -> Tensor:
        """Block by block."""
        return run_blocks(self.blocks, self.layouts[self.calls], self.fixed, call, names, weights, again)


class BlockForward(BlockRecorder):
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
                    return self.run(
                        call, names, weights, lambda change: rule.read(func, change(args), change(kwargs))
                    )
        elif rule is not None:
            with self:
                output = rule.expand(func, args, kwargs)
            if output is not NotImplemented:
                return output
        return func(*args, **kwargs)


def dual_blocks(blocks: Blocks, directions: Mapping[str, Sequence[Tensor]]) -> Blocks:
    """The same weights as dual numbers, with a direction (S, *shape) for each block."""

    def dual(end: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        return {
            name: [forward_ad.make_dual(w, u) for w, u in zip(parts, directions[name], strict=True)]
            for name, parts in end.items()
        }

    return Blocks(blocks.counts, dual(blocks.start), None if blocks.stop is None else dual(blocks.stop), blocks.places)


def each(blocks: Blocks) -> Iterator[tuple[int, slice]]:
    """The blocks and where their rows lie."""
    start = 0
    for block, count in enumerate(blocks.counts):
        yield block, slice(start, start + count)
        start += count


