"""Groups of the linear readout: the last layer, and layers whose output gradients factor under it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernelmem.tangents.groups.base import Buffers, Combine
from kernelmem.tangents.groups.gemm import add_gram
from kernelmem.tangents.groups.outer import OuterGroup, outer_product, split_directions


@dataclass(frozen=True)
class ReadoutGroup(OuterGroup):
    """Last linear layer, whose outputs are those of the model.

    The tangent of output c is e_c ⊗ [h, 1], with the unit vector e_c and the hidden features h of the example.
    """

    n_outputs: int

    def tangent_sum(self, tangents, uses, combination, combine) -> Tensor:
        """Return v ⊗ Σ_i w_i [h_i, 1] as one vector, for the cotangent v of the combination."""
        assert combination.cotangent is not None
        activation_sum = combination.examples @ tangents["activations"]
        if not self.has_weight:
            activation_sum = activation_sum[:0]
        if self.has_bias:
            activation_sum = torch.cat([activation_sum, combination.examples.sum()[None]])
        return self._as_parameters(torch.outer(combination.cotangent, activation_sum)[None], uses)

    @property
    def all_directions(self) -> bool:
        """Always True: the outputs enter only as a constant factor, so that one contraction serves all directions."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """Return the number H of hidden features, which are all that is stored per example."""
        return self.fan_in

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
        """Return a dict with the inputs of the layer, (n examples, H hidden features)."""
        (use,) = uses
        if not self.has_weight:
            return {"activations": like.new_zeros(n, 1)}
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

    def _accepts_counts(self, n_uses: int, positions: int) -> bool:
        return n_uses == 1

    def tangent_sum(self, tangents, uses, combination, combine) -> Tensor:
        """Return Σ_k (v W)_k Σ_i w_i M_ik, for the cotangent v of the combination, as one vector."""
        assert combination.channels is not None
        total = torch.tensordot(combination.examples, tangents["tangents"], 1) * combination.channels[:, None]
        return self._as_parameters(total[None], uses)

    @property
    def all_directions(self) -> bool:
        """Always True: the outputs enter only through the readout weights, so that one contraction serves all of them."""
        return True

    def numbers_per_row(self, k: int) -> int:
        """Return the number of entries of M, the tangent of one example without its factor from the readout weights."""
        return self.shape.groups * self.fan_in * self.shape.fan_out

    def write(self, uses, gradients, n, k, combine, *, like, cache=None, out=None) -> Buffers:
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
