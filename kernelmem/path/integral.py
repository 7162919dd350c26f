"""The mean tangent of a step, J̄ = ∫₀¹ J(x; w + s d) ds, certified by the change of the outputs that it must explain.

The outputs' change between any two places of the line is known exactly from two evaluations, so the residual
f(b) − f(a) − (b − a) J̄_ab · d of every panel is known too. Panels that a rule does not integrate to the tolerance are
halved (or, where a network is piecewise linear, were split at its kinks to begin with).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.path.kinks import kinks
from kernelmem.path.network import Line, Network
from kernelmem.path.quadrature import gauss_legendre
from kernelmem.path.targets import Explained

__all__ = ["Integral", "mean_tangents"]

DEEPEST = 44  # halvings of a panel: beyond, its length is rounding
NOISE = 64  # machine epsilons of the outputs: what rounding leaves of a panel
BYTES = 2**28  # of tangents at a time


@dataclass(frozen=True)
class Integral:
    """J̄ (m, k, P) of one step, its residual (m, k), and how many tangents of a row it took on average."""

    tangents: Tensor
    residual: Tensor
    evaluations: float


def mean_tangents(
    network: Network,
    rows: Rows,
    line: Line,
    step: Tensor,
    what: Explained,
    *,
    order: int,
    tolerance: float,
) -> Integral:
    """Integrate the tangents of all rows along one step.

    Args:
        network: weights are those of ``line``.
        rows: m rows.
        line: from w to w + d; its places are not used.
        step: d (P,).
        what: functions of the outputs, and their derivatives.
        order: nodes on a panel.
        tolerance: largest residual of a panel.

    Cost: (nodes · panels) tangents of m rows, and an evaluation at each edge.
    """
    m = rows.n
    edges = [[0.0, *inner, 1.0] for inner in kinks(network, rows, line)]
    pending = [(row, a, b) for row in range(m) for a, b in zip(edges[row][:-1], edges[row][1:], strict=True)]
    mean: Tensor | None = None
    residual: Tensor | None = None
    rule, evaluations = gauss_legendre(order), 0
    for depth in range(DEEPEST + 1):
        if not pending:
            break
        again: list[tuple[int, float, float]] = []
        size = max(1, BYTES // (8 * network.n_parameters * len(rule.nodes) * max(1, network.n_outputs)))
        for first in range(0, len(pending), size):
            part = pending[first : first + size]
            index = torch.tensor([row for row, _, _ in part])
            start = torch.tensor([a for _, a, _ in part], dtype=torch.float64)
            length = torch.tensor([b - a for _, a, b in part], dtype=torch.float64)
            nodes = torch.tensor(rule.nodes, dtype=torch.float64)
            weights = torch.tensor(rule.weights, dtype=torch.float64)
            places = (start[:, None] + length[:, None] * nodes).flatten()
            many = index.repeat_interleave(len(nodes))
            along = Line(line.start, line.stop, places)
            tangents, _ = network.tangents(
                _take(rows, many), lambda f, own, many=many: what.directions(f, many[own]), along
            )
            tangents = (tangents.unflatten(0, (len(part), len(nodes))) * weights[:, None, None]).sum(1)
            ends = torch.cat([start, start + length])
            twice = index.repeat(2)
            outputs = network.outputs_along(_take(rows, twice), Line(line.start, line.stop, ends))
            before, after = what.values(outputs, twice).chunk(2)
            own = (after - before) - length[:, None] * (tangents @ step)
            floor = NOISE * torch.finfo(torch.float64).eps * torch.cat([before, after]).abs().max().clamp_min(1.0)
            bad = (own.abs() > max(tolerance, float(floor))).any(1)
            if depth == DEEPEST:
                bad = torch.zeros_like(bad)
            evaluations += len(places)
            if mean is None or residual is None:
                mean = tangents.new_zeros(m, *tangents.shape[1:])
                residual = tangents.new_zeros(m, tangents.shape[1])
            good = ~bad
            mean.index_add_(0, index[good], length[good, None, None] * tangents[good])
            residual.index_add_(0, index[good], own[good])
            for row, a, b in (part[i] for i in bad.nonzero()[:, 0].tolist()):
                again += [(row, a, 0.5 * (a + b)), (row, 0.5 * (a + b), b)]
        pending = again
    assert mean is not None
    assert residual is not None
    return Integral(mean, residual, evaluations / m)


def _take(rows: Rows, index: Tensor) -> Rows:
    return Rows(rows.map(lambda leaf: leaf[index]), len(index))
