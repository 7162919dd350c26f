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

__all__ = [
    "ChannelGroup",
    "ExplicitGroup",
    "OuterGroup",
    "ReadoutGroup",
    "TokenGroup",
    "VectorGroup",
    "outer_product",
    "split_directions",
]


@dataclass(frozen=True)
class OuterGroup(Group):
    """Outer products of one weight, and its bias where ``ones``; several uses are more positions of one."""

    shape: OuterShape
    has_weight: bool  # False: only the bias is wanted
    has_bias: bool

    @property
    def fan_in(self) -> int:
        """Columns of A: those of the weight where it is wanted, and one for the bias."""
        return (self.shape.fan_in if self.has_weight else 0) + self.has_bias

    def factors(
        self, uses: Sequence[ParameterUse], stacks: Sequence[UseGradients], n: int, k: int, kept: ActivationCache = None
    ) -> tuple[Tensor, Tensor]:
        """A (n, G, S, fan_in) and g (n, G, S, k, fan_out)."""
        left, right = [], []
        for use, stacked in zip(uses, stacks, strict=True):
            if not isinstance(stacked, Tensor):  # the outputs do not depend on this use
                continue
            right.append(use.rule.output_gradients(use, stacked))
            if not self.has_weight:
                left.append(right[-1].new_ones(*right[-1].shape[:3], 1))
            elif kept is None:
                left.append(use.rule.activations(use, n, ones=self.has_bias))
            else:
                if use.key not in kept:
                    kept[use.key] = use.rule.activations(use, n, ones=self.has_bias)
                left.append(kept[use.key])
        if not right:
            zeros = uses[0].weights["weight" if self.has_weight else "bias"]
            assert zeros is not None
            groups = self.shape.groups
            return zeros.new_zeros(n, groups, 1, self.fan_in), zeros.new_zeros(n, groups, 1, k, self.shape.fan_out)
        return (left[0], right[0]) if len(left) == 1 else (torch.cat(left, 2), torch.cat(right, 2))


