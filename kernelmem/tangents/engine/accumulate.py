"""Accumulation of kernel blocks into the result, and of tangents into buffers; the symmetric half is filled in last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kernelmem.tangents.groups.base import Buffers, Combine, add_explicit

ALL = slice(None), slice(None)


@dataclass(frozen=True)
class KernelAccumulator:
    """Result tensors of a kernel computation, to which the contractions of parameter groups are added.

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
        """Add the contraction of the tangents ``x`` and ``y`` of one group to its result, in place.

        ``tile`` gives the rows and columns of the kernel that they belong to, ``block`` the output directions.
        """
        result, (rows, columns) = self.tensors[self.names[group_index]], tile
        if self.combine == "sum":
            tile_result = result[rows, columns]
        elif self.combine == "diagonal":
            tile_result = result[block.start : block.stop, rows, columns]
        else:
            tile_result = result[rows, :, columns]
        add_block(tile_result, x, y, self.combine, symmetric=symmetric)


def add_dense(out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
    """Add inner products of x["tangents"] (n, k, p) and y["tangents"] (m, k, p) to ``out``, as :func:`add_explicit` does."""
    add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)


class TangentAssembler:
    """Collects the tangents of one parameter group for n examples from several forward passes into ``buffers``.

    Tangents that were written into the tensor ``buffer`` are not copied again.
    """

    def __init__(self, n: int, buffer: Tensor | None = None) -> None:
        self.n, self.buffer, self.start = n, buffer, 0
        self.buffers: Buffers = {}

    def add(self, chunk: Buffers) -> None:
        """Append the named tensors in ``chunk``, whose first axis holds the next examples."""
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
    """Copy the upper triangle of a kernel to its lower one in place, so that it is exactly symmetric.

    ``result`` is (n, n) for ``combine="sum"``, (k, n, n) for "diagonal" and (n, k, n, k) for "full", k output directions.
    """
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
