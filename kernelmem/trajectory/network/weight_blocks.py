"""Passes in which blocks of rows have different weights: many steps of a run, or many places of a step, in one pass.

A block may also be a segment from w to w + d with every row at its own place s on it: a layer's output is affine in its
weights, so there it is (1 − s) · (layer with w) + s · (layer with w + d), without a copy of the weights per row. Only the
operations that use parameters are run block by block; all others, and the backward passes, see one batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernelmem.tangents.batch_axis import BatchAxis
from kernelmem.tangents.capture import OperationRecorder, ParsedCall, Reparse, Rule, UseKey
from kernelmem.tangents.survey import PassMismatchError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """Weights of S blocks of rows, of ``counts`` rows each."""

    counts: tuple[int, ...]
    start: Mapping[str, Tensor]  # (S, *shape) of every parameter
    stop: Mapping[str, Tensor] | None = None  # the other ends of the segments, if rows lie on segments
    places: Tensor | None = None  # (n,): position of each row on its segment, from 0 to 1

    @property
    def n(self) -> int:
        """Total number of rows."""
        return sum(self.counts)

    @cached_property
    def padding(self) -> tuple[Tensor | None, Tensor | None]:
        """Return indices that pad all blocks to the longest block, and indices that undo the padding.

        Both are None if all blocks have the same number of rows.
        """
        longest_count = max(self.counts)
        if min(self.counts) == longest_count:
            return None, None
        counts = torch.tensor(self.counts)
        starts = counts.cumsum(0) - counts
        position = torch.arange(longest_count)
        pad = starts[:, None] + torch.minimum(position, counts[:, None] - 1)  # each block's last row is repeated
        unpad = torch.repeat_interleave(torch.arange(len(counts)) * longest_count - starts, counts) + torch.arange(
            self.n
        )
        return pad.flatten(), unpad

    def state(self, block: int, place: float) -> dict[str, Tensor]:
        """Return the weights of one block at a place on its segment."""
        if self.stop is None:
            return {name: w[block] for name, w in self.start.items()}
        return {name: torch.lerp(w[block], self.stop[name][block], place) for name, w in self.start.items()}

    def row_slices(self) -> Iterator[tuple[int, slice]]:
        """Yield the index of every block and the slice of its rows."""
        start = 0
        for block, count in enumerate(self.counts):
            yield block, slice(start, start + count)
            start += count

    def repeat(self, n_repeats: int) -> "Blocks":
        """Return the sequence of all blocks, repeated ``n_repeats`` times."""
        start, stop = (
            None if end is None else {name: w.repeat(n_repeats, *[1] * (w.ndim - 1)) for name, w in end.items()}
            for end in (self.start, self.stop)
        )
        assert start is not None
        return Blocks(
            self.counts * n_repeats, start, stop, None if self.places is None else self.places.repeat(n_repeats)
        )


@dataclass(frozen=True)
class Segments:
    """S steps of a run, each a segment from its weights to the next ones."""

    start: Mapping[str, Tensor]  # (S, *shape), float64
    stop: Mapping[str, Tensor]

    @classmethod
    def from_states(cls, states: Sequence[State], names: Sequence[str]) -> "Segments":
        """Return the segments between S + 1 consecutive states."""
        if len(states) == 2:  # avoid copies of large states
            start, stop = ({name: state[name].detach().double()[None] for name in names} for state in states)
            return cls(start, stop)
        stacked = {name: torch.stack([state[name].detach().double() for state in states]) for name in names}
        return cls({name: w[:-1] for name, w in stacked.items()}, {name: w[1:] for name, w in stacked.items()})

    def __len__(self) -> int:
        return len(next(iter(self.start.values())))

    def rows_at_places(self, segments: Tensor, places: Tensor) -> Blocks:
        """Return the weights of n rows, each at its own place on a segment; ``segments`` (n,) ascending, ``places`` (n,)."""
        used_segments, counts = torch.unique_consecutive(segments, return_counts=True)
        start, stop = (
            end if len(used_segments) == len(self) else {name: w[used_segments] for name, w in end.items()}
            for end in (self.start, self.stop)
        )
        return Blocks(tuple(counts.tolist()), start, stop, places)

    def blocks_at_places(self, segments: Tensor, places: Tensor, count: int) -> Blocks:
        """Return one block of ``count`` rows for each pair (segment, place); ``segments`` and ``places`` have shape (b,)."""
        weights = {}
        for name, start in self.start.items():
            share = places.view(-1, *[1] * (start.ndim - 1))
            ends = (start, self.stop[name]) if len(self) == 1 else (start[segments], self.stop[name][segments])
            weights[name] = torch.lerp(*ends, share)
        return Blocks((count,) * len(segments), weights)

    def steps(self) -> dict[str, Tensor]:
        """Return the difference of the weights at the ends of each of S segments, (S, *shape) for each parameter."""
        return {name: self.stop[name] - start for name, start in self.start.items()}


def _map_batched_tensors(
    tree: Any, shared_tensor_ids: frozenset[int], axis: int, length: int, function: Callable[[Tensor], Tensor]
) -> Any:
    """Return ``tree``, the arguments of a call, with ``function`` applied to the tensors that contain the batch.

    These are the tensors with ``length`` entries along ``axis``, except those whose id, or that of the
    tensor that they are a view of, is in ``shared_tensor_ids``.
    """
    if isinstance(tree, Tensor):
        is_shared = not shared_tensor_ids.isdisjoint({id(tree), id(tree._base)})
        return function(tree) if not is_shared and tree.ndim > axis and tree.shape[axis] == length else tree
    if isinstance(tree, dict):
        return {
            key: _map_batched_tensors(item, shared_tensor_ids, axis, length, function) for key, item in tree.items()
        }
    if isinstance(tree, tuple | list):
        return type(tree)(_map_batched_tensors(item, shared_tensor_ids, axis, length, function) for item in tree)
    return tree


def _take_groups(tensor: Tensor, index: Tensor, m: int) -> Tensor:
    """Return the groups at ``index``, concatenated, where a group is m consecutive entries along the first axis."""
    if m == 1:
        return tensor.index_select(0, index)
    return tensor.unflatten(0, (-1, m)).index_select(0, index).flatten(0, 1)


def run_blocks(
    blocks: Blocks,
    batch_axis: BatchAxis,
    shared_tensor_ids: frozenset[int],
    call: ParsedCall,
    names: Mapping[str, str],
    weights: Mapping[str, Tensor | None],
    reparse: Reparse,
) -> Tensor:
    """Run one operation with each block's weights on its rows."""
    m, S = batch_axis.multiplicity, len(blocks.counts)
    ends = [blocks.start] if blocks.stop is None else [blocks.start, blocks.stop]
    leading = batch_axis.axis == 0 and (m == 1 or batch_axis.major)
    if S == 1:
        results = [call.run(_block_weights(weights, names, end, 0)) for end in ends]
    elif call.run_blocks is not None and leading:
        pad, unpad = blocks.padding
        padded: ParsedCall | None = call
        if pad is not None:
            padded = reparse(
                lambda tree: _map_batched_tensors(
                    tree, shared_tensor_ids, 0, blocks.n * m, lambda t: _take_groups(t, pad, m)
                )
            )
        assert padded is not None
        assert padded.run_blocks is not None
        results = [padded.run_blocks(_block_weights(weights, names, end, None)) for end in ends]
        if unpad is not None:
            results = [_take_groups(result, unpad, m) for result in results]
    else:
        calls, start = [], 0
        for count in blocks.counts:
            take_block = partial(torch.narrow, dim=batch_axis.axis, start=start * m, length=count * m)
            block_call = reparse(
                lambda tree, take_block=take_block: _map_batched_tensors(
                    tree, shared_tensor_ids, batch_axis.axis, blocks.n * m, take_block
                )
            )
            assert block_call is not None
            calls.append(block_call)
            start += count
        results = [
            torch.cat(
                [block_call.run(_block_weights(weights, names, end, b)) for b, block_call in enumerate(calls)],
                batch_axis.axis,
            )
            for end in ends
        ]
    if blocks.places is None:
        return results[0]
    places = blocks.places
    if m > 1:
        places = places.repeat_interleave(m) if batch_axis.major else places.repeat(m)
    shape = [1] * results[0].ndim
    shape[batch_axis.axis] = -1
    return torch.lerp(results[0], results[1], places.view(shape))


