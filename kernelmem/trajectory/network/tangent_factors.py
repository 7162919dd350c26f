"""Tangents summed over the nodes of a quadrature rule, kept as factors and formed a slice of one parameter at a time.

Output gradients and activations take a few numbers per unit, the tangents one number per parameter. So tangents are
formed and used slice by slice, while a slice is in cache. Nodes are additional positions of a row, so that their weighted
sum is formed by the product that forms a single tangent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernelmem.tangents.capture import Capture, ParameterUse, UseKey
from kernelmem.tangents.groups.base import UseGradients
from kernelmem.tangents.groups.gradients import one_direction, store_direction
from kernelmem.tangents.groups.outer import outer_product, split_directions
from kernelmem.tangents.rules.embedding import EmbeddingRule
from kernelmem.tangents.rules.linear import LinearRule


@dataclass(frozen=True)
class OuterFactors:
    """Tangents Σ_q g_q ⊗ a_q of a weight used once per row: a_q is the layer's input, g_q the gradient of its output.

    The sum is over the q nodes of a quadrature rule.
    """

    use: UseKey  # key of the layer call; a weight and its bias have the same key and gradients
    activations: Tensor | None  # (S, q, r, in); None for a bias, whose activations are ones
    gradients: Tensor  # (S, q, r, k, out)

    def segment(self, s: int) -> "OuterFactors":
        """Return the factors of one segment."""
        a = self.activations
        return OuterFactors(self.use, None if a is None else a[s : s + 1], self.gradients[s : s + 1])

    def rows(self, rows: slice) -> "OuterFactors":
        """Return the factors of some rows."""
        a = self.activations
        return OuterFactors(self.use, None if a is None else a[:, :, rows], self.gradients[:, :, rows])

    def add_to(self, total: Tensor, part: slice, rows: slice, scale: float) -> None:
        """Add scale times the tangents of some rows on the first segment to ``total`` (rows, k, width), contiguous.

        ``part`` is a slice of the flattened weight, of whole units.
        """
        assert self.activations is not None
        a, g = self.activations[0, :, rows], self.gradients[0, :, rows]
        units = slice(part.start // a.shape[2], part.stop // a.shape[2])
        g = g[..., units].flatten(2).permute(1, 2, 0)  # (rows, k · units, q)
        by_unit = total.view(*g.shape[:2], a.shape[2])
        torch.baddbmm(by_unit, g, a.transpose(0, 1), alpha=scale, out=by_unit)

    def inner_products(self, direction: Tensor) -> Tensor:
        """Return the inner products of tangents and ``direction``, (S, r, k), for S segments, r rows and k functions.

        ``direction`` is (S, out, in) for a weight, or (S, out) for a bias.
        """
        S, q, r, _, out = self.gradients.shape
        if self.activations is None:
            return (self.gradients @ direction[:, None, None, :, None])[..., 0].sum(1)
        output_changes = torch.bmm(self.activations.flatten(1, 2), direction.view(S, out, -1).mT).view(S, q, r, out, 1)
        return (self.gradients @ output_changes)[..., 0].sum(1)


class Tangents(Protocol):
    """Tangents of S · r rows in k directions."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (S, r, k): the numbers of segments, rows and directions."""
        ...

    def parts(self, name: str, width: int) -> list[slice]:
        """Return slices of about ``width`` entries that together cover the flattened parameter ``name``."""
        ...

    def form(self, name: str, parameter_slice: slice, rows: slice, *, reuse: bool = False) -> Tensor:
        """Return the tangents of ``rows`` in a slice of the flattened parameter as a dense tensor (S, rows, k, width).

        With ``reuse`` the result is valid until the next call with ``reuse``, which may write to the same memory.
        """
        ...

    def outer_factors(self, name: str) -> OuterFactors | None:
        """Return the outer factors if tangents of this parameter need not be formed; None otherwise."""
        ...

    def has_factors(self) -> bool:
        """Return True if inner products need no further dense tangents."""
        ...

    def inner_products(self, directions: Mapping[str, Tensor]) -> Tensor | None:
        """Return the inner products of the tangents with one direction for each segment, (S, r, k).

        ``directions`` holds a tensor (S, *shape) for each parameter. None is returned if dense tangents are needed.
        """
        ...


