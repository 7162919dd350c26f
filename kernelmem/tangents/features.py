"""Factored tangents of a set of rows, and their contraction into kernel blocks.

For one use of one parameter, the tangent of row n in direction k (an output, or a combination of outputs) is kept as

- ``VectorFeature``: a_n ⊗ g_nk (one position: a Linear layer on (n, in)); K = (A Aᵀ + 1) ∘ (G Gᵀ);
- ``ExplicitFeature``: the tangent itself, (n, k, p); K = T Tᵀ.

``combine`` says which blocks are wanted: "sum" over k (n, m), "diagonal" (n, m, k), "full" (n, m, k, k).
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

__all__ = ["Combine", "ExplicitFeature", "Feature", "VectorFeature", "gram"]

Combine = Literal["sum", "diagonal", "full"]


class Feature(Protocol):
    """Factored tangents of n rows in k directions."""

    def block(self, other: Any, combine: Combine) -> Tensor:
        """Contract with the features of other rows (of the same kind: same use, same directions)."""
        ...


@dataclass(frozen=True)
class VectorFeature:
    """Tangents a_n ⊗ g_nk of a weight, and g_nk of its bias where ``ones``."""

    activations: Tensor | None  # (n, in); None: the weight is left out, only the bias counts
    gradients: Tensor  # (n, k, out)
    ones: bool

    def block(self, other: "VectorFeature", combine: Combine) -> Tensor:
        """(A Aᵀ + ones) ∘ (G Gᵀ)."""
        gradient_block = gram(self.gradients, other.gradients, combine)
        if self.activations is None or other.activations is None:
            return gradient_block
        activation_block = self.activations @ other.activations.T
        if self.ones:
            activation_block += 1.0
        extra = (1,) * (gradient_block.ndim - 2)
        return gradient_block.mul_(activation_block.reshape(*activation_block.shape, *extra))


@dataclass(frozen=True)
class ExplicitFeature:
    """Tangents in full: row n, direction k, parameter entry p."""

    tangents: Tensor  # (n, k, p)

    def block(self, other: "ExplicitFeature", combine: Combine) -> Tensor:
        """T Tᵀ."""
        return gram(self.tangents, other.tangents, combine)


def gram(left: Tensor, right: Tensor, combine: Combine) -> Tensor:
    """Inner products over the last axis of (n, k, p) and (m, k, p): (n, m), (n, m, k) or (n, m, k, k)."""
    n, k, p = left.shape
    m = right.shape[0]
    if combine == "sum":
        return left.reshape(n, k * p) @ right.reshape(m, k * p).T
    if combine == "diagonal":
        return torch.stack([left[:, c] @ right[:, c].T for c in range(k)], dim=-1)
    return (left.reshape(n * k, p) @ right.reshape(m * k, p).T).reshape(n, k, m, k).transpose(1, 2).contiguous()
