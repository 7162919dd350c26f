"""Kinks of piecewise linear networks on the segment between two states of the weights.

The signs of some numbers (:mod:`kernelmem.trajectory.integration.pieces`) tell on which linear piece a network is. All units
whose sign differs between the ends of the segment are followed at once: each keeps a bracket of its zero, every evaluation
of a row narrows the brackets of all its units, and the next places are those of inverse quadratic interpolation (a secant at
first). Between two kinks the network is a polynomial of the place, of degree the number of weight layers, which a few
Gauss-Legendre nodes integrate exactly. Kinks that are not located are resolved by halving the panels.

Source of the safeguarded interpolation: Chandrupatla 1997.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.trajectory.integration.pieces import PieceRecorder
from kernelmem.trajectory.network.network import Network, take
from kernelmem.trajectory.network.weight_blocks import Segments

MAX_EVALUATIONS = 64  # of the network, to locate one kink
MAX_NUMBERS = 2**24  # distances in memory at a time
ROUNDING_EPSILONS = 4  # rounding error of a distance, in machine epsilons of the largest distance of its row
SHORTEST_PANEL = 1e-14  # kinks that are closer are one


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
        """Return the pairs at ``index``, ascending or with repeats."""
        return RowSegmentPairs(self.network, self.rows, self.segments, self.segment[index], self.row[index])

    def distances(self, places: Tensor) -> Tensor:
        """Return the distance of each pre-activation from the kink of its operation, (n, units), for n pairs.

        Pair i is evaluated at ``places[i]``, a position from 0 to 1 on its segment. No units are returned if the
        rows do not all have the same ones.
        """
        blocks = self.segments.rows_at_places(self.segment, places)
        distances: Tensor | None = None
        with torch.no_grad():
            for index, run in self.network.passes(take(self.rows, self.row), blocks):
                with PieceRecorder(len(index)) as recorder:
                    run()
                matrix = recorder.matrix()
                if distances is None:
                    distances = matrix.new_zeros(len(self), matrix.shape[1])
                if matrix.shape[1] != distances.shape[1]:
                    return matrix.new_zeros(len(self), 0)
                distances[index] = matrix
        assert distances is not None
        return distances


def kinks(network: Network, rows: Rows, segments: Segments, *, accuracy: float = 0.0) -> list[list[list[float]]]:
    """Return, for each segment and each row, the ascending list of positions in (0, 1) where the network has a kink.

    A kink is located to a pre-activation of at most ``accuracy``, or to rounding. Two crossings of one unit within a step
    are not found.

    Cost: two evaluations of the rows if there is no kink; about three for each unit with one.
    """
    S, m = len(segments), rows.n
    places: list[list[list[float]]] = [[[] for _ in range(m)] for _ in range(S)]
    if network.piecewise is False:
        return places
    pairs = RowSegmentPairs(network, rows, segments, torch.arange(S).repeat_interleave(m), torch.arange(m).repeat(S))
    both_ends = pairs.select(torch.arange(S * m).repeat_interleave(2))
    ends = both_ends.distances(torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(S * m)).unflatten(0, (S * m, 2))
    network.piecewise = ends.shape[2] > 0
    crosses = (ends[:, 0] > 0) != (ends[:, 1] > 0)
    counts = crosses.sum(1)
    with_kinks = counts.nonzero()[:, 0]
    for chunk in _chunks(with_kinks, counts, ends.shape[2]):
        located = _zeros(pairs.select(chunk), ends[chunk], crosses[chunk], accuracy)
        for pair, zeros in zip(chunk.tolist(), located, strict=True):
            places[pair // m][pair % m] = zeros
    return places


def _chunks(pairs: Tensor, counts: Tensor, n_units: int) -> list[Tensor]:
    """Split pairs into chunks whose evaluations, one for each of ``counts`` brackets, are kept in memory together."""
    numbers, chunks, start = 0, [], 0
    for i, count in enumerate(counts[pairs].tolist()):
        numbers += count * n_units
        if numbers > MAX_NUMBERS and i > start:
            chunks.append(pairs[start:i])
            numbers, start = count * n_units, i
    return [*chunks, pairs[start:]] if len(pairs) else []


@dataclass
class _Brackets:
    """Brackets (N, K) of the zeros of K units of N pairs; ``newest`` and ``oldest`` end of a bracket, ``left`` an end before.

    The names are those of the points x1, x2 and x3 of Chandrupatla's method: x1 and x2 bracket the zero, x3 is the point
    that x1 replaced.
    """

    x1: Tensor
    x2: Tensor
    x3: Tensor
    f1: Tensor
    f2: Tensor
    f3: Tensor

    def next_places(self, is_first: bool, is_slow: Tensor) -> Tensor:
        """Return the next place of each bracket: inverse quadratic interpolation where that is safe, else the middle."""
        t = self.f1 / (self.f1 - self.f2)  # secant
        if not is_first:
            xi, phi = (self.x1 - self.x2) / (self.x3 - self.x2), (self.f1 - self.f2) / (self.f3 - self.f2)
            alpha = (self.x3 - self.x1) / (self.x2 - self.x1)
            quadratic = self.f1 / (self.f1 - self.f2) * self.f3 / (self.f3 - self.f2) + (
                alpha * self.f1 / (self.f3 - self.f1) * self.f2 / (self.f3 - self.f2)
            )
            is_safe = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
            t = torch.where(is_safe & (quadratic > 0) & (quadratic < 1), quadratic, t)
        t = torch.where(is_slow | ~((t > 0) & (t < 1)), 0.5, t)
        return torch.lerp(self.x1, self.x2, t)

    def narrow(self, places: Tensor, values: Tensor) -> None:
        """Narrow all brackets by evaluations (N, E) of the pairs, ascending, with the values (N, E, K) of their units."""
        low, high = torch.minimum(self.x1, self.x2), torch.maximum(self.x1, self.x2)
        f_low = torch.where(self.x1 < self.x2, self.f1, self.f2)
        f_high = torch.where(self.x1 < self.x2, self.f2, self.f1)
        is_inside = (places[:, :, None] > low[:, None]) & (places[:, :, None] < high[:, None])
        is_beyond = is_inside & ((values > 0) != (f_low > 0)[:, None])
        new_high, index = torch.where(is_beyond, places[:, :, None], high[:, None]).min(1)
        f_new_high = torch.where(is_beyond.any(1), values.gather(1, index[:, None])[:, 0], f_high)
        is_before = is_inside & ~is_beyond & (places[:, :, None] < new_high[:, None])
        new_low, index = torch.where(is_before, places[:, :, None], low[:, None]).max(1)
        f_new_low = torch.where(is_before.any(1), values.gather(1, index[:, None])[:, 0], f_low)
        moved_low, moved_high = new_low > low, new_high < high
        # The end that moved is x1, and x3 what it replaced; if both moved, the lower one.
        self.x1, self.f1 = torch.where(moved_low, new_low, new_high), torch.where(moved_low, f_new_low, f_new_high)
        self.x2, self.f2 = torch.where(moved_low, new_high, new_low), torch.where(moved_low, f_new_high, f_new_low)
        moved = moved_low | moved_high
        self.x3 = torch.where(moved, torch.where(moved_low, low, high), self.x3)
        self.f3 = torch.where(moved, torch.where(moved_low, f_low, f_high), self.f3)


def _zeros(pairs: RowSegmentPairs, ends: Tensor, crosses: Tensor, accuracy: float) -> list[list[float]]:
    """Return the ascending places of the zeros of the units that cross, for each of N pairs.

    ``ends`` (N, 2, units) are the distances at both ends of the segment, ``crosses`` (N, units) is True where a unit's sign
    differs there.
    """
    N, K = len(pairs), int(crosses.sum(1).max())
    unit = crosses.int().argsort(dim=1, descending=True, stable=True)[:, :K]
    is_active = crosses.gather(1, unit)
    limit = (ROUNDING_EPSILONS * torch.finfo(torch.float64).eps * ends.abs().amax((1, 2))).clamp_min(accuracy)[:, None]
    low, high = torch.zeros(N, K, dtype=torch.float64), torch.ones(N, K, dtype=torch.float64)
    f_low, f_high = (ends[:, end].gather(1, unit) for end in (0, 1))
    brackets = _Brackets(low, high, low, f_low, f_high, f_low)
    zeros = torch.full((N, K), torch.inf, dtype=torch.float64)
    width = torch.ones(N, K, dtype=torch.float64)
    is_slow = torch.zeros(N, K, dtype=torch.bool)
    for i in range(MAX_EVALUATIONS):
        places = brackets.next_places(i == 0, is_slow)
        pair, column = is_active.nonzero().unbind(1)
        zeros[pair, column] = places[pair, column]
        values = pairs.select(pair).distances(places[pair, column])
        if values.shape[1] != crosses.shape[1]:
            break
        values = values.gather(1, unit[pair])  # (active, K)
        evaluated = torch.full((N, K), torch.inf, dtype=torch.float64)
        evaluated[pair, column] = places[pair, column]
        distances = torch.zeros(N, K, K, dtype=torch.float64)
        distances[pair, column] = values
        evaluated, order = evaluated.sort(1)
        brackets.narrow(evaluated, distances.gather(1, order[:, :, None].expand(N, K, K)))
        own = values.gather(1, column[:, None])[:, 0]
        new_width = (brackets.x1 - brackets.x2).abs()
        is_done = (own.abs() <= limit[pair, 0]) | (new_width[pair, column] <= SHORTEST_PANEL)
        is_active[pair, column] = ~is_done
        if not bool(is_active.any()):
            break
        if i % 3 == 2:  # interpolation must halve a bracket in three evaluations, or the next one is in its middle
            is_slow, width = new_width > 0.5 * width, new_width
        else:
            is_slow = torch.zeros_like(is_slow)
    return [_distinct(sorted(row)) for row in zeros.tolist()]


def _distinct(places: list[float]) -> list[float]:
    """Return ascending places in (0, 1) without those that are equal up to rounding."""
    distinct = [0.0]
    for place in places:
        if place - distinct[-1] > SHORTEST_PANEL and place < 1.0 - SHORTEST_PANEL:
            distinct.append(place)
    return distinct[1:]
