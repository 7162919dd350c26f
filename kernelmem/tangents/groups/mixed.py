"""Parameters that are used in several ways (tied, computed from others, gains, tables): tangents are summed first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.tangents.capture import ParameterUse
from kernelmem.tangents.groups.base import Buffers, Group
from kernelmem.tangents.groups.outer import outer_product, split_directions


@dataclass(frozen=True)
class MixedGroup(Group):
    """Group of parameters used in several ways: the tangents of each parameter are summed over its uses, then contracted."""

    shapes: tuple[torch.Size, ...]

    def numbers_per_row(self, k: int) -> int:
        """Return k times the number of scalar parameters of the group: the entries of the tangents of one example."""
        return k * sum(shape.numel() for shape in self.shapes)

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
        """Compute the tangents of n examples in k output directions and return them under the key "tangents".

        The tensor has shape (n, k, p), p the number of scalar parameters of the group, flattened in the order of ``names``.
        """
        totals: dict[str, Tensor] = {}

        def add_to(name: str, tangent: Tensor) -> None:
            tangent = tangent.reshape(n, k, -1)
            totals[name] = totals[name] + tangent if name in totals else tangent

        for use, gradient in zip(uses, gradients, strict=True):
            if gradient is None:
                continue
            tangents = gradient if isinstance(gradient, dict) else _explicit_tangents(use, gradient, n)
            for slot, tangent in tangents.items():
                if slot in use.names:
                    add_to(use.names[slot], tangent)
                else:
                    for name, source_tangent in _pull_back(use.derived[slot], tangent, use.sources[slot]).items():
                        add_to(name, source_tangent)
        blocks = [
            totals[name] if name in totals else like.new_zeros(n, k, shape.numel())
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return {"tangents": blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)}

    def expected_sum(self, gradients, uses, like) -> Tensor:
        """Return the gradients of all parameters of the group as one vector (p,)."""
        return flat_gradient(gradients, self.names, self.shapes, like)


def flat_gradient(
    gradients: Mapping[str, Tensor], names: Sequence[str], shapes: Sequence[torch.Size], like: Tensor
) -> Tensor:
    """Return the gradients of the parameters ``names``, of the given shapes, as one vector; missing ones are 0."""
    return torch.cat(
        [
            gradients[name].flatten() if name in gradients else like.new_zeros(shape.numel())
            for name, shape in zip(names, shapes, strict=True)
        ]
    )


def _explicit_tangents(use: ParameterUse, gradient: Tensor, n: int) -> dict[str, Tensor]:
    """Compute the tangents Σ_s g_s ⊗ a_s over positions s of one use, from its output gradients g and activations a.

    Returns a dict from slot to tangents: "weight" (n examples, k directions, *weight shape), "bias" (n, k, groups, out).
    """
    if use.rule.is_direct(use):
        return use.rule.direct_tangents(use, gradient, n)
    g = use.rule.output_gradients(use, gradient)
    tangents = {"bias": g.sum(2).transpose(1, 2)} if "bias" in use.slots else {}  # (n, k, G, out)
    if "weight" in use.slots:
        tangent = split_directions(outer_product(use.rule.activations(use, n, ones=False), g), g)
        tangents["weight"] = use.rule.to_weight_shape(use, tangent)
    return tangents


def _pull_back(derived: Tensor, tangent: Tensor, sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the chain rule T ∂(weight)/∂(parameter) to tangents T (n, k, *weight shape) of a computed weight.

    ``derived`` is the weight with its graph, ``sources`` the parameters it is computed from, by name. Returns a dict from
    parameter name to its tangents (n examples, k directions, entries of the parameter).
    """
    n, k = tangent.shape[:2]
    source_tangents = torch.autograd.grad(
        derived,
        list(sources.values()),
        tangent.reshape(n * k, *derived.shape),
        retain_graph=True,
        is_grads_batched=True,
    )
    return {
        name: source_tangent.reshape(n, k, -1) for name, source_tangent in zip(sources, source_tangents, strict=True)
    }
