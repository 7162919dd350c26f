"""Tensors in nested structures."""

from torch import Tensor


def tensors_in(tree: object) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for item in tree for tensor in tensors_in(item)]
