"""Weighted sums of tangents over places, formed by the products that form a single one: places are more positions."""

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.path.network import Line, Network, take
from kernelmem.path.targets import Explained
from kernelmem.tangents.capture import Capture, Use
from kernelmem.tangents.groups import outer_product, split_directions
from kernelmem.tangents.sweeps import one_direction

__all__ = ["summed_tangents"]

REPLICATE = 2**17  # parameters up to which a copy of every row for each direction is cheaper than a sweep for each
NUMBERS = 2**25  # about as many activations and gradients at a time


def summed_tangents(
    network: Network, rows: Rows, line: Line, index: Tensor, places: Tensor, weights: Tensor, what: Explained
) -> Tensor:
    """Σ_q weight_q ∂φ(x; w + s_q d)/∂θ for b rows with q places each: (b, k, P).

    Args:
        network: its weights are those of ``line``.
        rows: m rows, of which ``index`` (b,) are meant.
        line: from w to w + d.
        index: (b,) ordinals.
        places: (b, q) on the line.
        weights: (b, q).
        what: φ, with k values.
    """
    if not network.affine:
        return _one_by_one(network, rows, line, index, places, weights, what)
    b, q = places.shape
    k = len(what.names)
    if k > 1 and network.n_parameters <= REPLICATE:
        many, own = index.repeat_interleave(k * q), torch.arange(k).repeat_interleave(q).repeat(b)
        along = Line(line.start, line.stop, places[:, None].expand(b, k, q).reshape(-1))
        captured = network.capture(take(rows, many), along)
        directions = what.directions(captured.outputs.detach(), many)
        cotangents = directions[torch.arange(len(many)), own] * weights[:, None].expand(b, k, q).reshape(-1, 1)
        return _swept(network, captured, cotangents, q).view(b, k, -1)
    many = index.repeat_interleave(q)
    captured = network.capture(take(rows, many), Line(line.start, line.stop, places.flatten()))
    directions = what.directions(captured.outputs.detach(), many) * weights.flatten()[:, None, None]
    return torch.stack([_swept(network, captured, directions[:, c], q) for c in range(k)], 1)


def _swept(network: Network, captured: Capture, cotangents: Tensor, q: int) -> Tensor:
    """One sweep of R rows, tangents summed over each q of them: (R / q, P)."""
    n = len(cotangents)
    total = cotangents.new_zeros(n // q, network.n_parameters)
    if not captured.uses or not captured.outputs.requires_grad:
        return total
    edges = [use.edge for use in captured.uses]
    found = torch.autograd.grad(captured.outputs, edges, cotangents, retain_graph=True, allow_unused=True)
    for use, gradient in zip(captured.uses, found, strict=True):
        part = one_direction(use, gradient, n)
        if part is None:
            continue
        slots = _outer(use, part, n, q) if isinstance(part, Tensor) else part
        for slot, name in use.names.items():
            tangent = slots[slot]
            if not isinstance(part, Tensor):
                tangent = tangent.reshape(n // q, q, -1).sum(1)
            total[:, network.slices[name]] += tangent.reshape(n // q, -1)
    return total


def _outer(use: Use, stacked: Tensor, n: int, q: int) -> dict[str, Tensor]:
    """Tangents of an outer use, (R / q, ...): its positions are those of all q rows."""
    g = _merged(use.rule.gradients(use, stacked), n, q)
    found = {"bias": g.sum(2).transpose(1, 2)} if "bias" in use.names else {}
    if "weight" in use.names:
        a = _merged(use.rule.activations(use, n, ones=False), n, q)
        found["weight"] = use.rule.in_shape(use, split_directions(outer_product(a, g), g))
    return found


def _merged(factor: Tensor, n: int, q: int) -> Tensor:
    """(R, G, S, ...) -> (R / q, G, q·S, ...)."""
    return factor.unflatten(0, (n // q, q)).transpose(1, 2).flatten(2, 3)


def _one_by_one(
    network: Network, rows: Rows, line: Line, index: Tensor, places: Tensor, weights: Tensor, what: Explained
) -> Tensor:
    """Tangents of every place by themselves, then their sum."""
    b, q = places.shape
    many = index.repeat_interleave(q)
    along = Line(line.start, line.stop, places.flatten())
    found, _ = network.tangents(take(rows, many), lambda f, own: what.directions(f, many[own]), along)
    return (found.unflatten(0, (b, q)) * weights[:, :, None, None]).sum(1)
