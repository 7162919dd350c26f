"""Passes in which not all rows see the same weights: many steps of a run, and many places of a step, in one pass.

Rows come in blocks, each with weights of its own; and a block may lie on a line from w to w + d, every row at a place of
its own: a layer's output is affine in its weights, so at place s it is (1 − s) · (the layer with w) + s · (the layer with
w + d), and no row needs weights of its own. Only the operations that use parameters are run block by block; all others,
and the sweeps back, see one batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernelmem.tangents.batch_axis import BatchAxis
from kernelmem.tangents.capture import OperationRecorder, ParsedCall, Reparse, Rule

__all__ = ["BlockForward", "BlockRecorder", "Blocks", "Segments"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """What every row of a pass sees: S blocks of ``counts`` rows."""

    counts: tuple[int, ...]
    start: Mapping[str, Tensor]  # of every parameter, (S, *shape)
    stop: Mapping[str, Tensor] | None = None  # the other ends of the lines
    places: Tensor | None = None  # (n,) of each row on its line, 0 to 1

    @property
    def n(self) -> int:
        """Rows in all."""
        return sum(self.counts)

    @cached_property
    def evened(self) -> tuple[Tensor | None, Tensor | None]:
        """Which row stands where once all blocks are as long as the longest, and where each row is then; None: they are."""
        longest = max(self.counts)
        if min(self.counts) == longest:
            return None, None
        counts = torch.tensor(self.counts)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(longest)
        even = starts[:, None] + torch.minimum(rank, counts[:, None] - 1)  # filled up with each block's last row
        back = torch.repeat_interleave(torch.arange(len(counts)) * longest - starts, counts) + torch.arange(self.n)
        return even.flatten(), back

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
        if len(states) == 2:  # no copies
            start, stop = ({name: state[name].detach().double()[None] for name in names} for state in states)
            return cls(start, stop)
        joined = {name: torch.stack([state[name].detach().double() for state in states]) for name in names}
        return cls({name: w[:-1] for name, w in joined.items()}, {name: w[1:] for name, w in joined.items()})

    def __len__(self) -> int:
        return len(next(iter(self.start.values())))

    def lines(self, segments: Tensor, places: Tensor) -> Blocks:
        """Rows on their lines; ``segments`` (n,) ascending, ``places`` (n,)."""
        own, counts = torch.unique_consecutive(segments, return_counts=True)
        start, stop = (
            end if len(own) == len(self) else {name: w[own] for name, w in end.items()}
            for end in (self.start, self.stop)
        )
        return Blocks(tuple(counts.tolist()), start, stop, places)

    def points(self, segments: Tensor, places: Tensor, count: int) -> Blocks:
        """One block of ``count`` rows at each point; ``segments`` and ``places`` (b,)."""
        found, one = {}, len(self) == 1
        for name, start in self.start.items():
            share = places.view(-1, *[1] * (start.ndim - 1))
            ends = (start, self.stop[name]) if one else (start[segments], self.stop[name][segments])
            found[name] = torch.lerp(*ends, share)
        return Blocks((count,) * len(segments), found)

    def steps(self) -> dict[str, Tensor]:
        """w_{t+1} − w_t, (S, *shape)."""
        return {name: self.stop[name] - start for name, start in self.start.items()}


def _mapped(tree: Any, fixed: frozenset[int], axis: int, length: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments of a call with those of its tensors that hold all rows changed."""
    if isinstance(tree, Tensor):
        return change(tree) if id(tree) not in fixed and tree.ndim > axis and tree.shape[axis] == length else tree
    if isinstance(tree, dict):
        return {key: _mapped(item, fixed, axis, length, change) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(item, fixed, axis, length, change) for item in tree)
    return tree


def _gathered(tensor: Tensor, index: Tensor, m: int) -> Tensor:
    """Rows, of m entries of the first axis each, in another order."""
    if m == 1:
        return tensor.index_select(0, index)
    return tensor.unflatten(0, (-1, m)).index_select(0, index).flatten(0, 1)


