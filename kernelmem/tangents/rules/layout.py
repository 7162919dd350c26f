"""Views of parameters: the entries that they select, and tangents in the shape of the parameter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Function from a parameter to a tensor of some of its entries, each at most once unless the view repeats them.

    Entries are selected from the flattened parameter, arranged in an array of shape ``sizes``, its axes permuted, and the
    result reshaped.

    Attributes:
        parameter_shape: shape of the parameter.
        sizes: sizes of the array before its axes are permuted.
        permutation: axis of that array for each axis of the permuted one.
        shape: shape of the result.
        strides: steps of the array in the flattened parameter, if it is not the whole parameter; otherwise None.
        offset: position of the first entry in the flattened parameter.
    """

    parameter_shape: torch.Size
    sizes: tuple[int, ...]
    permutation: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0

    @classmethod
    def whole(cls, parameter: Tensor) -> "Layout":
        """Return the layout of a parameter as it is."""
        return cls(parameter.shape, tuple(parameter.shape), tuple(range(parameter.ndim)), tuple(parameter.shape))

    def arranged(self, permutation: Sequence[int], shape: Sequence[int]) -> "Layout":
        """Return the layout of the view after its axes are permuted, and the result is reshaped to ``shape``."""
        axes = tuple(self.permutation[axis] for axis in permutation)
        return Layout(self.parameter_shape, self.sizes, axes, tuple(shape), self.strides, self.offset)

    @property
    def is_whole(self) -> bool:
        """True if the result has the shape and the order of entries of the parameter."""
        kept_order = self.permutation == tuple(range(len(self.sizes)))
        return self.strides is None and kept_order and self.shape == self.parameter_shape

    @property
    def repeats(self) -> bool:
        """True if an entry of the parameter may occur more than once in the result."""
        return self.strides is not None and not _is_injective(self.sizes, self.strides)

    def view(self, parameter: Tensor) -> Tensor:
        """Return the entries (..., *shape) of parameters (..., *parameter_shape)."""
        leading = parameter.shape[: parameter.ndim - len(self.parameter_shape)]
        if self.strides is not None:
            parameter = parameter.reshape((*leading, -1))[..., self._entries(parameter.device)]
        axes = (*range(len(leading)), *(len(leading) + axis for axis in self.permutation))
        return parameter.reshape((*leading, *self.sizes)).permute(axes).reshape((*leading, *self.shape))

    def restore(self, tangent: Tensor) -> Tensor:
        """Return tangents (n, k, *parameter_shape) with respect to the parameter, from those (n, k, *shape) of the view."""
        n, k = tangent.shape[:2]
        axes = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        permuted_sizes = [self.sizes[axis] for axis in self.permutation]
        tangent = tangent.reshape(n, k, *permuted_sizes).permute(0, 1, *(2 + axis for axis in axes))
        if self.strides is None:
            return tangent.reshape(n, k, *self.parameter_shape)
        total = tangent.new_zeros(n, k, self.parameter_shape.numel())
        total.index_add_(2, self._entries(tangent.device), tangent.reshape(n, k, -1))
        return total.reshape(n, k, *self.parameter_shape)

    def _entries(self, device: torch.device) -> Tensor:
        """Return the positions in the flattened parameter of the entries of the array, in its order."""
        assert self.strides is not None
        positions = torch.arange(self.parameter_shape.numel(), device=device)
        return positions.as_strided(self.sizes, self.strides, self.offset).flatten()


def requires_gradient(tensor: Tensor) -> bool:
    """Return True if a tensor requires gradients, or is a view of one that does (made under no_grad)."""
    return tensor.requires_grad or (tensor._base is not None and tensor._base.requires_grad)


def is_original(weight: Tensor) -> bool:
    """Return True if a weight is a parameter and not a view of one; a view that is made under no_grad is a leaf too."""
    return weight.is_leaf and weight._base is None


def parameter_view(weight: Tensor) -> tuple[Tensor, Layout | None]:
    """Return the parameter that ``weight`` is or is a view of, with the layout of the view.

    A weight that is computed from parameters in another way is returned with None.
    """
    if is_original(weight):
        return weight, Layout.whole(weight)
    base = weight._base
    if base is None or not base.is_leaf or not base.requires_grad or not base.is_contiguous():
        return weight, None
    if base.dtype != weight.dtype or weight.is_conj() or weight.is_neg():
        return weight, None
    offset = int(weight.storage_offset() - base.storage_offset())
    axes = sorted(range(weight.ndim), key=lambda axis: (-weight.stride(axis), -weight.shape[axis], axis))
    sizes, strides = tuple(weight.shape[axis] for axis in axes), tuple(weight.stride(axis) for axis in axes)
    permutation = tuple(axes.index(axis) for axis in range(weight.ndim))
    if weight.numel() == base.numel() and _is_injective(sizes, strides):
        return base, Layout(base.shape, sizes, permutation, tuple(weight.shape))
    return base, Layout(base.shape, sizes, permutation, tuple(weight.shape), strides, offset)


def _is_injective(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Return True if a strided array surely has no entry twice: each stride exceeds the extent of the smaller ones."""
    extent = 0  # largest position so far
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size > 1:
            if stride <= extent:
                return False
            extent += stride * (size - 1)
    return True
