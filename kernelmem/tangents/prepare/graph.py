"""Leaves of autograd graphs."""

from collections.abc import Collection

from torch import Tensor
from torch.autograd.graph import Node


def graph_leaves(tensor: Tensor, stops: Collection[Node] = ()) -> list[Tensor]:
    """Return the leaves of the autograd graph of ``tensor``; the search does not pass the nodes ``stops``."""
    leaves: list[Tensor] = [tensor] if tensor.grad_fn is None and tensor.requires_grad else []
    visited: set[Node] = set(stops)
    stack = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return leaves