def run_blocks(
    blocks: Blocks,
    layout: BatchAxis,
    fixed: frozenset[int],
    call: ParsedCall,
    names: Mapping[str, str],
    weights: Mapping[str, Tensor | None],
    again: Reparse,
) -> Tensor:
    """Run one operation, the rows of each block with that block's weights."""
    m, S = layout.multiplicity, len(blocks.counts)
    ends = [blocks.start] if blocks.stop is None else [blocks.start, blocks.stop]
    leading = layout.axis == 0 and (m == 1 or layout.major)
    if S == 1:
        whole = [call.run(_swapped(weights, names, end, 0)) for end in ends]
    elif call.run_blocks is not None and leading:
        even, back = blocks.evened
        padded: ParsedCall | None = call
        if even is not None:
            padded = again(lambda tree: _mapped(tree, fixed, 0, blocks.n * m, lambda t: _gathered(t, even, m)))
        assert padded is not None
        assert padded.run_blocks is not None
        whole = [padded.run_blocks(_swapped(weights, names, end, None)) for end in ends]
        if back is not None:
            whole = [_gathered(part, back, m) for part in whole]
    else:
        calls, start = [], 0
        for count in blocks.counts:
            cut = partial(torch.narrow, dim=layout.axis, start=start * m, length=count * m)
            piece = again(lambda tree, cut=cut: _mapped(tree, fixed, layout.axis, blocks.n * m, cut))
            assert piece is not None
            calls.append(piece)
            start += count
        whole = [
            torch.cat([own.run(_swapped(weights, names, end, b)) for b, own in enumerate(calls)], layout.axis)
            for end in ends
        ]
    if blocks.places is None:
        return whole[0]
    places = blocks.places
    if m > 1:
        places = places.repeat_interleave(m) if layout.major else places.repeat(m)
    shape = [1] * whole[0].ndim
    shape[layout.axis] = -1
    return torch.lerp(whole[0], whole[1], places.view(shape))


def _swapped(
    weights: Mapping[str, Tensor | None], names: Mapping[str, str], end: Mapping[str, Tensor], block: int | None
) -> dict[str, Tensor | None]:
    """The weights of one block, or of all blocks, in the slots of the parameters."""
    found: dict[str, Tensor | None] = {}
    for slot, weight in weights.items():
        if slot in names:
            found[slot] = end[names[slot]] if block is None else end[names[slot]][block]
        elif block is None and weight is not None:
            found[slot] = weight.expand(len(next(iter(end.values()))), *weight.shape)
        else:
            found[slot] = weight
    return found


class BlockRecorder(OperationRecorder):
    """Meets every use of the parameters, each block of rows with its own."""

    def __init__(
        self, blocks: Blocks, layouts: Mapping[int, BatchAxis], fixed: frozenset[int], *arguments: Any
    ) -> None:
        super().__init__(*arguments)
        self.blocks, self.layouts, self.fixed = blocks, layouts, fixed

    def run(self, call: ParsedCall, names: dict[str, str], weights: dict[str, Tensor | None], again: Reparse) -> Tensor:
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
                    return self.run(call, names, weights, lambda change: rule.read(func, change(args), change(kwargs)))
        elif rule is not None:
            with self:
                output = rule.expand(func, args, kwargs)
            if output is not NotImplemented:
                return output
        return func(*args, **kwargs)


def dual_blocks(blocks: Blocks, directions: Mapping[str, Tensor]) -> Blocks:
    """The same weights as dual numbers, with a direction (S, *shape) for each block."""

    def dual(end: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: forward_ad.make_dual(w, directions[name]) for name, w in end.items()}

    return Blocks(blocks.counts, dual(blocks.start), None if blocks.stop is None else dual(blocks.stop), blocks.places)


def dual_places(blocks: Blocks) -> Blocks:
    """The same with places as dual numbers: the derivative along each row's line."""
    assert blocks.places is not None
    assert blocks.stop is not None

    def still(end: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # torch adds a bias that is no dual number to one that is several times slower than two dual numbers
        return {name: forward_ad.make_dual(w, torch.zeros_like(w)) if w.ndim <= 2 else w for name, w in end.items()}

    places = forward_ad.make_dual(blocks.places, torch.ones_like(blocks.places))
    return Blocks(blocks.counts, still(blocks.start), still(blocks.stop), places)


def each(blocks: Blocks) -> Iterator[tuple[int, slice]]:
    """The blocks and where their rows lie."""
    start = 0
    for block, count in enumerate(blocks.counts):
        yield block, slice(start, start + count)
        start += count
