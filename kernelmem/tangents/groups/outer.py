"""Groups whose tangents are sums of outer products, Σ_s g_s ⊗ a_s: one class for each form of contraction.

- ``VectorGroup``: a_n ⊗ g_nk, one position per row; K = (A Aᵀ + 1) ∘ (G Gᵀ), Jacobians are never formed;
- ``TokenGroup``: Σ_s a_ns ⊗ g_nks by the token Gram (for few positions and wide layers), trace only;
- ``ExplicitGroup``: the same, summed to the tangent itself by one product per row, then K = T Tᵀ;

The last linear layer and layers whose gradients factor under it are in ``readout``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kernelmem.tangents.capture import OuterShape, ParameterUse
from kernelmem.tangents.groups.base import (
    ActivationCache,
    Buffers,
    Combination,
    Combine,
    Group,
    UseGradients,
    add_explicit,
)
from kernelmem.tangents.groups.float32 import product
from kernelmem.tangents.groups.gemm import add_gram, add_product_of_grams, add_scaled_gram

N_PROBES = 4  # random matrices along which sums of outer products are compared


@dataclass(frozen=True)
class OuterGroup(Group):
    """Group of one weight and its bias, whose tangents are Σ_s g_s ⊗ a_s over positions s (pixels, tokens) of an example.

    g are output gradients and a activations of the layer; the positions of several uses of the weight are joined.
    """

    shape: OuterShape
    has_weight: bool  # False: only the bias is selected
    has_bias: bool

    @property
    def fan_in(self) -> int:
        """Number of activations per position: the inputs of the weight, if it is selected, plus 1 for the bias."""
        return (self.shape.fan_in if self.has_weight else 0) + self.has_bias

    def accepts(self, uses: Sequence[ParameterUse], n: int) -> bool:
        """Return True if all uses are outer products of the shape that the group was built for."""
        shapes = [None if use.derived else use.rule.outer_shape(use, n) for use in uses]
        same_shape = all(
            shape is not None
            and set(use.names.values()) == set(self.names)
            and (shape.fan_in, shape.fan_out, shape.groups)
            == (self.shape.fan_in, self.shape.fan_out, self.shape.groups)
            for use, shape in zip(uses, shapes, strict=True)
        )
        positions = sum(shape.positions for shape in shapes if shape is not None)
        return same_shape and self._accepts_counts(len(uses), positions)

    def _accepts_counts(self, n_uses: int, positions: int) -> bool:
        return n_uses == len(self.keys) and positions == self.shape.positions

    def expected_sum(self, gradients, uses, like) -> Tensor:
        """Return the gradients of the weight and of the bias as one vector."""
        return torch.cat([gradient.flatten() for gradient in self._gradients(gradients, uses).values()])

    def _gradients(self, gradients: Mapping[str, Tensor], uses: Sequence[ParameterUse]) -> dict[str, Tensor]:
        """Return the gradients by slot (weight first), which are zero if the outputs do not depend on the parameter."""
        gradient_of_slot = {}
        for slot in ("weight", "bias"):
            if slot in uses[0].names:
                weight = uses[0].weights[slot]
                assert weight is not None
                gradient = gradients.get(uses[0].names[slot])
                gradient_of_slot[slot] = torch.zeros_like(weight) if gradient is None else gradient
        return gradient_of_slot

    def _as_parameters(self, tangent: Tensor, uses: Sequence[ParameterUse]) -> Tensor:
        """Return a tangent (G groups, out, in + bias) as one vector, with the weight in its own layout."""
        parts = []
        if self.has_weight:
            weight = tangent[..., : self.shape.fan_in]
            parts.append(uses[0].rule.to_weight_shape(uses[0], weight[None, None])[0, 0].flatten())
        if self.has_bias:
            parts.append(tangent[..., -1].flatten())
        return torch.cat(parts)

    def factors(
        self,
        uses: Sequence[ParameterUse],
        gradients: Sequence[UseGradients],
        n: int,
        k: int,
        cache: ActivationCache = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the activations (n, G, S, fan_in) and the output gradients (n, G, S, k, fan_out) of all uses.

        n counts examples, G channel groups, S positions of all uses together and k output directions.
        """
        activations, output_gradients = [], []
        for use, gradient in zip(uses, gradients, strict=True):
            if not isinstance(gradient, Tensor):  # the outputs do not depend on this use
                continue
            output_gradients.append(use.rule.output_gradients(use, gradient))
            if not self.has_weight:
                activations.append(output_gradients[-1].new_ones(*output_gradients[-1].shape[:3], 1))
            elif cache is None:
                activations.append(use.rule.activations(use, n, ones=self.has_bias))
            else:
                if use.key not in cache:
                    cache[use.key] = use.rule.activations(use, n, ones=self.has_bias)
                activations.append(cache[use.key])
        if not output_gradients:
            template = uses[0].weights["weight" if self.has_weight else "bias"]
            assert template is not None
            n_groups = self.shape.groups
            gradients_shape = n, n_groups, 1, k, self.shape.fan_out
            return template.new_zeros(n, n_groups, 1, self.fan_in), template.new_zeros(gradients_shape)
        if len(activations) == 1:
            return activations[0], output_gradients[0]
        return torch.cat(activations, 2), torch.cat(output_gradients, 2)


