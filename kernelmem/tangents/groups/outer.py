"""Groups whose tangents are sums of outer products, Σ_s g_s ⊗ a_s: one class for each form of contraction.

- ``VectorGroup``: a_n ⊗ g_nk, one position per row; K = (A Aᵀ + 1) ∘ (G Gᵀ), Jacobians are never formed;
- ``TokenGroup``: Σ_s a_ns ⊗ g_nks by the token Gram (for few positions and wide layers), trace only;
- ``ExplicitGroup``: the same, summed to the tangent itself by one product per row, then K = T Tᵀ;
- ``ReadoutGroup``: the last linear layer, whose tangents are its inputs;
- ``ChannelGroup``: a layer whose output gradients factor under the readout, for the full kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernelmem.tangents.capture import OuterShape, ParameterUse
from kernelmem.tangents.groups.base import ActivationCache, Buffers, Combine, Group, UseGradients, add_explicit
from kernelmem.tangents.groups.gemm import add_gram, add_scaled_gram


@dataclass(frozen=True)
class OuterGroup(Group):
    """Outer products of one weight and its bias; several uses count as more positions of one use."""

    shape: OuterShape
    has_weight: bool  # False: only the bias is selected
    has_bias: bool

    @property
    def fan_in(self) -> int:
        """Number of columns of A: those of the weight, if selected, and one for the bias."""
        return (self.shape.fan_in if self.has_weight else 0) + self.has_bias

    def factors(
        self,
        uses: Sequence[ParameterUse],
        gradients: Sequence[UseGradients],
        n: int,
        k: int,
        cache: ActivationCache = None,
    ) -> tuple[Tensor, Tensor]:
        """Return activations A (n, G, S, fan_in) and output gradients (n, G, S, k, fan_out)."""
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
class VectorGroup(OuterGroup):
    """One position per row: contracted without forming tangents."""

    def numbers_per_row(self, k: int) -> int:
        """Count the activations and output gradients of one row."""
        return self.fan_in + (1 if self.factored else k) * self.shape.fan_out

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return activations (n, fan_in) and output gradients (n, k, fan_out)."""
        (use,), (gradient,) = uses, gradients
        if isinstance(gradient, Tensor):
            buffers = {"gradients": use.rule.output_gradients(use, gradient).reshape(n, k, self.shape.fan_out)}
        else:
            template = use.inputs["input"]
            buffers = {"gradients": torch.zeros(n, k, self.shape.fan_out, dtype=template.dtype, device=template.device)}
        if self.has_weight:
            buffers["activations"] = use.rule.activations(use, n, ones=False).reshape(n, -1)
        return buffers

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add (A Aᵀ + 1) ∘ (G Gᵀ), without the 1 if there is no bias."""
        left, right = x["gradients"], y["gradients"]
        if not self.has_weight:
            add_explicit(out, left, right, combine, symmetric=symmetric)
            return
        n, m, k = len(left), len(right), left.shape[1]
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
                    block = torch.mm(rows, right[j : j + width].flatten(0, 1).T).view(-1, k, min(width, m - j) * k)
                    flat_out[i : i + step, :, columns].addcmul_(block, scale[i : i + step, None, columns])


@dataclass(frozen=True)
class TokenGroup(OuterGroup):
    """Several positions per row, contracted position by position; "sum" only, one group of channels."""

    def numbers_per_row(self, k: int) -> int:
        """Count the activations and output gradients at every position."""
        return self.shape.positions * (self.fan_in + (1 if self.factored else k) * self.shape.fan_out)

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return activations (n, S, fan_in) and output gradients (n, S, k·fan_out)."""
        a, g = self.factors(uses, gradients, n, k)
        return {"activations": a[:, 0], "gradients": g[:, 0].flatten(2)}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add Σ_st (a_ns · a_mt)(g_ns · g_mt)."""
        (n, S), m = x["activations"].shape[:2], len(y["activations"])
        step = max(1, 2**22 // (S * S * m))
        for i in range(0, n, step):
            first = i if symmetric else 0
            token_products = x["activations"][i : i + step].flatten(0, 1) @ y["activations"][first:].flatten(0, 1).T
            token_products *= x["gradients"][i : i + step].flatten(0, 1) @ y["gradients"][first:].flatten(0, 1).T
            out[i : i + step, first:] += token_products.view(-1, S, m - first, S).sum((1, 3))


@dataclass(frozen=True)
class ExplicitGroup(OuterGroup):
    """Several positions per row, summed to the tangent."""

    def numbers_per_row(self, k: int) -> int:
        """Return the entries of one tangent per direction."""
        return (1 if self.factored else k) * self.shape.groups * self.fan_in * self.shape.fan_out

    def buffer_shape(self, n: int, k: int) -> tuple[int, int]:
        """Return the shape of the tangents."""
        return n, self.numbers_per_row(k)

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return tangents (n, k, p); for "sum", where their order does not matter, in the order of the product."""
        a, g = self.factors(uses, gradients, n, k, cache)
        directions_first = k == 1 or self.shape.groups == 1  # in the product
        product = outer_product(a, g, out if directions_first or combine == "sum" else None)
        if directions_first:
            return {"tangents": product.view(n, k, -1)}
        if combine == "sum":
            return {"tangents": product.view(n, 1, -1)}
        return {"tangents": split_directions(product, g).flatten(2)}


