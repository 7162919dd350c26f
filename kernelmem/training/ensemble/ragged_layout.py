"""Layout of MLPs of different widths in padded batched products, with little work spent on padding.

A *batch group* holds the members that see the same rows in every step: their first layers form one matrix, side by side.
Its *slots* are the members, the widest first. A *padded stack* holds batch groups of similar shape, computed as one batched
product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernelmem.core.errors import InputError
from kernelmem.training.batching import rows_per_step
from kernelmem.training.ensemble.members import EnsembleTask

PADDING = 1.25  # largest ratio of the padded work of a stack to the work of its members
PARAMETER_COPIES = {"sgd": 3, "adam": 4, "adamw": 4}  # of the parameters: values, gradients, optimizer states
ACTIVATION_COPIES = 3  # hidden values, their gradients, and one temporary


@dataclass(frozen=True)
class BatchGroup:
    """The numbers of the members that see the same rows in every step, and the hidden widths of each, the widest first."""

    members: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]
    n: int  # training rows
    batch: int  # rows per step


@dataclass(frozen=True)
class PaddedStack:
    """Batch groups with the same number of slots; ``widths`` (per slot) and ``batch`` are the largest of the groups."""

    groups: tuple[BatchGroup, ...]
    widths: tuple[tuple[int, ...], ...]
    batch: int

    @property
    def full(self) -> bool:
        """True if every step uses all rows."""
        return self.groups[0].batch == self.groups[0].n


def hidden_widths(width: int | tuple[int, ...], depth: int, k: int) -> tuple[int, ...]:
    """Return the hidden widths of the MLP of member k: ``width`` itself, or a number repeated ``depth`` times.

    Raises:
        InputError: there is no width, or a width is below 1.
    """
    widths = (width,) * depth if isinstance(width, int) else width
    if not isinstance(widths, tuple) or not widths or not all(isinstance(h, int) and h >= 1 for h in widths):
        raise InputError(
            f"width={width!r} of member {k}",
            expected="a whole number >= 1, or a tuple of them",
            hint="pass e.g. (200, 200)",
        )
    return widths


def _batch_groups(task: EnsembleTask) -> list[BatchGroup]:
    """Return the batch groups of all members.

    A group holds the members that see the same rows in every step and have the same number of hidden layers.
    """
    members_by_batches: dict[tuple, list[int]] = {}
    widths = [hidden_widths(member.width, task.recipe.depth, k) for k, member in enumerate(task.members)]
    for k, (member, rows) in enumerate(zip(task.members, task.rows, strict=True)):
        batch_size = rows_per_step(len(rows), task.recipe.batch_size)
        # with all rows per step the order does not matter
        order_seed = None if batch_size == len(rows) else member.order_seed
        members_by_batches.setdefault((order_seed, len(widths[k]), rows.cpu().numpy().tobytes()), []).append(k)
    groups = []
    for members in members_by_batches.values():
        by_width = sorted(members, key=lambda k: widths[k], reverse=True)
        n = len(task.rows[by_width[0]])
        batch_size = rows_per_step(n, task.recipe.batch_size)
        groups.append(BatchGroup(tuple(by_width), tuple(widths[k] for k in by_width), n, batch_size))
    return groups


def _multiplications(widths: Sequence[tuple[int, ...]], d: int, C: int) -> int:
    """Return the number of multiplications of a forward pass of one row through several MLPs.

    ``widths`` holds the hidden widths of each MLP; all have d inputs and C outputs.
    """
    layer_sizes = [(d, *slot, C) for slot in widths]
    return sum(fan_in * fan_out for slot in layer_sizes for fan_in, fan_out in pairwise(slot))


def padded_stacks(groups: Sequence[BatchGroup], d: int, C: int) -> list[PaddedStack]:
    """Return padded stacks that together hold all ``groups``; the networks have d inputs and C outputs.

    Groups of similar shape share a stack as long as its work with padding is at most ``PADDING`` times that without.
    """

    def shape_key(group: BatchGroup) -> tuple:
        return (group.batch == group.n, len(group.members), len(group.widths[0]), group.widths, group.batch)

    stacks: list[PaddedStack] = []
    stack_work = 0  # of the last stack, without padding
    for group in sorted(groups, key=shape_key):
        group_work = group.batch * _multiplications(group.widths, d, C)
        if stacks and shape_key(stacks[-1].groups[0])[:3] == shape_key(group)[:3]:
            last_stack = stacks[-1]
            widths = tuple(
                tuple(map(max, stack_widths, group_widths))
                for stack_widths, group_widths in zip(last_stack.widths, group.widths, strict=True)
            )
            batch = max(last_stack.batch, group.batch)
            joined_stack = PaddedStack((*last_stack.groups, group), widths, batch)
            if len(joined_stack.groups) * batch * _multiplications(widths, d, C) <= PADDING * (stack_work + group_work):
                stacks[-1], stack_work = joined_stack, stack_work + group_work
                continue
        stacks.append(PaddedStack((group,), group.widths, group.batch))
        stack_work = group_work
    return stacks


def chunks(task: EnsembleTask, memory: int, itemsize: int) -> Iterator[list[BatchGroup]]:
    """Yield lists of batch groups, to be trained one list after the other, whose tensors fit into ``memory`` bytes.

    A batch group that is too large is split. ``itemsize`` is the number of bytes of one value.

    Raises:
        InputError: a single network does not fit into ``memory``.
    """
    d, C = task.x[0].numel(), task.C

    def bytes_needed(group: BatchGroup) -> int:
        """Return an upper estimate of the bytes that the training of a group allocates."""
        n_units = sum(map(sum, group.widths))
        parameters = PARAMETER_COPIES[task.recipe.optimizer] * (_multiplications(group.widths, d, C) + n_units + C)
        activations = ACTIVATION_COPIES * n_units + d + 6 * C * len(group.members)
        n_rows = max(group.batch, min(max(group.n, len(task.x_test)), 1024))
        return round(PADDING * itemsize * (parameters + n_rows * activations))

    chunk: list[BatchGroup] = []
    used_bytes = 0
    for group in sorted(_batch_groups(task), key=lambda group: (len(group.members), group.widths, group.n)):
        for part in _split_group(group, bytes_needed, memory):
            part_bytes = bytes_needed(part)
            if chunk and used_bytes + part_bytes > memory:
                yield chunk
                chunk, used_bytes = [], 0
            chunk.append(part)
            used_bytes += part_bytes
    yield chunk


def _split_group(group: BatchGroup, bytes_needed: Callable[[BatchGroup], int], memory: int) -> Iterator[BatchGroup]:
    """Yield groups with the members of ``group``, in order, each of which needs at most ``memory`` bytes.

    ``bytes_needed`` maps a group to its number of bytes.

    Raises:
        InputError: a single member needs more than ``memory`` bytes.
    """
    slots: list[int] = []
    for slot, k in enumerate(group.members):
        single_bytes = bytes_needed(_subgroup(group, [slot]))
        if single_bytes > memory:
            raise InputError(
                f"member {k} with hidden widths {group.widths[slot]}, which needs {single_bytes:,} bytes; memory={memory:,}",
                expected="memory for one network at a time",
                hint=f"pass memory={single_bytes} or more, or smaller batches",
            )
        if slots and bytes_needed(_subgroup(group, [*slots, slot])) > memory:
            yield _subgroup(group, slots)
            slots = []
        slots.append(slot)
    yield _subgroup(group, slots)


def _subgroup(group: BatchGroup, slots: list[int]) -> BatchGroup:
    """Return the group that consists of the members at the positions ``slots`` of ``group``."""
    members, widths = tuple(group.members[s] for s in slots), tuple(group.widths[s] for s in slots)
    return BatchGroup(members, widths, group.n, group.batch)