def _block_weights(
    weights: Mapping[str, Tensor | None], names: Mapping[str, str], end: Mapping[str, Tensor], block: int | None
) -> dict[str, Tensor | None]:
    """Return the weights of an operation by slot, with parameters replaced by those of one block (None: of all blocks)."""
    replaced: dict[str, Tensor | None] = {}
    for slot, weight in weights.items():
        if slot in names:
            replaced[slot] = end[names[slot]] if block is None else end[names[slot]][block]
        elif block is None and weight is not None:
            replaced[slot] = weight.expand(len(next(iter(end.values()))), *weight.shape)
        else:
            replaced[slot] = weight
    return replaced


class BlockRecorder(OperationRecorder):
    """Captures every use of the parameters, with each block's weights on its rows."""

    def __init__(
        self, blocks: Blocks, batch_axes: Mapping[UseKey, BatchAxis], shared_tensor_ids: frozenset[int], *arguments: Any
    ) -> None:
        super().__init__(*arguments)
        self.blocks, self.batch_axes, self.shared_tensor_ids = blocks, batch_axes, shared_tensor_ids

    def run(
        self, key: UseKey, call: ParsedCall, names: dict[str, str], weights: dict[str, Tensor | None], again: Reparse
    ) -> Tensor:
        """Run the operation block by block.

        Raises:
            PassMismatchError: a call that the survey did not see, whose rows may lie anywhere.
        """
        batch_axis = self.batch_axes.get(key)
        if batch_axis is None:
            raise PassMismatchError(frozenset(names.values()))
        return run_blocks(self.blocks, batch_axis, self.shared_tensor_ids, call, names, weights, again)


