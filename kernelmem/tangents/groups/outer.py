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
class VectorGroup(OuterGroup):
    """Layer with one position per example: the kernel is contracted from its factors, without forming tangents."""

    def numbers_per_row(self, k: int) -> int:
        """Return the number of activations plus output gradients of one example, with k output directions."""
        return self.fan_in + (1 if self.factored else k) * self.shape.fan_out

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return a dict with the activations (n examples, fan_in) and the output gradients (n, k directions, fan_out)."""
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
        """Add (A Bᵀ + 1) ∘ (G Hᵀ) to ``out``, entry by entry, without the 1 if there is no bias.

        A and G are the activations and output gradients of the examples in ``x``, B and H those in ``y``.
        """
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
    """Layer with several positions per example, contracted position by position.

    It supports only ``combine="sum"`` and layers with one group of channels.
    """

    def numbers_per_row(self, k: int) -> int:
        """Return the number of activations plus output gradients of one example at all positions, for k directions."""
        return self.shape.positions * (self.fan_in + (1 if self.factored else k) * self.shape.fan_out)

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
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
            token_products = x["activations"][i : i + step].flatten(0, 1) @ y["activations"][first:].flatten(0, 1).T
            token_products *= x["gradients"][i : i + step].flatten(0, 1) @ y["gradients"][first:].flatten(0, 1).T
            out[i : i + step, first:] += token_products.view(-1, S, m - first, S).sum((1, 3))


@dataclass(frozen=True)
class ExplicitGroup(OuterGroup):
    """Layer with several positions per example, whose outer products are summed to the tangent before the contraction."""

    def numbers_per_row(self, k: int) -> int:
        """Return k times the number of scalar parameters of the group: the entries of the tangents of one example."""
        return (1 if self.factored else k) * self.shape.groups * self.fan_in * self.shape.fan_out

    def buffer_shape(self, n: int, k: int) -> tuple[int, int]:
        """Return (n, k · p): the tangents of n examples in k directions with respect to p scalar parameters, flattened."""
        return n, self.numbers_per_row(k)

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
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


@dataclass(frozen=True)
class ReadoutGroup(OuterGroup):
    """Last linear layer, whose outputs are those of the model.

    The tangent of output c is e_c ⊗ [h, 1], with the unit vector e_c and the hidden features h of the example.
    """

    n_outputs: int

    @property
    def all_directions(self) -> bool:
        """Always True: the outputs enter only as a constant factor, so that one contraction serves all directions."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """Return the number H of hidden features, which are all that is stored per example."""
        return self.fan_in

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return a dict with the inputs of the layer, (n examples, H hidden features)."""
        (use,) = uses
        if not self.has_weight:
            return {"activations": use.inputs["input"].new_zeros(n, 1)}
        return {"activations": use.rule.activations(use, n, ones=False).reshape(n, -1)}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add the Gram matrix h_n · h_m (+ 1 with a bias) of hidden features to ``out``.

        It is added C times for "sum" (C outputs), to each output for "diagonal", and to equal pairs of outputs for "full".
        """
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
    """Layer below a linear readout W (C outputs, channels) whose output gradient for output c is W_c ∘ D_ns at position s.

    The kernel of outputs c and c' is then Σ_k W_ck W_c'k ⟨M_nk, M_mk⟩, with M_nk = Σ_s D_nsk a_ns over channels k.
    """

    readout: Tensor = field(compare=False)  # W (C, fan_out)

    @property
    def all_directions(self) -> bool:
        """Always True: the outputs enter only through the readout weights, so that one contraction serves all of them."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """Return the number of entries of M, the tangent of one example without its factor from the readout weights."""
        return self.shape.groups * self.fan_in * self.shape.fan_out

    def write(self, uses, gradients, n, k, combine, *, cache=None, out=None) -> Buffers:
        """Return a dict with M (n examples, out, in), the tangents without their factors from the readout weights."""
        a, g = self.factors(uses, gradients, n, 1)
        return {"tangents": split_directions(outer_product(a, g), g)[:, 0, 0]}

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add Σ_k W_ck W_c'k ⟨M_nk, M_mk⟩ over channels k to ``out`` (n, C, m, C), in blocks of rows.

        W are the readout weights, M the stored tangents of ``x`` and ``y``; only ``combine="full"`` is supported.
        """
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