@dataclass(frozen=True)
class DenseTangents:
    """Tangents as a dense tensor (S, r, k, P)."""

    values: Tensor
    slices: Mapping[str, slice]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (S, r, k): the numbers of segments, rows and directions."""
        return self.values.shape[0], self.values.shape[1], self.values.shape[2]

    def parts(self, name: str, width: int) -> list[slice]:
        """Return consecutive slices of ``width`` entries; dense tangents can be cut anywhere."""
        size = self.slices[name].stop - self.slices[name].start
        return [slice(i, min(i + width, size)) for i in range(0, size, width)]

    def form(self, name: str, parameter_slice: slice, rows: slice, *, reuse: bool = False) -> Tensor:
        """Return a view of the dense tangents."""
        start = self.slices[name].start
        return self.values[:, rows, :, start + parameter_slice.start : start + parameter_slice.stop]

    def outer_factors(self, name: str) -> None:
        """Return None: dense tangents have no factors."""
        return None

    def has_factors(self) -> bool:
        """Return True: dense tangents are formed already."""
        return True

    def inner_products(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Return the inner products of the dense tangents with the directions, (S, r, k)."""
        flat = torch.cat([directions[name].reshape(self.shape[0], -1) for name in self.slices], 1)
        return (self.values.flatten(1, 2) @ flat[:, :, None]).view(self.shape)


@dataclass(frozen=True)
class ZeroTangents:
    """Tangents that are zero, without storing them."""

    shape: tuple[int, int, int]
    sizes: Mapping[str, int]

    def parts(self, name: str, width: int) -> list[slice]:
        """Return consecutive slices of ``width`` entries; dense tangents can be cut anywhere."""
        return [slice(i, min(i + width, self.sizes[name])) for i in range(0, self.sizes[name], width)]

    def form(self, name: str, parameter_slice: slice, rows: slice, *, reuse: bool = False) -> Tensor:
        """Return zeros."""
        S, r, k = self.shape
        return torch.zeros(
            S, len(range(*rows.indices(r))), k, parameter_slice.stop - parameter_slice.start, dtype=torch.float64
        )

    def outer_factors(self, name: str) -> None:
        """Return None: zero tangents have no factors."""
        return None

    def has_factors(self) -> bool:
        """Return True: zeros need not be formed."""
        return True

    def inner_products(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.shape, dtype=torch.float64)