class BlockForward(BlockRecorder):
    """Like :class:`BlockRecorder`, without recording for a backward pass: for values and slopes."""

    def is_weight(self, tensor: Tensor) -> bool:
        """Return True if ``tensor`` is a parameter or a view of one; gradients are not tracked here."""
        return id(tensor) in self.names or id(tensor._base) in self.names

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Call ``func``; operations with parameters are computed with each block's weights on the rows of that block."""
        kwargs = kwargs or {}
        rule = self.rules.get(func)
        if isinstance(rule, Rule):
            call = rule.read(func, args, kwargs, self.is_weight)
            weights = {} if call is None else call.weights
            names = {slot: self.names[id(value)] for slot, value in weights.items() if id(value) in self.names}
            if call is not None and names:
                key = self.identify(rule, names)
                if key not in self.skip:
                    output = self.run(key, call, names, weights, lambda f: call.again(rule, func, f(args), f(kwargs)))
                    if call.then is None:
                        return output
                    with self:
                        return call.then(output)
        elif rule is not None:
            with self:
                output = rule.expand(func, args, kwargs)
            if output is not NotImplemented:
                return output
        return func(*args, **kwargs)


def dual_blocks(blocks: Blocks, directions: Mapping[str, Tensor]) -> Blocks:
    """Return the blocks with weights as dual numbers for forward-mode differentiation along ``directions``.

    ``directions`` holds a tensor (S, *shape) for each parameter, one direction for each of S blocks.
    """

    def dual(end: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: forward_ad.make_dual(w, directions[name]) for name, w in end.items()}

    return Blocks(blocks.counts, dual(blocks.start), None if blocks.stop is None else dual(blocks.stop), blocks.places)


def dual_places(blocks: Blocks) -> Blocks:
    """Return the blocks with places as dual numbers, for the derivative along each row's segment."""
    assert blocks.places is not None
    assert blocks.stop is not None

    def constant(end: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Adding a plain bias to a dual number is several times slower in torch than adding two dual numbers.
        return {name: forward_ad.make_dual(w, torch.zeros_like(w)) if w.ndim <= 2 else w for name, w in end.items()}

    places = forward_ad.make_dual(blocks.places, torch.ones_like(blocks.places))
    return Blocks(blocks.counts, constant(blocks.start), constant(blocks.stop), places)
