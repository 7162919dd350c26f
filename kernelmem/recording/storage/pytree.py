"""Rows of a tree of tensors (dict, tuple, list, nested) as bytes: its shape in JSON, then every leaf as .npy bytes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kernelmem.core.batches import named_leaves
from kernelmem.core.errors import InputError
from kernelmem.recording.storage.npy import row_bytes, rows_from_bytes

__all__ = ["tree_from_row_bytes", "tree_row_bytes"]

MAGIC = b"KMTREE1\n"  # .npy bytes begin with \x93NUMPY


def tree_row_bytes(tree: Any) -> list[bytes]:
    """The bytes of every row of a tree of CPU tensors (B, ...); of a plain tensor its .npy bytes.

    Raises:
        InputError: keys that are no strings, a dtype that NumPy does not know.
    """
    leaves = [leaf for _, leaf in named_leaves(tree, "x")]
    columns = [row_bytes(leaf.detach().numpy()) for leaf in leaves]
    if isinstance(tree, Tensor):
        return columns[0]
    header = json.dumps([_shape(tree), [len(column[0]) for column in columns]]).encode()
    prefix = MAGIC + len(header).to_bytes(4, "little") + header
    return [b"".join((prefix, *row)) for row in zip(*columns, strict=True)]


def tree_from_row_bytes(rows: Sequence[bytes]) -> Any:
    """The tree of tensors (B, ...) whose rows these are.

    Raises:
        ValueError: not what :func:`tree_row_bytes` wrote, or rows of different trees.
    """
    first = rows[0]
    if not first.startswith(MAGIC):
        return torch.from_numpy(rows_from_bytes(rows))
    start = len(MAGIC) + 4
    end = start + int.from_bytes(first[len(MAGIC) : start], "little")
    try:
        shape, sizes = json.loads(first[start:end])
    except RecursionError as error:
        raise ValueError("a tree too deep to be one") from error
    if any(row[:end] != first[:end] or len(row) != end + sum(sizes) for row in rows):
        raise ValueError("rows of different shapes or dtypes in one batch")
    leaves = []
    for size in sizes:
        leaves.append(torch.from_numpy(rows_from_bytes([row[end : end + size] for row in rows])))
        end += size
    return _filled(shape, iter(leaves))


def _shape(tree: Any) -> Any:
    """None for a leaf, {"dict": [[key, shape], ...]}, {"tuple": [...]}, {"list": [...]}."""
    if isinstance(tree, Tensor):
        return None
    if not isinstance(tree, Mapping):
        return {type(tree).__name__: [_shape(part) for part in tree]}
    strange = [key for key in tree if not isinstance(key, str)]
    if strange:
        raise InputError(
            f"x with the key {strange[0]!r}", expected="names: strings", hint="name the parts of the batch"
        )
    return {"dict": [[key, _shape(part)] for key, part in tree.items()]}


def _filled(shape: Any, leaves: Any) -> Any:
    if shape is None:
        return next(leaves)
    ((kind, parts),) = shape.items()
    if kind == "dict":
        return {key: _filled(part, leaves) for key, part in parts}
    return {"tuple": tuple, "list": list}[kind](_filled(part, leaves) for part in parts)
