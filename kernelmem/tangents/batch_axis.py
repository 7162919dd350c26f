"""Batch axis of a tensor, inferred from its shapes at two batch sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchAxis:
    """Axis that holds n rows, or n · multiplicity entries (windows, frames) with the row index slowest (``major``) or fastest."""

    axis: int
    multiplicity: int = 1
    major: bool = True

    def rows(self, tensor: Tensor, n: int) -> Tensor:
        """Return (n, [multiplicity,] other axes in their order): the row axis first; a view, or a copy if needed."""
        moved = tensor.movedim(self.axis, 0)
        if self.multiplicity == 1:
            return moved
        if self.major:
            return moved.reshape(n, self.multiplicity, *moved.shape[1:])
        return moved.reshape(self.multiplicity, n, *moved.shape[1:]).transpose(0, 1)


def find_batch_axis(shapes: Sequence[torch.Size], sizes: Sequence[int]) -> BatchAxis | None:
    """Find the axis whose length is proportional to the batch size; None if no axis, or more than one, is.

    >>> find_batch_axis([torch.Size((7, 2, 3)), torch.Size((7, 3, 3))], [2, 3])
    BatchAxis(axis=1, multiplicity=1, major=True)
    >>> find_batch_axis([torch.Size((4, 3)), torch.Size((4, 3))], [2, 3]) is None
    True
    """
    if len({len(shape) for shape in shapes}) != 1:
        return None
    changing = [axis for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1]
    if len(changing) != 1:
        return None
    axis = changing[0]
    multiplicities = {shape[axis] / size for shape, size in zip(shapes, sizes, strict=True)}
    if len(multiplicities) != 1 or not (multiplicity := multiplicities.pop()).is_integer():
        return None
    return BatchAxis(axis, int(multiplicity))


def resolve_interleaving(batch_axis: BatchAxis, gradient: Tensor, n: int) -> BatchAxis | None:
    """Tell row-major from interleaved flattening, from the gradient of the outputs of the first row.

    That gradient is nonzero only in entries of the first row. None: neither order explains it, or it is zero.
    """
    if batch_axis.multiplicity == 1:
        return batch_axis
    nonzero = gradient.movedim(batch_axis.axis, 0).flatten(1).abs().sum(1) > 0
    k = batch_axis.multiplicity
    if not bool(nonzero.any()):
        return None
    if not bool(nonzero[k:].any()):
        return batch_axis
    if not bool(nonzero.reshape(k, n)[:, 1:].any()):
        return BatchAxis(batch_axis.axis, k, major=False)
    return None
