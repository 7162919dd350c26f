"""Rows of a tree of tensors (dict, tuple, list, nested) as bytes: structure as JSON, then every leaf as .npy bytes."""

import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kernelmem.core.batches import Tree, named_leaves
from kernelmem.core.errors import InputError
from kernelmem.recording.storage.npy import row_bytes, rows_from_bytes

MAGIC = b"KMTREE1\n"  # .npy bytes begin with \x93NUMPY


def tree_row_bytes(tree: Tree) -> list[bytes]:
    """Return the bytes of every row of a tree of CPU tensors (B, ...); for a plain tensor .npy bytes.

    Raises:
        InputError: keys that are not strings.
    """
    leaves = [leaf for _, leaf in named_leaves(tree, "x")]
    columns = [row_bytes(leaf.detach().numpy()) for leaf in leaves]
    if isinstance(tree, Tensor):
        return columns[0]
    header = json.dumps([_structure(tree), [len(column[0]) for column in columns]]).encode()
    prefix = MAGIC + len(header).to_bytes(4, "little") + header
    return [b"".join((prefix, *row)) for row in zip(*columns, strict=True)]


def tree_from_row_bytes(rows: Sequence[bytes]) -> Tree:
    """Return the tree of tensors (B, ...) with these rows.

    Raises:
        ValueError: bytes that :func:`tree_row_bytes` did not write, or rows of different trees.
    """
    first = rows[0]
    if not first.startswith(MAGIC):
        return torch.from_numpy(rows_from_bytes(rows))
    start = len(MAGIC) + 4
    end = start + int.from_bytes(first[len(MAGIC) : start], "little")
    try:
        structure, sizes = json.loads(first[start:end])
    except RecursionError as error:
        raise ValueError("a tree that is nested too deeply") from error
    if any(row[:end] != first[:end] or len(row) != end + sum(sizes) for row in rows):
        raise ValueError("rows of different shapes or dtypes in one batch")
    leaves = []
    for size in sizes:
        leaves.append(torch.from_numpy(rows_from_bytes([row[end : end + size] for row in rows])))
        end += size
    return _fill(structure, iter(leaves))


def _structure(tree: Tree) -> dict[str, list] | None:
    """Return None for a leaf, {"dict": [[key, structure], ...]}, {"tuple": [...]}, {"list": [...]}."""
    if isinstance(tree, Tensor):
        return None
    if not isinstance(tree, Mapping):
        return {type(tree).__name__: [_structure(child) for child in tree]}
    invalid = [key for key in tree if not isinstance(key, str)]
    if invalid:
        raise InputError(
            f"x with the key {invalid[0]!r}", expected="strings as keys", hint="name the parts of the batch"
        )
    return {"dict": [[key, _structure(child)] for key, child in tree.items()]}


def _fill(structure: dict[str, list] | None, leaves: Iterator[Tensor]) -> Tree:
    if structure is None:
        return next(leaves)
    ((kind, children),) = structure.items()
    if kind == "dict":
        return {key: _fill(child, leaves) for key, child in children}
    return {"tuple": tuple, "list": list}[kind](_fill(child, leaves) for child in children)
