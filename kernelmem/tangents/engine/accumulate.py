"""Where contractions go: added to their part of a result, the result mirrored in the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kernelmem.tangents.groups.base import Buffers, Combine, add_explicit

__all__ = ["KernelAccumulator", "TangentAssembler", "add_dense", "mirror"]

EVERYTHING = slice(None), slice(None)


@dataclass(frozen=True)
class KernelAccumulator:
    """What contractions are added to: one tensor for each name; every group has the name of its own."""

    combine: Combine
    tensors: dict[str, Tensor]
    names: Sequence[str]
    symmetric: bool

    def add(
        self,
        index: int,
        add: Callable[..., None],
        x: Buffers,
        y: Buffers,
        block: range,
        part: tuple[slice, slice] = EVERYTHING,
        *,
        symmetric: bool,
    ) -> None:
        """Add one group's contraction of two sets of rows (those of ``part``) in a block of directions."""
        result, (rows, columns) = self.tensors[self.names[index]], part
        if self.combine == "sum":
            out = result[rows, columns]
        elif self.combine == "diagonal":
            out = result[block.start : block.stop, rows, columns]
        else:
            out = result[rows, :, columns]
        add(out, x, y, self.combine, symmetric=symmetric)


def add_dense(out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
    """Add the kernel block of parameters whose tangents are there in full."""
    add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)


class TangentAssembler:
    """One group's tangents of n rows, put together pass by pass; what was written into ``space`` lies there already."""

    def __init__(self, n: int, space: Tensor | None = None) -> None:
        self.n, self.space, self.start = n, space, 0
        self.found: Buffers = {}

    def add(self, part: Buffers) -> None:
        """The next rows."""
        rows = 0
        for name, tensor in part.items():
            rows = len(tensor)
            if rows == self.n:
                self.found[name] = tensor
            elif self.space is not None and _same_storage(tensor, self.space):
                self.found[name] = self.space.view(self.n, *tensor.shape[1:])
            else:
                if name not in self.found:
                    self.found[name] = tensor.new_empty(self.n, *tensor.shape[1:])
                self.found[name][self.start : self.start + rows] = tensor
        self.start += rows


def _same_storage(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def mirror(result: Tensor, combine: str) -> None:
    """Copy the upper triangle to the lower one, so that the kernel is symmetric to the bit."""
    if combine == "diagonal":
        for layer in result:
            mirror(layer, "sum")
        return
    matrix = result.view(result.shape[0] * result.shape[1], -1) if combine == "full" else result
    size = 512
    for i in range(0, len(matrix), size):
        corner = matrix[i : i + size, i : i + size]
        corner.copy_(corner.triu() + corner.triu(1).T)
        matrix[i + size :, i : i + size] = matrix[i : i + size, i + size :].T
