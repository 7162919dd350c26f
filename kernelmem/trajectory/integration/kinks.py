"""Where a network that is piecewise linear in its inputs changes its piece on the way from one state to the next.

Every unit of a relu (leaky relu, hardtanh, absolute value) has pre-activations whose sign is its piece; the first place
on the line at which one of them changes is found by a safeguarded secant, for all rows together. Between two such places
the network is a polynomial of the place, of its number of weight layers, which few Gauss-Legendre nodes integrate exactly.
Kinks of other operations (max-pooling) are not located; the bisection of panels meets them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Rows
from kernelmem.trajectory.network.network import Network, take
from kernelmem.trajectory.network.weight_blocks import Segments

__all__ = ["kinks"]

# Functions with kinks, and where these lie.
PIECEWISE = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.leaky_relu, torch.prelu), (0.0,)),
    **dict.fromkeys((torch.abs, Tensor.abs, Tensor.__abs__), (0.0,)),
    F.relu6: (0.0, 6.0),
    F.hardtanh: (-1.0, 1.0),
}
CLOSE = 1e-8  # width of a bracket in which a pre-activation is as good as linear
MOST = 64  # evaluations for one kink


class _Signs(TorchFunctionMode):
    """Collects the distances of all pre-activations from their kinks."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.distances: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        at = PIECEWISE.get(func)
        if at is not None and args and isinstance(args[0], Tensor) and args[0].shape[:1] == (self.n,):
            flat = args[0].detach().reshape(self.n, -1)
            self.distances += [flat - place for place in at]  # before an in-place function writes over it
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class RowSegmentPairs:
    """Rows on segments: the network, and which row of which segment each of n pairs is, segments ascending."""

    network: Network
    rows: Rows
    segments: Segments
    segment: Tensor  # (n,)
    row: Tensor  # (n,)

    def __len__(self) -> int:
        return len(self.row)

    def select(self, index: Tensor) -> "RowSegmentPairs":
        """Some of them, in their order."""
        return RowSegmentPairs(self.network, self.rows, self.segments, self.segment[index], self.row[index])

    def distances(self, places: Tensor) -> Tensor:
        """All pre-activations less where they have a kink, every pair at its place: (n, units)."""
        with _Signs(len(self)) as signs:
            self.network.outputs(take(self.rows, self.row), self.segments.lines(self.segment, places))
        return torch.cat(signs.distances, 1) if signs.distances else torch.empty(len(self), 0, dtype=torch.float64)


def kinks(network: Network, rows: Rows, segments: Segments) -> list[list[list[float]]]:
    """For every segment and row the places in (0, 1) at which it changes its piece, ascending.

    A pair of crossings of the same unit within a step, or kinks of operations that are not known here, are not found.
    Cost: two evaluations of the network if there is none; a few more for each kink of the row that has most.
    """
    S, m = len(segments), rows.n
    found: list[list[list[float]]] = [[[] for _ in range(m)] for _ in range(S)]
    if network.piecewise is False:
        return found
    pairs = RowSegmentPairs(network, rows, segments, torch.arange(S).repeat_interleave(m), torch.arange(m).repeat(S))
    low, high = (torch.full((S * m,), end, dtype=torch.float64) for end in (0.0, 1.0))
    here = pairs.distances(low)
    network.piecewise = here.shape[1] > 0
    if not network.piecewise:
        return found
    end = pairs.distances(high)
    piece, last = here > 0, end > 0
    active = (piece != last).any(1).nonzero()[:, 0]
    pairs = pairs.select(active)
    low, here, piece, end, last = (t[active] for t in (low, here, piece, end, last))
    while len(pairs):
        place, after, beyond = _first(pairs, low, here, piece, end)
        for segment, row, at in zip(pairs.segment.tolist(), pairs.row.tolist(), place.tolist(), strict=True):
            found[segment][row].append(at)
        piece = beyond > 0
        going = ((piece != last).any(1) & (after < 1.0)).nonzero()[:, 0]
        pairs = pairs.select(going)
        low, here, piece, end, last = (t[going] for t in (after, beyond, piece, end, last))
    return found


def _first(
    pairs: RowSegmentPairs, low: Tensor, here: Tensor, piece: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The first kink of every pair after ``low``, a place just beyond it, and the distances there."""
    high, there = torch.ones_like(low), end
    low, here = low.clone(), here.clone()
    for turn in range(MOST):
        if bool((high - low <= CLOSE).all()):
            break
        guess = _crossing(low, high, here, there, piece)
        width = high - low
        # A secant alone moves one end only: every third place is beyond the guess, or the middle.
        nudge = (0.25 * CLOSE, -0.25 * CLOSE, 0.0)[turn % 3]
        place = guess + nudge if turn % 3 < 2 else 0.5 * (low + high)
        place = torch.minimum(torch.maximum(place, low + 1e-3 * CLOSE), high - 1e-3 * CLOSE)
        place = torch.where(width <= CLOSE, high, place)
        values = pairs.distances(place)
        same = ((values > 0) == piece).all(1) & (width > CLOSE)
        low, here = torch.where(same, place, low), torch.where(same[:, None], values, here)
        moved = ~same & (width > CLOSE)
        high, there = torch.where(moved, place, high), torch.where(moved[:, None], values, there)
    return _crossing(low, high, here, there, piece), high, there


def _crossing(low: Tensor, high: Tensor, here: Tensor, there: Tensor, piece: Tensor) -> Tensor:
    """The least place at which a unit that differs between the ends is zero, were it linear between them."""
    differs = piece != (there > 0)
    share = torch.where(differs, here / (here - there), 1.0).clamp(0.0, 1.0)
    return low + (high - low) * share.nan_to_num(0.0).min(1).values