@dataclass(frozen=True)
class VectorGroup(OuterGroup):
    """One position a row."""

    def numbers_per_row(self, k: int) -> int:
        """A row's activations and its gradients."""
        return self.fan_in + (1 if self.factored else k) * self.shape.fan_out

    def write(self, uses, stacks, n, k, combine, *, kept=None, out=None) -> Buffers:
        """Activations (n, fan_in) beside output gradients (n, k, fan_out)."""
        (use,), (stacked,) = uses, stacks
        gradients = (
            torch.zeros(n, k, self.shape.fan_out, dtype=use.inputs["input"].dtype, device=use.inputs["input"].device)
            if not isinstance(stacked, Tensor)
            else use.rule.output_gradients(use, stacked).reshape(n, k, self.shape.fan_out)
        )
        found = {"gradients": gradients}
        if self.has_weight:
            found["activations"] = use.rule.activations(use, n, ones=False).reshape(n, -1)
        return found

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """(A Aᵀ + ones) ∘ (G Gᵀ)."""
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
            for c in range(k):
                add_scaled_gram(out[c], left[:, c], right[:, c], scale, symmetric=symmetric)
        else:
            flat, scale = out.view(n, k, m * k), scale.repeat_interleave(k, 1)  # long inner loops
            step, wide = max(1, 512 // k), max(1, 2048 // k)  # products that stay in cache
            for i in range(0, n, step):
                rows = left[i : i + step].flatten(0, 1)
                for j in range(i if symmetric else 0, m, wide):
                    columns = slice(j * k, (j + wide) * k)
                    block = torch.mm(rows, right[j : j + wide].flatten(0, 1).T).view(-1, k, min(wide, m - j) * k)
                    flat[i : i + step, :, columns].addcmul_(block, scale[i : i + step, None, columns])


@dataclass(frozen=True)
class TokenGroup(OuterGroup):
    """Several positions a row, contracted position against position; "sum" only, one group of channels."""

    def numbers_per_row(self, k: int) -> int:
        """The same at every position."""
        return self.shape.positions * (self.fan_in + (1 if self.factored else k) * self.shape.fan_out)

    def write(self, uses, stacks, n, k, combine, *, kept=None, out=None) -> Buffers:
        """A (n, S, fan_in) beside g (n, S, k·fan_out)."""
        a, g = self.factors(uses, stacks, n, k)
        return {"activations": a[:, 0], "gradients": g[:, 0].flatten(2)}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Σ_st (a_ns · a_mt)(g_ns · g_mt)."""
        (n, S), m = x["activations"].shape[:2], len(y["activations"])
        step = max(1, 2**22 // (S * S * m))
        for i in range(0, n, step):
            first = i if symmetric else 0
            a = x["activations"][i : i + step].flatten(0, 1) @ y["activations"][first:].flatten(0, 1).T
            a *= x["gradients"][i : i + step].flatten(0, 1) @ y["gradients"][first:].flatten(0, 1).T
            out[i : i + step, first:] += a.view(-1, S, m - first, S).sum((1, 3))


@dataclass(frozen=True)
class ExplicitGroup(OuterGroup):
    """Several positions a row, summed to the tangent itself."""

    def numbers_per_row(self, k: int) -> int:
        """A tangent for every direction."""
        return (1 if self.factored else k) * self.shape.groups * self.fan_in * self.shape.fan_out

    def buffer_shape(self, n: int, k: int) -> tuple[int, int]:
        """The tangents."""
        return n, self.numbers_per_row(k)

    def write(self, uses, stacks, n, k, combine, *, kept=None, out=None) -> Buffers:
        """T as (n, k, p), or in the order that the product gives where the order plays no part ("sum")."""
        a, g = self.factors(uses, stacks, n, k, kept)
        one_order = k == 1 or self.shape.groups == 1  # directions come before all else in the product too
        product = outer_product(a, g, out if one_order or combine == "sum" else None)
        if one_order:
            return {"tangents": product.view(n, k, -1)}
        if combine == "sum":
            return {"tangents": product.view(n, 1, -1)}
        return {"tangents": split_directions(product, g).flatten(2)}


@dataclass(frozen=True)
class ReadoutGroup(OuterGroup):
    """The last layer, where the outputs are its outputs: the tangent of output c is e_c ⊗ [h, 1]."""

    n_outputs: int

    @property
    def all_directions(self) -> bool:
        """C is a factor here."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """The hidden features alone."""
        return self.fan_in

    def write(self, uses, stacks, n, k, combine, *, kept=None, out=None) -> Buffers:
        """The hidden features alone."""
        return (
            {"activations": uses[0].rule.activations(uses[0], n, ones=False).reshape(n, -1)}
            if self.has_weight
            else {"activations": uses[0].inputs["input"].new_zeros(n, 1)}
        )

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """(H Hᵀ + ones) times C, for every c, or times the identity."""
        left, right = x["activations"], y["activations"]
        inner = torch.full((len(left), len(right)), float(self.has_bias), dtype=out.dtype, device=out.device)
        add_gram(inner, left, right, symmetric=symmetric)
        if combine == "sum":
            out.add_(inner, alpha=self.n_outputs)
        elif combine == "diagonal":
            out += inner
        else:
            for c in range(out.shape[1]):
                out[:, c, :, c] += inner


@dataclass(frozen=True)
class ChannelGroup(OuterGroup):
    """Several positions a row under a linear readout: g_nsc = W_c ∘ D_ns, so K^{cc'} = Σ_k W_ck W_c'k ⟨M_nk, M_mk⟩."""

    readout: Tensor = field(compare=False)  # W (C, fan_out)

    @property
    def all_directions(self) -> bool:
        """All outputs at a time."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """One tangent."""
        return self.shape.groups * self.fan_in * self.shape.fan_out

    def write(self, uses, stacks, n, k, combine, *, kept=None, out=None) -> Buffers:
        """M (n, out, in): the tangent without its class weight."""
        a, g = self.factors(uses, stacks, n, 1)
        return {"tangents": split_directions(outer_product(a, g), g)[:, 0, 0]}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """One Gram a channel, in blocks of rows, then one product with the class weights; "full" only."""
        W = self.readout
        C, H = W.shape
        pairs = (W[:, None] * W[None]).reshape(C * C, H)
        left, right = x["tangents"].transpose(0, 1), y["tangents"].permute(1, 2, 0)  # (H, n, in), (H, in, m)
        n, m = left.shape[1], right.shape[2]
        step = max(1, 2**23 // (m * (H + len(pairs))))
        for i in range(0, n, step):
            first = i if symmetric else 0
            per_channel = torch.bmm(left[:, i : i + step], right[:, :, first:]).flatten(1)
            block = pairs @ per_channel  # (C·C, rows·m)
            out[i : i + step, :, first:] += block.view(C, C, -1, m - first).permute(2, 0, 3, 1)


def outer_product(a: Tensor, g: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ_s g_s ⊗ a_s: (n, G, S, in), (n, G, S, k, out) -> (n, G, k·out, in), in the contiguous ``out`` if given."""
    n, groups, S, fan_in = a.shape
    left = g.reshape(n * groups, S, -1)
    if out is not None:
        out = out.view(n * groups, left.shape[2], fan_in)
    return torch.bmm(left.mT, a.reshape(n * groups, S, fan_in), out=out).view(n, groups, -1, fan_in)


def split_directions(product: Tensor, g: Tensor) -> Tensor:
    """The same as (n, k, G, out, in)."""
    n, groups, _, fan_in = product.shape
    return product.view(n, groups, *g.shape[3:], fan_in).transpose(1, 2)