@dataclass(frozen=True)
class ReadoutGroup(OuterGroup):
    """Last linear layer, whose outputs are those of the model: the tangent of output c is e_c ⊗ [h, 1]."""

    n_outputs: int

    @property
    def all_directions(self) -> bool:
        """True, since the outputs enter as a factor."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """Count the hidden features."""
        return self.fan_in

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return the hidden features (n, H)."""
        (use,) = uses
        if not self.has_weight:
            return {"activations": use.inputs["input"].new_zeros(n, 1)}
        return {"activations": use.rule.activations(use, n, ones=False).reshape(n, -1)}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add H Hᵀ (+ 1 with a bias): C times ("sum"), for every c ("diagonal"), or times the identity ("full")."""
        left, right = x["activations"], y["activations"]
        gram = torch.full((len(left), len(right)), float(self.has_bias), dtype=out.dtype, device=out.device)
        add_gram(gram, left, right, symmetric=symmetric)
        if combine == "sum":
            out.add_(gram, alpha=self.n_outputs)
        elif combine == "diagonal":
            out += gram
        else:
            for output_index in range(out.shape[1]):
                out[:, output_index, :, output_index] += gram


@dataclass(frozen=True)
class ChannelGroup(OuterGroup):
    """Several positions per row below a linear readout: g_nsc = W_c ∘ D_ns, so K^{cc'} = Σ_k W_ck W_c'k ⟨M_nk, M_mk⟩."""

    readout: Tensor = field(compare=False)  # W (C, fan_out)

    @property
    def all_directions(self) -> bool:
        """True, since all outputs are contracted together."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """Count the entries of one tangent without its output weight."""
        return self.shape.groups * self.fan_in * self.shape.fan_out

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return M (n, out, in), the tangents without their output weights."""
        a, g = self.factors(uses, gradients, n, 1)
        return {"tangents": split_directions(outer_product(a, g), g)[:, 0, 0]}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add one Gram matrix per channel, in blocks of rows, times the products of output weights; "full" only."""
        W = self.readout
        C, H = W.shape
        weight_products = (W[:, None] * W[None]).reshape(C * C, H)  # W_ck W_c'k
        left, right = x["tangents"].transpose(0, 1), y["tangents"].permute(1, 2, 0)  # (H, n, in), (H, in, m)
        n, m = left.shape[1], right.shape[2]
        step = max(1, 2**23 // (m * (H + len(weight_products))))
        for i in range(0, n, step):
            first = i if symmetric else 0
            channel_grams = torch.bmm(left[:, i : i + step], right[:, :, first:]).flatten(1)
            kernel_block = weight_products @ channel_grams  # (C·C, rows·m)
            out[i : i + step, :, first:] += kernel_block.view(C, C, -1, m - first).permute(2, 0, 3, 1)


def outer_product(a: Tensor, g: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute Σ_s g_s ⊗ a_s of a (n, G, S, in) and g (n, G, S, k, out) as (n, G, k·out, in), in ``out`` if given."""
    n, n_groups, S, fan_in = a.shape
    gradients = g.reshape(n * n_groups, S, -1)
    if out is not None:
        out = out.view(n * n_groups, gradients.shape[2], fan_in)
    return torch.bmm(gradients.mT, a.reshape(n * n_groups, S, fan_in), out=out).view(n, n_groups, -1, fan_in)


def split_directions(product: Tensor, g: Tensor) -> Tensor:
    """Reshape an outer product (n, G, k·out, in) to (n, k, G, out, in)."""
    n, n_groups, _, fan_in = product.shape
    return product.view(n, n_groups, *g.shape[3:], fan_in).transpose(1, 2)
