"""Parameter groups: the tangents of some parameters, and their contraction into kernel blocks.

A group writes the tangents of a chunk of rows into buffers, and adds the contraction of two sets of buffers to the
result. With k directions (outputs, or combinations of them) the result is laid out as ``combine`` says: "sum" (n, m),
"diagonal" (k, n, m), "full" (n, k, m, k).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from kernelmem.tangents.capture import ParameterUse, UseKey
from kernelmem.tangents.groups.float32 import product
from kernelmem.tangents.groups.gemm import add_gram

Combine = Literal["sum", "diagonal", "full"]
Buffers = dict[str, Tensor]  # by name, each (rows, ...)
UseGradients = (
    Tensor | dict[str, Tensor] | None
)  # output gradients of an outer-product use, or tangents by slot; None: zero
ActivationCache = dict[UseKey, Tensor] | None  # use -> activations, kept from one direction to the next


@dataclass(frozen=True)
class Combination:
    """Combination of output directions v_c and examples i, in which tangents are compared with autograd.

    Attributes:
        directions: weights u (k,) of the directions.
        examples: weights w (n,) of the examples.
        cotangent: Σ_c u_c v_c, shape (C outputs,), if the directions are the same for all examples; otherwise None.
        channels: the cotangent times the readout weights, (H,), divided by the scale of the factored gradients of the
            trace kernel; None without a readout.
    """

    directions: Tensor
    examples: Tensor
    cotangent: Tensor | None = None
    channels: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """Base class of groups: parameters whose tangents ∂f/∂θ are stored and contracted into the kernel together.

    Attributes:
        names: names of the parameters.
        keys: keys of the :class:`ParameterUse` objects that use them in the survey; a pass may have others.
        layer: name of the module that the kernel of the group is attributed to.
    """

    names: tuple[str, ...]
    keys: tuple[UseKey, ...]
    layer: str
    factored: bool = field(default=False, kw_only=True)  # output gradients factor as W_ck D_nk: one direction for all
    streams: bool = field(default=False, kw_only=True)  # contracted direction by direction if all rows fit in memory

    @property
    def all_directions(self) -> bool:
        """True if the group is contracted once for all output directions together, False if once per direction."""
        return self.factored

    def write(
        self,
        uses: Sequence[ParameterUse],
        gradients: Sequence[UseGradients],
        n: int,
        k: int,
        combine: Combine,
        *,
        like: Tensor,
        cache: ActivationCache = None,
        out: Tensor | None = None,
    ) -> Buffers:
        """Return the tangents of n examples in k output directions, as named tensors of first axis n.

        ``gradients`` holds the output gradients of each of ``uses``, ``like`` has the dtype and device of the result. It is
        written into ``out`` if its shape is :meth:`buffer_shape`; ``cache`` maps a use to its activations and is filled
        at the first call.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def accepts(self, uses: Sequence[ParameterUse], n: int) -> bool:
        """Return True if the tangents of these uses in a pass of n examples have the form of the group."""
        return True

    def tangent_sum(
        self, tangents: Buffers, uses: Sequence[ParameterUse], combination: Combination, combine: Combine
    ) -> Tensor:
        """Return Σ_i Σ_c w_i u_c T_ic, or fixed linear functions of it, from the tangents T that :meth:`write` returned.

        It is added up over passes and directions, and then brought to the form of :meth:`expected_sum` by :meth:`compared`.
        """
        total = combination.examples @ tangents["tangents"].flatten(1)
        return combination.directions @ total.view(len(combination.directions), -1)

    def compared(self, total: Tensor, uses: Sequence[ParameterUse], combination: Combination) -> Tensor:
        """Return a sum of results of :meth:`tangent_sum` in the form of :meth:`expected_sum`.

        The mean square of linear functions, over the random numbers that define them, is that of the entries of the sum.
        """
        return total

    def expected_sum(self, gradients: Mapping[str, Tensor], uses: Sequence[ParameterUse], like: Tensor) -> Tensor:
        """Return what :meth:`compared` returns if the sum of the tangents is ``gradients``, by name of the parameter."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def numbers_per_row(self, k: int) -> int:
        """Return the number of entries that :meth:`write` stores per example with k output directions."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def buffer_shape(self, n: int, k: int) -> tuple[int, int] | None:
        """Return the shape of the argument ``out`` of :meth:`write` for n examples and k directions; None if unused."""
        return None

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add the contraction of the tangents ``x`` (n examples) and ``y`` (m examples) to the block ``out`` in place.

        ``combine`` gives the shape of ``out``: "sum" (n, m), "diagonal" (k, n, m), "full" (n, k, m, k) for k directions.
        With ``symmetric`` (x is y) only the upper triangle is needed.
        """
        add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)


def add_explicit(out: Tensor, left: Tensor, right: Tensor, combine: Combine, *, symmetric: bool) -> None:
    """Add the inner products of the tangents ``left`` (n, k, p) and ``right`` (m, k, p) to ``out`` in place.

    n and m count examples, k output directions, p scalar parameters. ``combine`` gives the shape of ``out``: "sum" (n, m),
    "diagonal" (k, n, m), "full" (n, k, m, k). With ``symmetric`` only the upper triangle is computed.
    """
    if combine == "sum":
        add_gram(out, left.flatten(1), right.flatten(1), symmetric=symmetric)
    elif combine == "diagonal":
        for direction in range(left.shape[1]):
            add_gram(out[direction], left[:, direction], right[:, direction], symmetric=symmetric)
    else:
        n, k, m = *left.shape[:2], len(right)
        flat_out = out.view(n * k, m * k) if out.is_contiguous() else None
        if flat_out is not None:
            add_gram(flat_out, left.flatten(0, 1), right.flatten(0, 1), symmetric=symmetric)
        else:
            out += product(left.flatten(0, 1), right.flatten(0, 1)).view(n, k, m, k)
