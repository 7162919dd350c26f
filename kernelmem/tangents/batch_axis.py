"""Where the rows of a batch lie in a tensor: found by running the model on two batch sizes, never guessed from one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchAxis", "find_batch_axis"]


@dataclass(frozen=True)
class BatchAxis:
    """The axis that holds the rows: n of them, or n·multiplicity (windows, frames), row by row (``major``) or not."""

    axis: int
    multiplicity: int = 1
    major: bool = True

    def rows(self, tensor: Tensor, n: int) -> Tensor:
        """View (or copy) as (n, multiplicity·others..., rest): the row axis first, all else in its order.

        With multiplicity 1 that is the tensor with its row axis moved to the front.
        """
        moved = tensor.movedim(self.axis, 0)
        if self.multiplicity == 1:
            return moved
        if self.major:
            return moved.reshape(n, self.multiplicity, *moved.shape[1:])
        return moved.reshape(self.multiplicity, n, *moved.shape[1:]).transpose(0, 1)


def find_batch_axis(shapes: Sequence[torch.Size], sizes: Sequence[int]) -> BatchAxis | None:
    """The one axis whose length is proportional to the batch size; None if there is no such axis, or more than one.

    >>> find_batch_axis([torch.Size((7, 2, 3)), torch.Size((7, 3, 3))], [2, 3])
    BatchAxis(axis=1, multiplicity=1, major=True)
    >>> find_batch_axis([torch.Size((4, 3)), torch.Size((4, 3))], [2, 3]) is None
    True
    """
    if len({len(shape) for shape in shapes}) != 1:
        return None
    moving = [axis for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1]
    if len(moving) != 1:
        return None
    axis = moving[0]
    multiplicities = {shape[axis] / size for shape, size in zip(shapes, sizes, strict=True)}
    if len(multiplicities) != 1 or not (multiplicity := multiplicities.pop()).is_integer():
        return None
    return BatchAxis(axis, int(multiplicity))


def resolve_interleaving(batch_axis: BatchAxis, gradient: Tensor, n: int) -> BatchAxis | None:
    """Tell row-by-row from interleaved flattening, by the gradient of the first row's outputs alone.

    That gradient may be non-zero only where the first row lies. None if neither order explains it, or if it is zero.
    """
    if batch_axis.multiplicity == 1:
        return batch_axis
    used = gradient.movedim(batch_axis.axis, 0).flatten(1).abs().sum(1) > 0
    k = batch_axis.multiplicity
    if not bool(used.any()):
        return None
    if not bool(used[k:].any()):
        return batch_axis
    if not bool(used.reshape(k, n)[:, 1:].any()):
        return BatchAxis(batch_axis.axis, k, major=False)
    return None
