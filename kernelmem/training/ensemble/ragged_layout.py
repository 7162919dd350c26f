"""Which networks of an ensemble are computed in one product, so that hardly any work is spent on padding.

A *block* is the members that see the same rows in every step: their first layers are one matrix, side by side. Its
*slots* are the members, the widest first. A *family* is blocks of the same shape up to padding, one batched product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernelmem.core.errors import InputError
from kernelmem.training.batching import rows_per_step
from kernelmem.training.ensemble.members import EnsembleTask

__all__ = ["BatchGroup", "PaddedStack", "chunks", "hidden_widths", "padded_stacks"]

PADDING = 1.25  # the most that the padded work of a family may exceed the work of its members
COPIES = {"sgd": 3, "adam": 4, "adamw": 4}  # parameters, gradient, and what the optimizer keeps of each
ACTIVATION_COPIES = 3  # hidden values, their gradient, and one temporary


@dataclass(frozen=True)
class BatchGroup:
    """Members (their numbers) that see the same rows, and their hidden widths, the widest first."""

    members: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]
    n: int  # training rows
    batch: int  # rows in a step


@dataclass(frozen=True)
class PaddedStack:
    """Blocks with the same number of slots; ``widths`` (of each slot) and ``batch`` are the largest of the blocks."""

    blocks: tuple[BatchGroup, ...]
    widths: tuple[tuple[int, ...], ...]
    batch: int

    @property
    def full(self) -> bool:
        """Whether every step has all rows."""
        return self.blocks[0].batch == self.blocks[0].n


def hidden_widths(width: int | tuple[int, ...], depth: int, k: int) -> tuple[int, ...]:
    """The hidden widths of an MLP member.

    Raises:
        InputError: no width, or one below 1.
    """
    widths = (width,) * depth if isinstance(width, int) else width
    if not isinstance(widths, tuple) or not widths or not all(isinstance(h, int) and h >= 1 for h in widths):
        raise InputError(
            f"width={width!r} of member {k}",
            expected="a whole number >= 1, or a tuple of them",
            hint="pass e.g. (200, 200)",
        )
    return widths


def _blocks(task: EnsembleTask) -> list[BatchGroup]:
    together: dict[tuple, list[int]] = {}
    widths = [hidden_widths(member.width, task.recipe.depth, k) for k, member in enumerate(task.members)]
    for k, (member, rows) in enumerate(zip(task.members, task.rows, strict=True)):
        batch = rows_per_step(len(rows), task.recipe.batch_size)
        order = None if batch == len(rows) else member.order_seed  # the order does not matter where all rows are seen
        together.setdefault((order, len(widths[k]), rows.cpu().numpy().tobytes()), []).append(k)
    found = []
    for members in together.values():
        slots = sorted(members, key=lambda k: widths[k], reverse=True)
        n = len(task.rows[slots[0]])
        found.append(
            BatchGroup(tuple(slots), tuple(widths[k] for k in slots), n, rows_per_step(n, task.recipe.batch_size))
        )
    return found


def _work(widths: Sequence[tuple[int, ...]], d: int, C: int) -> int:
    """Products of one row through the networks of a block."""
    sizes = [(d, *slot, C) for slot in widths]
    return sum(a * b for slot in sizes for a, b in pairwise(slot))


def padded_stacks(blocks: Sequence[BatchGroup], d: int, C: int) -> list[PaddedStack]:
    """Gather blocks into families: neighbors by shape join while the padded work stays within ``PADDING``."""

    def shape(block: BatchGroup) -> tuple:
        full = block.batch == block.n
        return (full, len(block.members), len(block.widths[0]), block.widths, block.batch)

    found: list[PaddedStack] = []
    spent = 0  # work of the blocks of the last family, without padding
    for block in sorted(blocks, key=shape):
        work = block.batch * _work(block.widths, d, C)
        if found and shape(found[-1].blocks[0])[:3] == shape(block)[:3]:
            last = found[-1]
            widths = tuple(tuple(map(max, a, b)) for a, b in zip(last.widths, block.widths, strict=True))
            batch = max(last.batch, block.batch)
            joined = PaddedStack((*last.blocks, block), widths, batch)
            if len(joined.blocks) * batch * _work(widths, d, C) <= PADDING * (spent + work):
                found[-1], spent = joined, spent + work
                continue
        found.append(PaddedStack((block,), block.widths, block.batch))
        spent = work
    return found


def chunks(task: EnsembleTask, memory: int, itemsize: int) -> Iterator[list[BatchGroup]]:
    """Cut the members into parts whose tensors fit into ``memory``; a block that is too large is cut, too.

    Raises:
        InputError: one network alone does not fit.
    """
    d, C = task.x[0].numel(), task.C

    def cost(block: BatchGroup) -> int:
        parameters = COPIES[task.recipe.optimizer] * (_work(block.widths, d, C) + sum(map(sum, block.widths)) + C)
        hidden = ACTIVATION_COPIES * sum(map(sum, block.widths)) + d + 6 * C * len(block.members)
        return round(
            PADDING * itemsize * (parameters + max(block.batch, min(max(block.n, len(task.x_test)), 1024)) * hidden)
        )

    open_chunk: list[BatchGroup] = []
    used = 0
    for block in sorted(_blocks(task), key=lambda block: (len(block.members), block.widths, block.n)):
        for part in _parts(block, cost, memory):
            size = cost(part)
            if open_chunk and used + size > memory:
                yield open_chunk
                open_chunk, used = [], 0
            open_chunk.append(part)
            used += size
    yield open_chunk


def _parts(block: BatchGroup, cost: Callable[[BatchGroup], int], memory: int) -> Iterator[BatchGroup]:
    members: list[int] = []
    for slot, k in enumerate(block.members):
        one = BatchGroup((k,), (block.widths[slot],), block.n, block.batch)
        if cost(one) > memory:
            raise InputError(
                f"member {k} with hidden widths {block.widths[slot]}, which needs {cost(one):,} bytes; memory={memory:,}",
                expected="memory for one network at a time",
                hint=f"pass memory={cost(one)} or more, or smaller batches",
            )
        several = [*members, slot]
        if members and cost(_cut(block, several)) > memory:
            yield _cut(block, members)
            several = [slot]
        members = several
    yield _cut(block, members)


def _cut(block: BatchGroup, slots: list[int]) -> BatchGroup:
    return BatchGroup(
        tuple(block.members[s] for s in slots), tuple(block.widths[s] for s in slots), block.n, block.batch
    )
