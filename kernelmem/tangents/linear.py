"""Linear layers on vectors: K = (A Aᵀ + 1) ∘ (G Gᵀ), never a Jacobian."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Use
from kernelmem.tangents.features import VectorFeature

__all__ = ["LinearRule"]


class LinearRule:
    """F.linear on (n, in), by a module or in functional form."""

    functions = (F.linear,)

    def parameters(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Read input, weight and bias."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        return {"input": given["input"], "weight": given["weight"], "bias": given.get("bias")}

    def call(self, function: Callable[..., Any], args: tuple, kwargs: dict, slots: dict[str, Any]) -> Tensor:
        """Run F.linear on the slots."""
        return function(slots["input"], slots["weight"], slots["bias"])

    def covers(self, use: Use, n: int) -> bool:
        """One position for each row."""
        return use.slots["input"].ndim == 2 and use.slots["input"].shape[0] == n

    def feature(self, use: Use, gradients: Tensor) -> VectorFeature:
        """Activations (n, in) beside output gradients (n, k, out)."""
        return VectorFeature(use.input if "weight" in use.names else None, gradients, "bias" in use.names)
