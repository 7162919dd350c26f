"""Tensors in nested structures, and backward passes of captured passes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kernelmem.core.errors import UnsupportedModelError


def tensors_in(tree: object) -> list[Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for item in tree for tensor in tensors_in(item)]


def backward_pass(
    start: Tensor | GradientEdge, inputs: Sequence[Tensor] | Sequence[GradientEdge], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of Σ cotangent · start at ``inputs``, None where start does not depend on them.

    Raises:
        UnsupportedModelError: an activation was modified in place after an operation had read it.
    """
    try:
        return torch.autograd.grad(start, inputs, cotangent, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise UnsupportedModelError(
            "a model that modifies in place what a layer has read, so that torch cannot differentiate it",
            expected="activations that do not change after a layer has read them",
            hint="replace the in-place operation (inplace=True, +=, relu_) by one that returns a new tensor",
        ) from error
