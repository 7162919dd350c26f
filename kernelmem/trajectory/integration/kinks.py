"""Kinks of piecewise linear networks on the segment between two states of the weights.

The sign of the pre-activation of a unit of relu (leaky relu, hardtanh, absolute value) says on which linear piece it is.
The first place at which one of the signs changes is located by a safeguarded secant method, for all rows together. Between
two kinks the network is a polynomial of the place, of degree the number of weight layers, which a few Gauss-Legendre nodes
integrate exactly. Kinks of other operations (max-pooling) are not located; halving the panels resolves them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Rows
from kernelmem.trajectory.network.network import Network, take
from kernelmem.trajectory.network.weight_blocks import Segments

# Functions with kinks, and the inputs at which these lie.
PIECEWISE = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.leaky_relu, torch.prelu), (0.0,)),
    **dict.fromkeys((torch.abs, Tensor.abs, Tensor.__abs__), (0.0,)),
    F.relu6: (0.0, 6.0),
    F.hardtanh: (-1.0, 1.0),
}
BRACKET_WIDTH = 1e-8  # width of a bracket in which a pre-activation is linear up to rounding
MAX_EVALUATIONS = 64  # of the network, to locate one kink


class _KinkDistances(TorchFunctionMode):
    """Records the distance of every pre-activation from each kink of its activation function."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.distances: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kinks_at = PIECEWISE.get(func)
        if kinks_at is not None and args and isinstance(args[0], Tensor) and args[0].shape[:1] == (self.n,):
            flat = args[0].detach().reshape(self.n, -1)
            self.distances += [flat - place for place in kinks_at]  # before an in-place function changes it
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class RowSegmentPairs:
    """n pairs of a row and a segment, sorted by segment."""

    network: Network
    rows: Rows
    segments: Segments
    segment: Tensor  # (n,)
    row: Tensor  # (n,)

    def __len__(self) -> int:
        return len(self.row)

    def select(self, index: Tensor) -> "RowSegmentPairs":
        """Return the pairs at ``index``, in the same order."""
        return RowSegmentPairs(self.network, self.rows, self.segments, self.segment[index], self.row[index])

    def distances(self, places: Tensor) -> Tensor:
        """Return each pre-activation minus the input at which its activation has a kink, (n, units), for n pairs.

        Pair i is evaluated at ``places[i]``, a position from 0 to 1 on its segment.
        """
        with _KinkDistances(len(self)) as recorded:
            self.network.outputs(take(self.rows, self.row), self.segments.rows_at_places(self.segment, places))
        return (
            torch.cat(recorded.distances, 1) if recorded.distances else torch.empty(len(self), 0, dtype=torch.float64)
        )


def kinks(network: Network, rows: Rows, segments: Segments) -> list[list[list[float]]]:
    """Return, for each segment and each row, the ascending list of positions in (0, 1) where the network has a kink.

    Two crossings of one unit within a step, and kinks of other operations, are not found.

    Cost: two evaluations of the network if there is no kink; a few more for each kink of the row that has most.
    """
    S, m = len(segments), rows.n
    places: list[list[list[float]]] = [[[] for _ in range(m)] for _ in range(S)]
    if network.piecewise is False:
        return places
    pairs = RowSegmentPairs(network, rows, segments, torch.arange(S).repeat_interleave(m), torch.arange(m).repeat(S))
    low, high = (torch.full((S * m,), end, dtype=torch.float64) for end in (0.0, 1.0))
    low_values = pairs.distances(low)
    network.piecewise = low_values.shape[1] > 0
    if not network.piecewise:
        return places
    end_values = pairs.distances(high)
    signs, end_signs = low_values > 0, end_values > 0
    pairs_with_kinks = (signs != end_signs).any(1).nonzero()[:, 0]
    pairs = pairs.select(pairs_with_kinks)
    low, low_values, signs, end_values, end_signs = (
        t[pairs_with_kinks] for t in (low, low_values, signs, end_values, end_signs)
    )
    while len(pairs):
        kink, place_beyond, values_beyond = _first_kinks(pairs, low, low_values, signs, end_values)
        for segment, row, place in zip(pairs.segment.tolist(), pairs.row.tolist(), kink.tolist(), strict=True):
            places[segment][row].append(place)
        signs = values_beyond > 0
        remaining = ((signs != end_signs).any(1) & (place_beyond < 1.0)).nonzero()[:, 0]
        pairs = pairs.select(remaining)
        low, low_values, signs, end_values, end_signs = (
            t[remaining] for t in (place_beyond, values_beyond, signs, end_values, end_signs)
        )
    return places


def _first_kinks(
    pairs: RowSegmentPairs, low: Tensor, low_values: Tensor, signs: Tensor, end_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of n pairs the first kink after ``low`` (n,), a place just beyond it (n,), and the distances there.

    The distances (n, units) are those of :meth:`RowSegmentPairs.distances`; ``signs`` is True where they are positive
    at ``low``, and ``end_values`` are the distances at the end of the segment.
    """
    high, high_values = torch.ones_like(low), end_values
    low, low_values = low.clone(), low_values.clone()
    for i in range(MAX_EVALUATIONS):
        if bool((high - low <= BRACKET_WIDTH).all()):
            break
        guess = _first_crossing(low, high, low_values, high_values, signs)
        width = high - low
        # A secant alone moves one end only: try just beyond the guess, just before it, then the middle.
        nudge = (0.25 * BRACKET_WIDTH, -0.25 * BRACKET_WIDTH, 0.0)[i % 3]
        place = guess + nudge if i % 3 < 2 else 0.5 * (low + high)
        place = torch.minimum(torch.maximum(place, low + 1e-3 * BRACKET_WIDTH), high - 1e-3 * BRACKET_WIDTH)
        place = torch.where(width <= BRACKET_WIDTH, high, place)
        values = pairs.distances(place)
        below_kink = ((values > 0) == signs).all(1) & (width > BRACKET_WIDTH)
        low, low_values = torch.where(below_kink, place, low), torch.where(below_kink[:, None], values, low_values)
        above_kink = ~below_kink & (width > BRACKET_WIDTH)
        high, high_values = torch.where(above_kink, place, high), torch.where(above_kink[:, None], values, high_values)
    return _first_crossing(low, high, low_values, high_values, signs), high, high_values


def _first_crossing(low: Tensor, high: Tensor, low_values: Tensor, high_values: Tensor, signs: Tensor) -> Tensor:
    """Return the first position (n,) between ``low`` and ``high`` where a distance to a kink interpolates to zero.

    Only units whose distance has different signs at the two ends are considered; without any the result is ``high``.
    """
    differs = signs != (high_values > 0)
    fraction = torch.where(differs, low_values / (low_values - high_values), 1.0).clamp(0.0, 1.0)
    return low + (high - low) * fraction.nan_to_num(0.0).min(1).values
