"""Parameters that are used in several ways (tied, computed from others, gains, tables): tangents are summed first."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.tangents.capture import ParameterUse
from kernelmem.tangents.groups.base import Buffers, Group
from kernelmem.tangents.groups.outer import outer_product, split_directions

__all__ = ["MixedGroup"]


@dataclass(frozen=True)
class MixedGroup(Group):
    """Tangents of parameters that are met in several ways, each summed over its uses before it is contracted."""

    shapes: tuple[torch.Size, ...]

    def numbers_per_row(self, k: int) -> int:
        """A tangent for every direction."""
        return k * sum(shape.numel() for shape in self.shapes)

    def write(self, uses, stacks, n, k, combine, *, kept=None, out=None) -> Buffers:
        """T as (n, k, p), the parameters one after the other."""
        totals: dict[str, Tensor] = {}

        def collect(name: str, tangent: Tensor) -> None:
            tangent = tangent.reshape(n, k, -1)
            totals[name] = totals[name] + tangent if name in totals else tangent

        for use, stacked in zip(uses, stacks, strict=True):
            if stacked is None:
                continue
            found = stacked if isinstance(stacked, dict) else _explicit(use, stacked, n)
            for slot, tangent in found.items():
                if slot in use.names:
                    collect(use.names[slot], tangent)
                else:
                    for name, pulled in _pull_back(use.derived[slot], tangent, use.sources[slot]).items():
                        collect(name, pulled)
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name in totals:
                parts.append(totals[name])
            else:
                like = next(w for use in uses for w in use.weights.values() if w is not None)
                parts.append(like.new_zeros(n, k, shape.numel()))
        return {"tangents": parts[0] if len(parts) == 1 else torch.cat(parts, 2)}


def _explicit(use: ParameterUse, stacked: Tensor, n: int) -> dict[str, Tensor]:
    """Tangents of an outer use in the shapes of its weight and bias."""
    g = use.rule.output_gradients(use, stacked)
    found = {"bias": g.sum(2).transpose(1, 2)} if "bias" in use.slots else {}  # (n, k, G, out)
    if "weight" in use.slots:
        tangent = split_directions(outer_product(use.rule.activations(use, n, ones=False), g), g)
        found["weight"] = use.rule.to_weight_shape(use, tangent)
    return found


def _pull_back(derived: Tensor, tangent: Tensor, sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """From a weight that was computed from parameters to these parameters: T ∂(weight)/∂(parameter)."""
    n, k = tangent.shape[:2]
    pulled = torch.autograd.grad(
        derived,
        list(sources.values()),
        tangent.reshape(n * k, *derived.shape),
        retain_graph=True,
        is_grads_batched=True,
    )
    return {name: p.reshape(n, k, -1) for name, p in zip(sources, pulled, strict=True)}
