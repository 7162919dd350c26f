"""Accumulation of kernel blocks into the result, and of tangents into buffers; the symmetric half is filled in last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kernelmem.tangents.groups.base import Buffers, Combine, add_explicit

ALL = slice(None), slice(None)


@dataclass(frozen=True)
class KernelAccumulator:
    """Result tensors by name, to which the contractions of groups are added; ``names[i]`` is that of group i."""

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
        tile: tuple[slice, slice] = ALL,
        *,
        symmetric: bool,
    ) -> None:
        """Add the contraction of one group for a tile of (rows, columns) and a block of directions."""
        result, (rows, columns) = self.tensors[self.names[index]], tile
        if self.combine == "sum":
            out = result[rows, columns]
        elif self.combine == "diagonal":
            out = result[block.start : block.stop, rows, columns]
        else:
            out = result[rows, :, columns]
        add(out, x, y, self.combine, symmetric=symmetric)


def add_dense(out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
    """Add the kernel block of parameters whose tangents are formed."""
    add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)


class TangentAssembler:
    """Tangents of one group for n rows, put together pass by pass, without a copy for those written into ``buffer``."""

    def __init__(self, n: int, buffer: Tensor | None = None) -> None:
        self.n, self.buffer, self.start = n, buffer, 0
        self.buffers: Buffers = {}

    def add(self, chunk: Buffers) -> None:
        """Append the next rows."""
        rows = 0
        for name, tensor in chunk.items():
            rows = len(tensor)
            if rows == self.n:
                self.buffers[name] = tensor
            elif self.buffer is not None and _same_storage(tensor, self.buffer):
                self.buffers[name] = self.buffer.view(self.n, *tensor.shape[1:])
            else:
                if name not in self.buffers:
                    self.buffers[name] = tensor.new_empty(self.n, *tensor.shape[1:])
                self.buffers[name][self.start : self.start + rows] = tensor
        self.start += rows


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
