"""Rows of a tree of tensors (dict, tuple, list, nested) as bytes: structure as JSON, then every leaf as .npy bytes."""

import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kernelmem.core.batches import Tree, named_leaves
from kernelmem.core.errors import InputError
from kernelmem.core.files.hashed_files import load_json
from kernelmem.recording.storage.npy import row_bytes, rows_from_bytes

MAGIC = b"KMTREE1\n"  # .npy bytes begin with \x93NUMPY


def tree_row_bytes(tree: Tree) -> list[bytes]:
    """Return a list with the bytes of each of the B rows of a tree of tensors (B, ...), on any device.

    For a plain tensor they are .npy bytes; otherwise the structure of the tree precedes the .npy bytes of its leaves.

    Raises:
        InputError: a dict has keys that are not strings.
    """
    leaves = [leaf for _, leaf in named_leaves(tree, "x")]
    columns = [row_bytes(leaf.detach().cpu().numpy()) for leaf in leaves]
    if isinstance(tree, Tensor):
        return columns[0]
    header = json.dumps([_structure(tree), [len(column[0]) for column in columns]]).encode()
    prefix = MAGIC + len(header).to_bytes(4, "little") + header
    return [b"".join((prefix, *row)) for row in zip(*columns, strict=True)]


def tree_from_row_bytes(rows: Sequence[bytes]) -> Tree:
    """Return the tree of tensors (B, ...) whose B rows have the bytes ``rows``.

    Raises:
        ValueError: the bytes were not written by :func:`tree_row_bytes`, or rows belong to different trees.
    """
    first_row = rows[0]
    if not first_row.startswith(MAGIC):
        return torch.from_numpy(rows_from_bytes(rows))
    header_start = len(MAGIC) + 4
    leaf_start = header_start + int.from_bytes(first_row[len(MAGIC) : header_start], "little")
    structure, leaf_sizes = load_json(first_row[header_start:leaf_start])
    if any(row[:leaf_start] != first_row[:leaf_start] or len(row) != leaf_start + sum(leaf_sizes) for row in rows):
        raise ValueError("rows of different shapes or dtypes in one batch")
    leaves = []
    for leaf_size in leaf_sizes:
        leaves.append(torch.from_numpy(rows_from_bytes([row[leaf_start : leaf_start + leaf_size] for row in rows])))
        leaf_start += leaf_size
    remaining_leaves = iter(leaves)
    tree = _build_tree(structure, remaining_leaves)
    if next(remaining_leaves, None) is not None:
        raise ValueError("more leaves than the structure has")
    return tree


def _structure(tree: Tree) -> dict[str, list] | None:
    """Return the structure of a tree as a JSON value.

    It is None for a leaf, {"dict": [[key, structure], ...]}, {"tuple": [structure, ...]} or {"list": [structure, ...]}.
    """
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


def _build_tree(structure: dict[str, list] | None, leaves: Iterator[Tensor]) -> Tree:
    """Return the tree with a structure as :func:`_structure` returns it, and with ``leaves``, in order, as its leaves."""
    if structure is None:
        if (leaf := next(leaves, None)) is None:
            raise ValueError("fewer leaves than the structure has")
        return leaf
    ((kind, children),) = structure.items()
    if kind == "dict":
        return {key: _build_tree(child, leaves) for key, child in children}
    return {"tuple": tuple, "list": list}[kind](_build_tree(child, leaves) for child in children)