class FactoredTangents:
    """Tangents kept as factors of one captured pass, whose rows are ordered as (S segments, q nodes, r rows of x)."""

    def __init__(
        self,
        captured: Capture,
        gradients: Mapping[UseKey, UseGradients],
        sizes: Mapping[str, int],
        row_axes: tuple[int, int, int],
        k: int,
    ) -> None:
        """Store the captured pass and its output gradients, and collect the uses of each parameter.

        ``sizes`` gives the number of entries of each parameter, ``row_axes`` the numbers (S, q, r) of segments, nodes
        and rows, and k is the number of directions.
        """
        self.sizes, self.gradients, self.n = sizes, gradients, captured.n
        self.S, self.q, self.r = row_axes
        self.shape = (self.S, self.r, k)
        self.like_outputs = captured.outputs
        self.uses: dict[str, list[tuple[ParameterUse, str]]] = {name: [] for name in sizes}
        for use in captured.uses:
            for slot, name in use.names.items():
                if gradients.get(use.key) is not None:
                    self.uses[name].append((use, slot))
        self._activations: dict[UseKey, Tensor] = {}
        self._buffer = torch.empty(0)  # of the slices that are formed with ``reuse``

    def parts(self, name: str, width: int) -> list[slice]:
        """Return slices of the flattened parameter of about ``width`` entries, each of whole output units of the layer."""
        size = self.sizes[name]
        fan_in = self._sliceable_fan_in(name)
        if fan_in is None:
            return [slice(0, size)]
        step = fan_in * max(1, width // fan_in)
        return [slice(i, min(i + step, size)) for i in range(0, size, step)]

    def form(self, name: str, parameter_slice: slice, rows: slice, *, reuse: bool = False) -> Tensor:
        """Return a slice of the tangents, (S, rows, k, width), summed over all uses of the parameter."""
        total = None
        reuse = reuse and len(self.uses[name]) == 1
        for use, slot in self.uses[name]:
            use_tangents = self._form_use(use, slot, parameter_slice, rows, self._sliceable_fan_in(name), reuse=reuse)
            total = use_tangents if total is None else total + use_tangents
        if total is not None:
            return total
        return self.like_outputs.new_zeros(
            self.S, len(range(*rows.indices(self.r))), self.shape[2], parameter_slice.stop - parameter_slice.start
        )

    def outer_factors(self, name: str) -> OuterFactors | None:
        """Return the factors of a parameter that is used once, at one position per row."""
        if len(self.uses[name]) != 1:
            return None
        ((use, slot),) = self.uses[name]
        stacked = self.gradients[use.key]
        outer = use.rule.outer_shape(use, self.n)
        if not isinstance(use.rule, LinearRule) or use.settings.get("layout"):
            return None
        if outer is None or outer.positions != 1:
            return None
        assert isinstance(stacked, Tensor)
        g = use.rule.output_gradients(use, stacked)[:, 0, 0].unflatten(0, (self.S, self.q, self.r))
        if slot == "bias":
            return OuterFactors(use.key, None, g)
        a = use.rule.activations(use, self.n, ones=False)[:, 0, 0]
        return OuterFactors(use.key, a.unflatten(0, (self.S, self.q, self.r)), g)

    def has_factors(self) -> bool:
        """Return True if all layers with parameters are linear and used at one position per row."""
        return all(self.outer_factors(name) is not None for name in self.sizes if self.uses[name])

    def inner_products(self, directions: Mapping[str, Tensor]) -> Tensor | None:
        """Return the inner products from the factors of linear layers; None if a layer of another kind has parameters."""
        factors = {name: self.outer_factors(name) for name in self.sizes if self.uses[name]}
        total = self.like_outputs.new_zeros(self.shape)
        for name, outer_factors in factors.items():
            if outer_factors is None:
                return None
            total += outer_factors.inner_products(directions[name])
        return total

    def _sliceable_fan_in(self, name: str) -> int | None:
        """Return the number of inputs of each output unit of a weight, if units can be formed separately; None otherwise."""
        if len(self.uses[name]) != 1:
            return None
        ((use, slot),) = self.uses[name]
        outer = use.rule.outer_shape(use, self.n)
        if slot != "weight" or outer is None or outer.groups != 1 or use.settings.get("layout"):
            return None
        if isinstance(use.rule, EmbeddingRule):
            return outer.fan_out  # units are table rows
        return outer.fan_in if outer.fan_in * outer.fan_out == self.sizes[name] else None

    def _form_use(
        self, use: ParameterUse, slot: str, parameter_slice: slice, rows: slice, fan_in: int | None, *, reuse: bool
    ) -> Tensor:
        """Return the tangents of one use of a parameter, (S, rows, k, width), for a slice of the flattened parameter.

        ``fan_in`` is the number of inputs of each output unit if units can be formed separately, and otherwise None.
        """
        stacked = self.gradients[use.key]
        if isinstance(stacked, Tensor) and isinstance(use.rule, EmbeddingRule):
            return self._form_lookup(use, use.rule, stacked, parameter_slice, rows, fan_in)
        if not isinstance(stacked, Tensor):
            assert stacked is not None
            dense = self._split_rows(stacked[slot], rows)
            return dense.reshape(*dense.shape[:4], -1).sum(2)[..., parameter_slice]
        g = use.rule.output_gradients(use, stacked)  # (n, G, s, k, out)
        if slot == "bias":
            return self._split_rows(g.sum(2).transpose(1, 2).flatten(2), rows).sum(2)[..., parameter_slice]
        start = 0
        if fan_in is not None:
            # Select the units that overlap the slice: it may cut a unit in two if it was chosen for other tangents.
            unit = parameter_slice.start // fan_in
            g, start = g[..., unit : -(-parameter_slice.stop // fan_in)], unit * fan_in
        a = self._split_rows(self._activations_of(use), rows)  # (S, r, q, G, s, in)
        g = self._split_rows(g, rows)
        S, r, q = a.shape[:3]
        a, g = (t.transpose(2, 3).reshape(S * r, t.shape[3], q * t.shape[4], *t.shape[5:]) for t in (a, g))
        out = self._reused(a.shape[0] * a.shape[1] * g.shape[3:].numel() * a.shape[3], a) if reuse else None
        tangent = split_directions(outer_product(a, g, out), g)  # (S·r, k, G, out, in)
        units = use.rule.to_weight_shape(use, tangent).reshape(S, r, self.shape[2], -1)
        return units[..., parameter_slice.start - start : parameter_slice.stop - start]

    def _form_lookup(
        self,
        use: ParameterUse,
        rule: EmbeddingRule,
        stacked: Tensor,
        parameter_slice: slice,
        rows: slice,
        width: int | None,
    ) -> Tensor:
        """Return the tangents of a lookup, (S, rows, k, size), for a slice of the flattened table.

        Only the table rows that overlap the slice are formed, if ``width`` is their number of entries.
        """
        g = self._split_rows(rule.output_gradients(use, stacked)[:, 0], rows)  # (S, r, q, s, k, d)
        S, r, k = g.shape[0], g.shape[1], self.shape[2]
        g = g.flatten(2, 3).flatten(0, 1).transpose(1, 2)  # (S·r, k, q·s, d)
        first, last = 0, use.settings["rows"]
        if width is not None:
            first, last = parameter_slice.start // width, -(-parameter_slice.stop // width)
        tokens = self._split_rows(rule.tokens(use, self.n), rows).flatten(2).flatten(0, 1) - first  # (S·r, q·s)
        g = g * ((tokens >= 0) & (tokens < last - first))[:, None, :, None]
        index = tokens.clamp(0, last - first - 1)[:, None, :, None].expand_as(g)
        table = g.new_zeros(S * r, k, last - first, g.shape[-1]).scatter_add_(2, index, g)
        table = rule.to_weight_shape(use, table) if width is None else table
        start = 0 if width is None else first * width
        return table.reshape(S, r, k, -1)[..., parameter_slice.start - start : parameter_slice.stop - start]

    def _reused(self, numbers: int, like: Tensor) -> Tensor:
        """Return the buffer for so many numbers, whose memory is in cache from the slice before."""
        if self._buffer.numel() < numbers or self._buffer.dtype != like.dtype:
            self._buffer = like.new_empty(numbers)
        return self._buffer[:numbers]

    def _activations_of(self, use: ParameterUse) -> Tensor:
        if use.key not in self._activations:
            self._activations[use.key] = use.rule.activations(use, self.n, ones=False)
        return self._activations[use.key]

    def _split_rows(self, tensor: Tensor, rows: slice) -> Tensor:
        """Reshape a tensor (n, ...) of S · q · r rows to (S, rows, q, ...), for the selected ``rows`` of r."""
        return tensor.unflatten(0, (self.S, self.q, self.r))[:, :, rows].transpose(1, 2)


def output_gradients(captured: Capture, cotangents: Tensor) -> dict[UseKey, UseGradients]:
    """Return, for each use of a parameter, the gradients of its output in k directions.

    ``cotangents`` (n, k, C) are the directions in the space of the C outputs of n rows.
    """
    gradients: dict[UseKey, UseGradients] = {}
    k = cotangents.shape[1]
    if not captured.uses or not captured.outputs.requires_grad:
        return gradients
    edges = [use.edge for use in captured.uses]
    for c in range(k):
        edge_gradients = torch.autograd.grad(
            captured.outputs, edges, cotangents[:, c], retain_graph=c + 1 < k, allow_unused=True
        )
        for use, gradient in zip(captured.uses, edge_gradients, strict=True):
            use_gradient = one_direction(use, gradient, captured.n)
            if k == 1:
                gradients[use.key] = use_gradient
            else:
                store_direction(gradients, use, use_gradient, c, k)
    return gradients


def to_dense(tangents: Tangents, names: Sequence[str]) -> Tensor:
    """Return the tangents of all parameters as one tensor (S, r, k, P): S segments, r rows, k directions, P parameters."""
    rows = slice(0, tangents.shape[1])
    return torch.cat(
        [
            tangents.form(name, parameter_slice, rows)
            for name in names
            for parameter_slice in tangents.parts(name, 2**62)
        ],
        3,
    )
