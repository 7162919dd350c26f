"""Exact nearest neighbours among hidden states, with the keys of single documents left out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core import NumericalError
from kernelmem.text.language_models import ieee_precision

BLOCK = 8192  # keys that are compared at once
PAIRS = 2**22  # numbers of a chunk of exact distances
TIED = 256  # roundings of a state by which two equal distances may differ


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of B queries, sorted by query and distance.

    Attributes:
        query: (M,) number of the query of each pair.
        key: (M,) number of the key.
        distance: (M,) float64, squared Euclidean distance.
    """

    query: Tensor
    key: Tensor
    distance: Tensor


class NearestStates:
    """Search of nearest neighbours in N keys (N, d): filtered by float32 products, then computed exactly in float64.

    The k nearest keys, and all that are as near as the k-th up to rounding: keys with equal states, such as those of the
    first tokens of documents, are taken together or not at all, in whatever order they are stored.

    Raises:
        NumericalError: states that are not finite.
    """

    def __init__(self, keys: Tensor, k: int) -> None:
        self.keys, self.k = keys, k
        largest = float(keys.abs().max()) if len(keys) else 0.0
        if not largest < float("inf"):  # NaN too
            raise NumericalError(
                "hidden states that are NaN or infinite", expected="finite states", hint="the model has diverged"
            )
        self._scale = largest or 1.0
        self._center = keys.mean(0, dtype=torch.float64) / self._scale
        self._points = torch.cat([self._scaled(part) for part in keys.split(BLOCK)])
        self._norms = torch.linalg.vector_norm(self._points, dim=1, dtype=torch.float64) ** 2
        self._radius = float(self._norms.max()) ** 0.5
        self.tie = TIED * torch.finfo(keys.dtype).eps * float(torch.linalg.vector_norm(keys, dim=1).max())
        """Difference of two distances (not squared) that is rounding."""

    def _scaled(self, states: Tensor) -> Tensor:
        """Return states as float32, of about unit size, around the mean of the keys."""
        return (states.double() / self._scale - self._center).float()

    def candidates(self, queries: Tensor, left_out: list[tuple[slice, slice]]) -> tuple[Tensor, Tensor]:
        """Return pairs (query, key), (M,) each, that contain all neighbours of the queries.

        Args:
            queries: states (B, d).
            left_out: rows of queries, and the keys that are left out for them.
        """
        points = self._scaled(queries)
        squares = (points.double() ** 2).sum(1)
        eps, d = torch.finfo(torch.float32).eps, points.shape[1]
        slack = 2 * (d + 8) * squares.sqrt() * self._radius + 4 * self._radius**2 + 4 * squares
        slack *= eps  # error of |x|² - 2 q x, computed in float32 from rounded states (Higham 2002, section 3.1)
        norms = self._norms.float()
        limit = torch.full((len(points),), torch.inf, dtype=torch.float64)
        query, key = torch.zeros(2, 0, dtype=torch.int64)
        value = torch.zeros(0)
        for start in range(0, len(self._points), BLOCK):
            stop = min(start + BLOCK, len(self._points))
            with ieee_precision(points.device):
                block = torch.addmm(norms[start:stop], points, self._points[start:stop].T, alpha=-2)
            for rows, columns in left_out:
                first, last = max(columns.start, start), min(columns.stop, stop)
                if first < last:
                    block[rows, first - start : last - start] = torch.inf
            if start == 0 and self.k <= stop:
                limit = self._limit(block.topk(self.k, largest=False).values[:, -1].double(), squares, slack)
            rows, columns = (block <= limit[:, None].float()).nonzero(as_tuple=True)
            near = block[rows, columns]
            finite = near < torch.inf
            query, key = torch.cat([query, rows[finite]]), torch.cat([key, columns[finite] + start])
            value = torch.cat([value, near[finite]])
            order = _by_query(query, value)
            query, key, value = query[order], key[order], value[order]
            limit = self._limit(_kth(query, value.double(), self.k, len(points)), squares, slack)
            kept = value <= limit[query].float()
            query, key, value = query[kept], key[kept], value[kept]
        return query, key

    def _limit(self, kth: Tensor, squares: Tensor, slack: Tensor) -> Tensor:
        """Return the value up to which a pair may be a neighbour, if the k-th smallest computed one is ``kth`` (B,)."""
        distance = (kth + squares + slack).clamp(min=0).sqrt() + self.tie / self._scale
        limit = distance**2 - squares + slack
        return limit + torch.finfo(torch.float32).eps * limit.abs()  # it is rounded to float32

    def distances(self, queries: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return the squared distances (M,) of pairs, float64."""
        chunk = max(1, PAIRS // queries.shape[1])
        parts = [
            ((queries[q].double() - self.keys[x].double()) ** 2).sum(1)
            for q, x in zip(query.split(chunk), key.split(chunk), strict=True)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def neighbours(self, query: Tensor, key: Tensor, distance: Tensor, n: int) -> Neighbours:
        """Return the neighbours of n queries among pairs that contain them."""
        order = _by_query(query, distance)
        query, key, distance = query[order], key[order], distance[order]
        limit = _kth(query, distance, self.k, n).sqrt() + self.tie
        kept = distance.sqrt() <= limit[query]
        return Neighbours(query[kept], key[kept], distance[kept])


def _by_query(query: Tensor, value: Tensor) -> Tensor:
    """Return the order of pairs by query, then by value."""
    order = value.argsort(stable=True)
    return order[query[order].argsort(stable=True)]


def _kth(query: Tensor, value: Tensor, k: int, n: int) -> Tensor:
    """Return the k-th smallest value of each of n queries, (n,), infinite if it has fewer; pairs are sorted."""
    counts = torch.bincount(query, minlength=n)
    places = (counts.cumsum(0) - counts + k - 1).clamp(max=max(0, len(value) - 1))
    return torch.where(counts >= k, value[places] if len(value) else torch.inf, torch.inf)
