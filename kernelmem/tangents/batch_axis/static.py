"""Batch axis of a tensor, inferred from its shapes at two batch sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchAxis:
    """Axis that holds n rows, or n · multiplicity entries (windows, frames of each row).

    Attributes:
        axis: position of the axis in the tensor's shape.
        multiplicity: number of entries per row along the axis.
        major: True if the entries of a row are adjacent; False if the row index changes fastest.
    """

    axis: int
    multiplicity: int = 1
    major: bool = True

    def fits(self, shape: torch.Size, n: int) -> bool:
        """Return True if a tensor of this shape can hold n examples along the axis."""
        return self.axis < len(shape) and shape[self.axis] == n * self.multiplicity

    def rows_shape(self, shape: torch.Size, n: int) -> torch.Size:
        """Return the shape of the result of :meth:`rows` for a tensor of shape ``shape``."""
        others = shape[: self.axis] + shape[self.axis + 1 :]
        return torch.Size((n, *((self.multiplicity,) if self.multiplicity > 1 else ()), *others))

    def rows(self, tensor: Tensor, n: int) -> Tensor:
        """Return ``tensor`` with the axis of n examples first, as a view where possible.

        The shape is (n, other axes), or (n, multiplicity, other axes) if an example has several entries.
        """
        batch_first = tensor.movedim(self.axis, 0)
        if self.multiplicity == 1:
            return batch_first
        if self.major:
            return batch_first.reshape(n, self.multiplicity, *batch_first.shape[1:])
        return batch_first.reshape(self.multiplicity, n, *batch_first.shape[1:]).transpose(0, 1)


def find_batch_axis(shapes: Sequence[torch.Size], sizes: Sequence[int]) -> BatchAxis | None:
    """Find the axis whose length is proportional to the batch size; return None if there is not exactly one.

    >>> find_batch_axis([torch.Size((7, 2, 3)), torch.Size((7, 3, 3))], [2, 3])
    BatchAxis(axis=1, multiplicity=1, major=True)
    >>> find_batch_axis([torch.Size((4, 3)), torch.Size((4, 3))], [2, 3]) is None
    True
    """
    if len({len(shape) for shape in shapes}) != 1:
        return None
    changing_axes = [axis for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1]
    if len(changing_axes) != 1:
        return None
    axis = changing_axes[0]
    multiplicities = {shape[axis] / size for shape, size in zip(shapes, sizes, strict=True)}
    if len(multiplicities) != 1 or not (multiplicity := multiplicities.pop()).is_integer():
        return None
    return BatchAxis(axis, int(multiplicity))


def resolve_interleaving(batch_axis: BatchAxis, gradient: Tensor, n: int) -> BatchAxis | None:
    """Find out whether the entries of an example are adjacent along the batch axis, or interleaved with other examples.

    ``gradient`` is the gradient of the first example's model outputs, nonzero only in its own entries. Returns the axis with
    the order filled in, or None if neither order explains the gradient or if it is zero.
    """
    if batch_axis.multiplicity == 1:
        return batch_axis
    is_nonzero = gradient.movedim(batch_axis.axis, 0).flatten(1).abs().sum(1) > 0
    multiplicity = batch_axis.multiplicity
    if not bool(is_nonzero.any()):
        return None
    if not bool(is_nonzero[multiplicity:].any()):
        return batch_axis
    if not bool(is_nonzero.reshape(multiplicity, n)[:, 1:].any()):
        return BatchAxis(batch_axis.axis, multiplicity, major=False)
    return None
