"""The mean tangent of a step, J̄ = ∫₀¹ J(x; w + s d) ds, certified by the change of the outputs that it must explain.

The change of the outputs between any two places of the line is known exactly from two evaluations, and the slope dφ/ds
at a node from one pass of forward differentiation, whatever the number of outputs. So the residual of every panel,
φ(b) − φ(a) − ∫_a^b (dφ/ds) ds, is known before any tangent is formed. Panels that a rule does not integrate to the
tolerance get more nodes, then are halved; where a network is piecewise linear, they were split at its kinks to begin with.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.path.kinks import kinks
from kernelmem.path.network import Line, Network, take
from kernelmem.path.quadrature import ORDERS, gauss_legendre
from kernelmem.path.sums import NUMBERS, summed_tangents
from kernelmem.path.targets import Explained

__all__ = ["Integral", "mean_tangents"]

DEEPEST = 44  # halvings of a panel: beyond, its length is rounding
RAISED = 4  # orders that are tried before a panel is halved
NOISE = 16  # machine epsilons of the outputs: what rounding leaves of a panel
Panel = tuple[int, float, float]  # row, from, to


@dataclass(frozen=True)
class Integral:
    """J̄ (m, k, P) of one step, its residual (m, k), and what it took."""

    tangents: Tensor
    residual: Tensor
    evaluations: float  # nodes a row, on average
    order: int  # nodes that were enough for nine panels of ten


def mean_tangents(
    network: Network, rows: Rows, line: Line, what: Explained, *, order: int, tolerance: float
) -> Integral:
    """Integrate the tangents of all rows along one step.

    Args:
        network: buffers are those of the step.
        rows: m rows.
        line: from w to w + d; its places are not used.
        what: functions of the outputs, and their derivatives.
        order: nodes on a panel to begin with.
        tolerance: largest residual of a panel.

    Cost: (nodes · panels) slopes and tangents of m rows, and an evaluation at each edge.
    """
    m = rows.n
    edges = [[0.0, *inner, 1.0] for inner in kinks(network, rows, line)]
    pending = [(row, a, b) for row in range(m) for a, b in pairwise(edges[row])]
    residual = torch.zeros(m, len(what.names), dtype=torch.float64)
    accepted: list[tuple[Panel, int]] = []  # with their orders
    orders = [n for n in ORDERS if n >= order][:RAISED] or [order]
    for depth in range(DEEPEST + 1):
        for n in orders:  # more nodes first: a smooth panel needs no more
            if not pending:
                break
            own = _residuals(network, rows, line, what, pending, n)
            last = depth == DEEPEST and n == orders[-1]
            limit = torch.full((len(pending),), torch.inf) if last else own.noise.clamp_min(tolerance)
            good = (own.residual.abs() <= limit[:, None]).all(1)
            residual.index_add_(0, own.rows[good], own.residual[good])
            accepted += [(panel, n) for panel, fine in zip(pending, good.tolist(), strict=True) if fine]
            pending = [panel for panel, fine in zip(pending, good.tolist(), strict=True) if not fine]
        pending = [half for row, a, b in pending for half in ((row, a, 0.5 * (a + b)), (row, 0.5 * (a + b), b))]
    tangents = _integrate(network, rows, line, what, accepted)
    used = sorted(n for _, n in accepted)
    return Integral(tangents, residual, sum(used) / m, used[(9 * len(used)) // 10])


def _integrate(network: Network, rows: Rows, line: Line, what: Explained, accepted: list[tuple[Panel, int]]) -> Tensor:
    """The weighted sum of the tangents at all nodes: (m, k, P)."""
    tangents = torch.zeros(rows.n, len(what.names), network.n_parameters, dtype=torch.float64)
    of_row: dict[int, tuple[list[float], list[float]]] = {}
    for (row, a, b), n in accepted:
        rule = gauss_legendre(n)
        places, weights = of_row.setdefault(row, ([], []))
        places += [a + (b - a) * node for node in rule.nodes]
        weights += [(b - a) * weight for weight in rule.weights]
    buckets: dict[int, list[int]] = {}  # rows by how many nodes they have
    for row, (places, _) in of_row.items():
        buckets.setdefault(len(places), []).append(row)
    for count, members in buckets.items():
        size = max(1, NUMBERS // (network.row_numbers * count * len(what.names)))
        for i in range(0, len(members), size):
            part = members[i : i + size]
            places, weights = (
                torch.tensor([of_row[row][which] for row in part], dtype=torch.float64) for which in (0, 1)
            )
            index = torch.tensor(part)
            tangents[index] = summed_tangents(network, rows, line, index, places, weights, what)
    return tangents


@dataclass(frozen=True)
class _Residuals:
    rows: Tensor  # (panels,)
    residual: Tensor  # (panels, k)
    noise: Tensor  # (panels,): what rounding leaves


def _residuals(
    network: Network, rows: Rows, line: Line, what: Explained, panels: list[Panel], order: int
) -> _Residuals:
    """What the rule leaves of the change over each panel."""
    rule = gauss_legendre(order)
    index = torch.tensor([row for row, _, _ in panels])
    ends = torch.tensor([panel[1:] for panel in panels], dtype=torch.float64)
    nodes, weights = (torch.tensor(values, dtype=torch.float64) for values in (rule.nodes, rule.weights))
    length = ends[:, 1] - ends[:, 0]
    places = torch.cat([(ends[:, :1] + length[:, None] * nodes).flatten(), ends[:, 0], ends[:, 1]])
    many = torch.cat([index.repeat_interleave(order), index, index])
    outputs, slopes = network.slopes(take(rows, many), Line(line.start, line.stop, places))
    inner = len(index) * order
    directions = what.directions(outputs[:inner], many[:inner])
    rates = (directions * slopes[:inner, None]).sum(2).unflatten(0, (len(index), order))
    before, after = what.values(outputs[inner:], many[inner:]).chunk(2)
    residual = (after - before) - length[:, None] * (rates * weights[:, None]).sum(1)
    size = torch.cat([before.abs(), after.abs()], 1).max(1).values.clamp_min(1.0)
    return _Residuals(index, residual, NOISE * torch.finfo(torch.float64).eps * size)
