"""Accumulation of kernel blocks into the result, and of tangents into buffers; the symmetric half is filled in last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kernelmem.tangents.groups.base import Buffers, Combine, add_explicit

ALL = slice(None), slice(None)


@dataclass(frozen=True)
class KernelAccumulator:
    """Result tensors, to which the contractions of groups are added.

    Attributes:
        combine: combination of several directions in the result.
        tensors: results by name.
        names: name of the result to which each group is added.
        symmetric: True if only the upper triangle is computed.
    """

    combine: Combine
    tensors: dict[str, Tensor]
    names: Sequence[str]
    symmetric: bool

    def add(
        self,
        group_index: int,
        add_block: Callable[..., None],
        x: Buffers,
        y: Buffers,
        block: range,
        tile: tuple[slice, slice] = ALL,
        *,
        symmetric: bool,
    ) -> None:
        """Add the contraction of one group for a tile of (rows, columns) and a block of directions."""
        result, (rows, columns) = self.tensors[self.names[group_index]], tile
        if self.combine == "sum":
            tile_result = result[rows, columns]
        elif self.combine == "diagonal":
            tile_result = result[block.start : block.stop, rows, columns]
        else:
            tile_result = result[rows, :, columns]
        add_block(tile_result, x, y, self.combine, symmetric=symmetric)


def add_dense(out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
    """Add the kernel block of parameters whose tangents are formed."""
    add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)


class TangentAssembler:
    """Tangents of one group for n rows, assembled pass by pass, without a copy of those written into ``buffer``."""

    def __init__(self, n: int, buffer: Tensor | None = None) -> None:
        self.n, self.buffer, self.start = n, buffer, 0
        self.buffers: Buffers = {}

    def add(self, chunk: Buffers) -> None:
        """Append the tangents of the next rows."""
        n_rows = 0
        for name, tensor in chunk.items():
            n_rows = len(tensor)
            if n_rows == self.n:
                self.buffers[name] = tensor
            elif self.buffer is not None and _same_storage(tensor, self.buffer):
                self.buffers[name] = self.buffer.view(self.n, *tensor.shape[1:])
            else:
                if name not in self.buffers:
                    self.buffers[name] = tensor.new_empty(self.n, *tensor.shape[1:])
                self.buffers[name][self.start : self.start + n_rows] = tensor
        self.start += n_rows


def _same_storage(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def mirror(result: Tensor, combine: str) -> None:
    """Copy the upper triangle to the lower one, so that the kernel is exactly symmetric."""
    if combine == "diagonal":
        for kernel in result:
            mirror(kernel, "sum")
        return
    matrix = result.view(result.shape[0] * result.shape[1], -1) if combine == "full" else result
    size = 512
    for i in range(0, len(matrix), size):
        diagonal_block = matrix[i : i + size, i : i + size]
        diagonal_block.copy_(diagonal_block.triu() + diagonal_block.triu(1).T)
        matrix[i + size :, i : i + size] = matrix[i : i + size, i + size :].T
