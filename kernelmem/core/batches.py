"""Batches: inputs as users have them (tensor, array, dict, tuple, Dataset, DataLoader), read as rows to slice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError

Batch: TypeAlias = ArrayLike | Mapping[str, Any] | tuple[Any, ...] | Dataset[Any] | DataLoader[Any]
"""Examples as a model takes them: an array, a dict or tuple of arrays (nested too), a Dataset or a DataLoader."""

Tree: TypeAlias = Any
"""A tensor, or a dict, tuple or list of tensors (nested too), as models take them. Models are typed no further."""

Forward: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""Type of ``forward=``: a function of (model, batch) that returns the outputs (n, C)."""


@dataclass(frozen=True)
class Rows:
    """A batch of n examples: a tensor, or a dict, tuple or list of tensors (possibly nested) with n entries each."""

    tree: Tree
    n: int

    def slice(self, start: int, stop: int) -> Tree:
        """Return the examples from ``start`` to ``stop`` (excluded), in the structure of the batch."""
        return map_tree(self.tree, lambda leaf: leaf[start:stop].clone())  # a model may write to its input

    def take(self, indices: Tensor | list[int]) -> Tree:
        """Return the examples at ``indices``, which may repeat, in the structure of the batch."""
        return map_tree(self.tree, lambda leaf: leaf[indices])

    def map(self, function: Callable[[Tensor], Tensor]) -> Tree:
        """Return the structure of the batch with ``function`` applied to every tensor in it."""
        return map_tree(self.tree, function)

    def to(self, *, dtype: torch.dtype, device: torch.device) -> "Rows":
        """Return the rows on ``device``, with floating-point tensors converted to ``dtype``.

        Integer tensors keep their type.
        """
        return Rows(map_tree(self.tree, lambda leaf: _cast_floats(leaf, dtype, device)), self.n)


def as_rows(x: "Batch | Rows", name: str = "x") -> Rows:
    """Read ``x`` as rows. From a Dataset or DataLoader of (input, label) or (input,), the inputs are used.

    Raises:
        InputError: ``x`` has no rows, parts of different lengths, NaN, or values that are not numbers.
    """
    if isinstance(x, Rows):
        return x
    if isinstance(x, DataLoader):
        x = _concatenate([_without_labels(batch) for batch in x], name)
    elif isinstance(x, Dataset):
        length = len(x)  # type: ignore[arg-type]  # map-style only: an iterable one has no length and raises
        x = _without_labels(default_collate([x[i] for i in range(length)])) if length else torch.empty(0)
    tree = map_tree(x, lambda leaf: as_tensor(leaf, name))
    lengths = {leaf.shape[0] if leaf.ndim else 0 for _, leaf in named_leaves(tree, name)}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"{name} with leading lengths {sorted(lengths)}",
            expected="at least one row, and the same number of rows in every part",
            hint=f"put the examples along the first axis of {name}",
        )
    return Rows(tree, lengths.pop())


def _without_labels(batch: Tree) -> Tree:
    """Return the input of an (input, label) or (input,) batch; other batches are returned as they are."""
    return batch[0] if isinstance(batch, list | tuple) and len(batch) in (1, 2) else batch


def _concatenate(batches: list[Tree], name: str) -> Tree:
    """Return one batch that joins ``batches`` of the same structure along the first axis.

    ``name`` names the batch in the InputError that is raised if ``batches`` is empty.
    """
    if not batches:
        raise InputError(f"{name}, an empty DataLoader", expected="at least one batch", hint="check its dataset")
    first = batches[0]
    if isinstance(first, Mapping):
        return {key: _concatenate([batch[key] for batch in batches], name) for key in first}
    if isinstance(first, list | tuple):
        return tuple(_concatenate([batch[i] for batch in batches], name) for i in range(len(first)))
    return torch.cat(batches)


def map_tree(tree: Tree, function: Callable[[Tree], object]) -> Tree:
    """Return the nested structure ``tree`` with ``function`` applied to its leaves.

    Dicts and tuples are branches, and everything that is not a dict, tuple or list is a leaf. A list is a branch if its
    first element is a tensor or a nested structure; a list of numbers is a leaf.
    """
    if isinstance(tree, Mapping):
        return {key: map_tree(leaf, function) for key, leaf in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tree(leaf, function) for leaf in tree)
    if isinstance(tree, list) and _is_branch(tree):
        return [map_tree(leaf, function) for leaf in tree]
    return function(tree)


def named_leaves(tree: Tree, name: str) -> list[tuple[str, Tree]]:
    """Return the pairs (name, leaf) of the nested structure ``tree`` in order.

    The names start with ``name`` and tell the position, as in ``x``, ``x.input_ids`` and ``x[0]``.
    """
    if isinstance(tree, Mapping):
        return [pair for key, leaf in tree.items() for pair in named_leaves(leaf, f"{name}.{key}")]
    if isinstance(tree, tuple) or (isinstance(tree, list) and _is_branch(tree)):
        return [pair for i, leaf in enumerate(tree) for pair in named_leaves(leaf, f"{name}[{i}]")]
    return [(name, tree)]


def _is_branch(tree: object) -> bool:
    """Return True for a structure that contains tensors or mappings, False for a list of numbers."""
    if isinstance(tree, list | tuple):
        return bool(tree) and _is_branch(tree[0])
    return isinstance(tree, Tensor | Mapping)


def _cast_floats(leaf: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else leaf.dtype)
