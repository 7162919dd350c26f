"""Parameter groups: the tangents of some parameters, and their contraction into kernel blocks.

A group writes the tangents of a chunk of rows into buffers, and adds the contraction of two sets of buffers to the
result. With k directions (outputs, or combinations of them) the result is laid out as ``combine`` says: "sum" (n, m),
"diagonal" (k, n, m), "full" (n, k, m, k).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from kernelmem.tangents.capture import ParameterUse
from kernelmem.tangents.groups.gemm import add_gram

__all__ = ["ActivationCache", "Buffers", "Combine", "Group", "UseGradients", "add_explicit"]

Combine = Literal["sum", "diagonal", "full"]
Buffers = dict[str, Tensor]  # each (rows, ...)
UseGradients = (
    Tensor | dict[str, Tensor] | None
)  # output gradients of an outer use; tangents of a direct one; None: zero
ActivationCache = dict[int, Tensor] | None  # activations of uses, kept from one direction to the next


@dataclass(frozen=True)
class Group:
    """Parameters ``names`` met by the uses ``keys``."""

    names: tuple[str, ...]
    keys: tuple[int, ...]
    layer: str
    factored: bool = field(default=False, kw_only=True)  # gradients are one direction, whatever the number of outputs
    streams: bool = field(
        default=False, kw_only=True
    )  # contracted one direction at a time, where all rows fit in memory

    @property
    def all_directions(self) -> bool:
        """Whether a sum over directions holds this group's part once, not once a direction."""
        return self.factored

    def write(
        self,
        uses: Sequence[ParameterUse],
        stacks: Sequence[UseGradients],
        n: int,
        k: int,
        combine: Combine,
        *,
        kept: ActivationCache = None,
        out: Tensor | None = None,
    ) -> Buffers:
        """Tangents of n rows in k directions; activations found in ``kept`` or put there, the rest in ``out`` if it fits."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def numbers_per_row(self, k: int) -> int:
        """Numbers kept for one row with k directions."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def buffer_shape(self, n: int, k: int) -> tuple[int, int] | None:
        """Shape of ``out`` for n rows with k directions; None: it is not used."""
        return None

    def add(self, out: Tensor, x: Buffers, y: Buffers, combine: Combine, *, symmetric: bool) -> None:
        """Add this group's kernel block to ``out``."""
        add_explicit(out, x["tangents"], y["tangents"], combine, symmetric=symmetric)


def add_explicit(out: Tensor, left: Tensor, right: Tensor, combine: Combine, *, symmetric: bool) -> None:
    """Add the inner products of (n, k, p) and (m, k, p)."""
    if combine == "sum":
        add_gram(out, left.flatten(1), right.flatten(1), symmetric=symmetric)
    elif combine == "diagonal":
        for c in range(left.shape[1]):
            add_gram(out[c], left[:, c], right[:, c], symmetric=symmetric)
    else:
        n, k, m = *left.shape[:2], len(right)
        flat = out.view(n * k, m * k) if out.is_contiguous() else None
        if flat is not None:
            add_gram(flat, left.flatten(0, 1), right.flatten(0, 1), symmetric=symmetric)
        else:
            out += (left.flatten(0, 1) @ right.flatten(0, 1).T).view(n, k, m, k)