@dataclass(frozen=True)
class FactoredGroup(OuterGroup):
    """Layer whose tangents Σ_s g_s ⊗ a_s are contracted from the factors, without forming them.

    Their sums are compared with gradients G along random matrices p_j q_jᵀ: p_jᵀ G q_j for the last axis of [a, 1].
    """

    def _random_vectors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors p (out, N_PROBES) and q (fan_in, N_PROBES), always the same."""
        p, q = _random_matrices(self.shape.fan_out, self.fan_in)
        return p.to(like) * N_PROBES**-0.5, q.to(like)

    def _projected_sum(self, activations: Tensor | None, gradients: Tensor, combination: Combination) -> Tensor:
        """Return Σ_i Σ_s Σ_c w_i u_c (p_j · g_isc)(q_j · [a_is, 1]) over examples i, positions s and directions c.

        ``activations`` are (n, S, in), without the ones of the bias; None if only the bias is selected. ``gradients`` are
        (n, S, k, out).
        """
        p, q = self._random_vectors(gradients)
        if self.factored and combination.channels is not None:
            p = p * combination.channels[:, None]
        gradient_products = (gradients @ p).movedim(2, -1) @ combination.directions  # (n, S, N_PROBES)
        if activations is None:
            activation_products = q.expand(*gradient_products.shape)
        else:
            activation_products = activations @ q[: activations.shape[-1]]
            if self.has_bias and activations.shape[-1] < len(q):
                activation_products = activation_products + q[-1]
        return combination.examples @ (gradient_products * activation_products).sum(1)

    def expected_sum(self, gradients, uses, like) -> Tensor:
        """Return p_jᵀ G q_j for the gradient G of the weight, with that of the bias as its last column."""
        gradient_of_slot, (p, q) = self._gradients(gradients, uses), self._random_vectors(like)
        total = like.new_zeros(N_PROBES)
        if "weight" in gradient_of_slot:
            gradient = gradient_of_slot["weight"]
            if gradient.ndim == 2 and uses[0].settings.get("layout") is None:
                total = total + (p * (gradient @ q[: self.shape.fan_in])).sum(0)
            else:
                outer = torch.einsum("oj,ij->joi", p, q[: self.shape.fan_in])[:, None, None]
                outer = outer.expand(-1, -1, self.shape.groups, -1, -1)
                probes = torch.cat([uses[0].rule.to_weight_shape(uses[0], probe[None]) for probe in outer])
                total = total + (probes * gradient).flatten(1).sum(1)
        if "bias" in gradient_of_slot:
            total = total + (gradient_of_slot["bias"] @ p) * q[-1]
        return total


@lru_cache(maxsize=64)
def _random_matrices(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return random matrices (rows, N_PROBES) and (columns, N_PROBES), always the same; the result is not to be changed."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(size, N_PROBES, generator=generator, dtype=torch.float64) for size in (rows, columns))
    return first, second


@dataclass(frozen=True)
class VectorGroup(FactoredGroup):
    """Layer with one position per example: the kernel is contracted from its factors, without forming tangents."""

    def tangent_sum(self, tangents, uses, combination, combine) -> Tensor:
        """Return the sums Σ_i Σ_c w_i u_c (p_j · g_ic)(q_j · [a_i, 1])."""
        activations = tangents["activations"][:, None] if self.has_weight else None
        return self._projected_sum(activations, tangents["gradients"][:, None], combination)

    def numbers_per_row(self, k: int) -> int:
        """Return the number of activations plus output gradients of one example, with k output directions."""
        return self.fan_in + (1 if self.factored else k) * self.shape.fan_out

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
        """Return a dict with the activations (n examples, fan_in) and the output gradients (n, k directions, fan_out)."""
        (use,), (gradient,) = uses, gradients
        if isinstance(gradient, Tensor):
            buffers = {"gradients": use.rule.output_gradients(use, gradient).reshape(n, k, self.shape.fan_out)}
        else:
            buffers = {"gradients": like.new_zeros(n, k, self.shape.fan_out)}
        if self.has_weight:
            buffers["activations"] = use.rule.activations(use, n, ones=False).reshape(n, -1)
        return buffers

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add (A Bᵀ + 1) ∘ (G Hᵀ) to ``out``, entry by entry, without the 1 if there is no bias.

        A and G are the activations and output gradients of the examples in ``x``, B and H those in ``y``.
        """
        left, right = x["gradients"], y["gradients"]
        if not self.has_weight:
            add_explicit(out, left, right, combine, symmetric=symmetric)
            return
        n, m, k = len(left), len(right), left.shape[1]
        if combine == "sum" and not symmetric:
            activations = x["activations"], y["activations"]
            add_product_of_grams(out, activations, (left.flatten(1), right.flatten(1)), float(self.has_bias))
            return
        scale = torch.full((n, m), float(self.has_bias), dtype=out.dtype, device=out.device)
        add_gram(scale, x["activations"], y["activations"], symmetric=symmetric)
        if combine == "sum":
            add_scaled_gram(out, left.flatten(1), right.flatten(1), scale, symmetric=symmetric)
        elif combine == "diagonal":
            for direction in range(k):
                add_scaled_gram(out[direction], left[:, direction], right[:, direction], scale, symmetric=symmetric)
        else:
            flat_out, scale = out.view(n, k, m * k), scale.repeat_interleave(k, 1)  # (n, k, m·k): long inner loops
            step, width = max(1, 512 // k), max(1, 2048 // k)  # products stay in cache
            for i in range(0, n, step):
                rows = left[i : i + step].flatten(0, 1)
                for j in range(i if symmetric else 0, m, width):
                    columns = slice(j * k, (j + width) * k)
                    block = product(rows, right[j : j + width].flatten(0, 1)).view(-1, k, min(width, m - j) * k)
                    flat_out[i : i + step, :, columns].addcmul_(block, scale[i : i + step, None, columns])


@dataclass(frozen=True)
class TokenGroup(FactoredGroup):
    """Layer with several positions per example, contracted position by position.

    It supports only ``combine="sum"`` and layers with one group of channels.
    """

    def tangent_sum(self, tangents, uses, combination, combine) -> Tensor:
        """Return the sums Σ_i Σ_s Σ_c w_i u_c (p_j · g_isc)(q_j · [a_is, 1]) over positions s."""
        gradients = tangents["gradients"].unflatten(2, (-1, self.shape.fan_out))
        return self._projected_sum(tangents["activations"], gradients, combination)

    def numbers_per_row(self, k: int) -> int:
        """Return the number of activations plus output gradients of one example at all positions, for k directions."""
        return self.shape.positions * (self.fan_in + (1 if self.factored else k) * self.shape.fan_out)

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
        """Return a dict with the activations (n, S, fan_in) and the output gradients (n, S, k · fan_out).

        n counts examples, S positions and k output directions.
        """
        a, g = self.factors(uses, gradients, n, k)
        return {"activations": a[:, 0], "gradients": g[:, 0].flatten(2)}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add Σ_st (a_ns · a_mt)(g_ns · g_mt) to ``out`` (n, m), over positions s of example n and t of example m.

        a are activations and g output gradients; n runs over the examples in ``x``, m over those in ``y``.
        """
        (n, S), m = x["activations"].shape[:2], len(y["activations"])
        step = max(1, 2**22 // (S * S * m))
        for i in range(0, n, step):
            first = i if symmetric else 0
            token_products = product(
                x["activations"][i : i + step].flatten(0, 1), y["activations"][first:].flatten(0, 1)
            )
            token_products *= product(x["gradients"][i : i + step].flatten(0, 1), y["gradients"][first:].flatten(0, 1))
            out[i : i + step, first:] += token_products.view(-1, S, m - first, S).sum((1, 3))


@dataclass(frozen=True)
class ExplicitGroup(OuterGroup):
    """Layer with several positions per example, whose outer products are summed to the tangent before the contraction."""

    def _accepts_counts(self, n_uses: int, positions: int) -> bool:
        return n_uses == 1 if self.factored else n_uses > 0

    def tangent_sum(self, tangents, uses, combination, combine) -> Tensor:
        """Return Σ_i Σ_c w_i u_c T_ic (G groups · out · in), in the order in which products are written."""
        k, flat_tangents = len(combination.directions), tangents["tangents"].flatten(1)
        if k == 1:  # one pass over the tangents
            return (combination.examples * combination.directions) @ flat_tangents
        total = combination.examples @ flat_tangents
        if self.shape.groups == 1 or combine != "sum":
            return combination.directions @ total.view(k, -1)
        return torch.einsum("gkp,k->gp", total.view(self.shape.groups, k, -1), combination.directions).flatten()

    def compared(self, total, uses, combination) -> Tensor:
        """Return the sum as the gradient of the weight, then that of the bias, in one vector."""
        total = total.view(self.shape.groups, self.shape.fan_out, self.fan_in)
        if self.factored and combination.channels is not None:
            total = total * combination.channels[:, None]
        return self._as_parameters(total, uses)

    def numbers_per_row(self, k: int) -> int:
        """Return k times the number of scalar parameters of the group: the entries of the tangents of one example."""
        return (1 if self.factored else k) * self.shape.groups * self.fan_in * self.shape.fan_out

    def buffer_shape(self, n: int, k: int) -> tuple[int, int]:
        """Return (n, k · p): the tangents of n examples in k directions with respect to p scalar parameters, flattened."""
        return n, self.numbers_per_row(k)

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
        """Return a dict with "tangents" (n examples, k directions, p scalar parameters).

        With ``combine="sum"``, where the order of the entries does not change inner products, they are not reordered.
        """
        a, g = self.factors(uses, gradients, n, k, cache)
        directions_first = k == 1 or self.shape.groups == 1  # in the product
        product = outer_product(a, g, out if directions_first or combine == "sum" else None)
        if directions_first:
            return {"tangents": product.view(n, k, -1)}
        if combine == "sum":
            return {"tangents": product.view(n, 1, -1)}
        return {"tangents": split_directions(product, g).flatten(2)}


def outer_product(a: Tensor, g: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute Σ_s g_s ⊗ a_s over positions s, with shape (n, G, k·out, in), in the tensor ``out`` if it is given.

    The factors are activations a (n examples, G groups, S positions, in) and gradients g (n, G, S, k directions, out).
    """
    n, n_groups, S, fan_in = a.shape
    gradients = g.reshape(n * n_groups, S, -1)
    if out is not None:
        out = out.view(n * n_groups, gradients.shape[2], fan_in)
    return torch.bmm(gradients.mT, a.reshape(n * n_groups, S, fan_in), out=out).view(n, n_groups, -1, fan_in)


def split_directions(product: Tensor, g: Tensor) -> Tensor:
    """Reshape an outer product (n, G, k·out, in) of gradients ``g`` (n, G, S, k, out) to (n, k, G, out, in)."""
    n, n_groups, _, fan_in = product.shape
    return product.view(n, n_groups, *g.shape[3:], fan_in).transpose(1, 2)
