"""What the trainers share: the order of the rows from a seed, the sizes of the batches, rows in the model's dtype."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, named_leaves
from kernelmem.core.errors import InputError

__all__ = ["batch_sizes", "in_dtype", "shuffled"]


def batch_sizes(n: int, batch_size: int) -> list[int]:
    """The sizes of the batches of one pass over ``n`` rows.

    The last may be smaller, but a single row (of which BatchNorm has no variance) goes with the batch before it.

    >>> batch_sizes(10, 4), batch_sizes(9, 4)
    ([4, 4, 2], [4, 5])
    """
    sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def shuffled(n: int, batch_size: int, *, epochs: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The batches of every epoch, as positions of their rows, shuffled by a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    sizes = batch_sizes(n, batch_size)
    for _ in range(epochs):
        yield torch.randperm(n, generator=generator).split(sizes)


def in_dtype(rows: Rows, model: nn.Module, name: str = "x") -> Rows:
    """Floating-point rows in the dtype of the model's parameters.

    Raises:
        InputError: values beyond its range.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def brought(leaf: Tensor) -> Tensor:
        return leaf if dtype is None or not leaf.is_floating_point() else leaf.to(dtype)

    brought_rows = Rows(rows.map(brought), rows.n)
    pairs = zip(named_leaves(rows.tree, name), named_leaves(brought_rows.tree, name), strict=True)
    for (where, before), (_, after) in pairs:
        if after is not before and not bool(after.isfinite().all()):
            raise InputError(
                f"{where} with values up to {float(before.abs().max()):.3g}",
                expected=f"values in the range of the model's dtype, {str(dtype).removeprefix('torch.')}",
                do="scale the features, or call model.double()",
            )
    return brought_rows
