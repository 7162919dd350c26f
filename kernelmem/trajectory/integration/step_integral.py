"""The mean tangent of a step, J̄ = ∫₀¹ J(x; w + s d) ds, certified by the change of the outputs that it must explain.

The change of the outputs between any two places of the line is known exactly from two evaluations, and the slope dφ/ds
at a node from one pass of forward differentiation, whatever the number of outputs. So the residual of every panel,
φ(b) − φ(a) − ∫_a^b (dφ/ds) ds, is known before any tangent is formed. Panels that a rule does not integrate to the
tolerance get more nodes, then are halved. All rows of a step share its panels, so that a node is a set of weights; where a
network is piecewise linear, every row has panels of its own, split at its kinks to begin with.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.errors import NumericalError, VerificationError
from kernelmem.trajectory.integration.kinks import kinks
from kernelmem.trajectory.integration.quadrature import NODE_COUNTS, gauss_legendre
from kernelmem.trajectory.network.network import Network, take
from kernelmem.trajectory.network.tangent_factors import DenseTangents, Tangents, join
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.targets import TargetFunctions

__all__ = [
    "START",
    "OutputChange",
    "QuadratureNodes",
    "dense_mean_tangents",
    "factor_numbers",
    "initial_panels",
    "mean_tangents",
    "nodes_on",
    "output_change",
    "refine",
]

DEEPEST = 44  # halvings of a panel: beyond, its length is rounding
STALLED = 4  # halvings after which the residuals must have become fewer or smaller
RAISED = 4  # orders that are tried before a panel is halved
START = 3  # nodes of the first step that is met
NOISE = 16  # machine epsilons of the outputs: what rounding leaves of a panel
NUMBERS = 2**25  # about as many activations and gradients at a time
Panel = tuple[int, int, float, float]  # segment, row (-1: all), from, to
Places = tuple[list[float], list[float]]  # and their weights


@dataclass(frozen=True)
class QuadratureNodes:
    """Where the tangents of S steps are taken, and with which weights."""

    of: dict[tuple[int, int], Places]  # of each segment and row, row -1 for all
    evaluations: Tensor  # (S,): nodes a row, on average
    n_nodes: int  # on a panel, enough for nine of ten of the first step


@dataclass(frozen=True)
class OutputChange:
    """What the tangents of S steps must explain."""

    values: Tensor  # (S, m, k): φ after the step less φ before
    noise: Tensor  # (S, m): what rounding leaves of it on one panel

    def limit(self, panels: list[Panel], tolerance: float) -> Tensor:
        """Residuals that are good enough, (S, m): the tolerance, or the rounding of a row's panels."""
        counts = torch.zeros_like(self.noise)
        for s, row, *_ in panels:
            counts[s, slice(None) if row < 0 else row] += 1
        return (self.noise * counts.sqrt()).clamp_min(tolerance)


def initial_panels(network: Network, rows: Rows, segments: Segments) -> list[Panel]:
    """The panels that a step is cut into to begin with: at its kinks, row by row, or not at all."""
    S, m = len(segments), rows.n
    inner = kinks(network, rows, segments)
    if not network.piecewise:
        return [(s, -1, 0.0, 1.0) for s in range(S)]
    return [(s, row, a, b) for s in range(S) for row in range(m) for a, b in pairwise([0.0, *inner[s][row], 1.0])]


def nodes_on(panels: list[tuple[Panel, int]], S: int, m: int) -> QuadratureNodes:
    """The nodes of Gauss-Legendre rules, each panel with an n_nodes of its own."""
    evaluations = torch.zeros(S, dtype=torch.float64)
    nodes: dict[tuple[int, int], Places] = {}
    for (s, row, a, b), n in panels:
        rule = gauss_legendre(n)
        places, weights = nodes.setdefault((s, row), ([], []))
        places += [a + (b - a) * node for node in rule.nodes]
        weights += [(b - a) * weight for weight in rule.weights]
        evaluations[s] += n if row < 0 else n / m
    orders = sorted(n for (s, *_), n in panels if s == 0)
    return QuadratureNodes(nodes, evaluations, orders[(9 * len(orders)) // 10])


def output_change(network: Network, rows: Rows, segments: Segments, phi: TargetFunctions) -> OutputChange:
    """Evaluate φ at both ends of every step."""
    S, m = len(segments), rows.n
    ends = {name: torch.cat([w, segments.stop[name][-1:]]) if S > 1 else w for name, w in segments.start.items()}
    if S > 1:
        outputs = network.outputs(take(rows, torch.arange(m).repeat(S + 1)), Blocks((m,) * (S + 1), ends))
    else:
        outputs = torch.cat([network.outputs(rows, Blocks((m,), end)) for end in (ends, segments.stop)])
    values = phi.values(outputs, torch.arange(m).repeat(S + 1)).unflatten(0, (S + 1, m))
    size = values.abs().amax(2).clamp_min(1.0)
    return OutputChange(values.diff(dim=0), NOISE * torch.finfo(torch.float64).eps * torch.maximum(size[1:], size[:-1]))


def refine(
    network: Network,
    rows: Rows,
    segments: Segments,
    phi: TargetFunctions,
    panels: list[Panel],
    *,
    n_nodes: int,
    tolerance: float,
) -> QuadratureNodes:
    """Find nodes that integrate the tangents of all rows along S steps.

    Args:
        network: buffers are those of the steps.
        rows: m rows.
        segments: S steps.
        phi: functions of the outputs, and their derivatives.
        panels: to begin with.
        n_nodes: nodes on a panel to begin with.
        tolerance: largest residual of a panel.

    Raises:
        NumericalError: NaN. VerificationError: halving the panels helps nowhere: derivatives are not those of the outputs.

    Cost: a slope of m rows at each node, and an evaluation at each edge of a panel.
    """
    accepted: list[tuple[Panel, int]] = []  # with their orders
    orders = [n for n in NODE_COUNTS if n >= n_nodes][:RAISED] or [n_nodes]
    pending, left = panels, []  # left: of every depth, how many panels and the sum of their residuals
    for depth in range(DEEPEST + 1):
        total = 0.0
        for n in orders:  # more nodes first: a smooth panel needs no more
            if not pending:
                break
            own, noise = _residuals(network, rows, segments, phi, pending, n)  # (panels, rows of each, k), (panels,)
            last = depth == DEEPEST and n == orders[-1]
            limit = torch.full((len(pending),), torch.inf) if last else noise.clamp_min(tolerance)
            fine = (own.abs().amax((1, 2)) <= limit).tolist()
            accepted += [(panel, n) for panel, good in zip(pending, fine, strict=True) if good]
            pending = [panel for panel, good in zip(pending, fine, strict=True) if not good]
            total = float(own.abs().amax((1, 2))[~torch.tensor(fine)].sum())
        left.append((len(pending), total))
        _check_progress(left)
        pending = [
            half for s, row, a, b in pending for half in ((s, row, a, 0.5 * (a + b)), (s, row, 0.5 * (a + b), b))
        ]
    return nodes_on(accepted, len(segments), rows.n)


def _check_progress(left: list[tuple[int, float]]) -> None:
    """Refuse panels that double at every depth with the same sum of residuals: a kink, or a jump, would stay with one."""
    if not math.isfinite(left[-1][1]):
        raise NumericalError(
            "outputs, or a target of them, that are NaN or infinite along a step",
            expected="finite numbers at the recorded weights and between them",
            hint="check the rows of x, and a callable target at outputs of any size",
        )
    if len(left) <= STALLED:
        return
    (count, total), (count_before, total_before) = left[-1], left[-1 - STALLED]
    if count >= 0.75 * 2**STALLED * max(count_before, 1) and total >= 0.5 * total_before:
        raise VerificationError(
            f"outputs that change along a step by {total:.2g} more, or less, than their derivatives say",
            expected="a model and a target that torch differentiates rightly almost everywhere",
            hint="look for detach(), rounding or a gradient of its own (straight-through) in forward, and in a callable target",
        )


def _residuals(
    network: Network, rows: Rows, segments: Segments, phi: TargetFunctions, panels: list[Panel], n_nodes: int
) -> tuple[Tensor, Tensor]:
    """What the rule leaves of the change over each panel, and what rounding leaves of it."""
    rule = gauss_legendre(n_nodes)
    nodes, weights = (torch.tensor(values, dtype=torch.float64) for values in (rule.nodes, rule.weights))
    segment = torch.tensor([panel[0] for panel in panels])
    ends = torch.tensor([panel[2:] for panel in panels], dtype=torch.float64)
    length = ends[:, 1] - ends[:, 0]
    places = torch.cat([ends[:, :1] + length[:, None] * nodes, ends], 1)  # (panels, n_nodes + 2)
    single = panels[0][1] >= 0
    count = 1 if single else rows.n
    size = max(1, NUMBERS // (network.row_numbers * (n_nodes + 2) * count))
    found, noise = [], []
    for i in range(0, len(panels), size):
        part = slice(i, i + size)
        b = len(segment[part])
        if single:
            index = torch.tensor([panel[1] for panel in panels[part]])
            inner = _along(network, rows, segments, segment[part], index, places[part, :n_nodes])
            both_ends = network.outputs(
                take(rows, index.repeat_interleave(2)),
                segments.lines(segment[part].repeat_interleave(2), places[part, n_nodes:].flatten()),
            )
            index = index[:, None]
        else:
            inner = _everywhere(network, rows, segments, segment[part], places[part, :n_nodes])
            both_ends = _ends(network, rows, segments, segment[part], places[part, n_nodes:])
            index = torch.arange(rows.n).expand(b, rows.n)
        outputs, slopes = inner  # (b · n_nodes · count, C), panel by panel, node by node
        every = index[:, None].expand(b, n_nodes, count).flatten()
        directions = phi.directions(outputs, every)
        rates = (directions * slopes[:, None]).sum(2).unflatten(0, (b, n_nodes, count))
        both = index[:, None].expand(b, 2, count).flatten()
        before, after = phi.values(both_ends, both).unflatten(0, (b, 2, count)).unbind(1)
        found.append((after - before) - length[part, None, None] * (rates * weights[:, None, None]).sum(1))
        largest = torch.maximum(before.abs(), after.abs()).amax((1, 2)).clamp_min(1.0)
        noise.append(NOISE * torch.finfo(torch.float64).eps * largest)
    return torch.cat(found), torch.cat(noise)


def _along(
    network: Network, rows: Rows, segments: Segments, segment: Tensor, index: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    n_nodes = places.shape[1]
    blocks = segments.lines(segment.repeat_interleave(n_nodes), places.flatten())
    return network.slopes(take(rows, index.repeat_interleave(n_nodes)), blocks)


def _everywhere(
    network: Network, rows: Rows, segments: Segments, segment: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """All rows at every place: outputs and slopes."""
    b, n_nodes = places.shape
    own = segment.repeat_interleave(n_nodes)
    blocks = segments.points(own, places.flatten(), rows.n)
    steps = {
        name: step.expand(b * n_nodes, *step.shape[1:]) if len(step) == 1 else step[own]
        for name, step in segments.steps().items()
    }
    return network.slopes(take(rows, torch.arange(rows.n).repeat(b * n_nodes)), blocks, steps)


def _ends(network: Network, rows: Rows, segments: Segments, segment: Tensor, places: Tensor) -> Tensor:
    """All rows at both ends of every panel; where panels follow each other, that end is met once."""
    keys = [(int(s), float(place)) for s, pair in zip(segment, places, strict=True) for place in pair]
    # the end of a segment is the start of the next one
    keys = [(s + 1, 0.0) if place == 1.0 and s + 1 < len(segments) else (s, place) for s, place in keys]
    known = sorted(set(keys))
    where = {key: i for i, key in enumerate(known)}
    at = torch.tensor([s for s, _ in known]), torch.tensor([place for _, place in known], dtype=torch.float64)
    many = take(rows, torch.arange(rows.n).repeat(len(known)))
    outputs = network.outputs(many, segments.points(*at, rows.n)).unflatten(0, (len(known), rows.n))
    return outputs[[where[key] for key in keys]].flatten(0, 1)


def factor_numbers(network: Network, rows: Rows, nodes: QuadratureNodes, phi: TargetFunctions) -> float:
    """About how many activations and gradients the factors at these nodes take."""
    return network.row_numbers * rows.n * len(phi.names) * float(nodes.evaluations.sum())


def mean_tangents(
    network: Network, rows: Rows, segments: Segments, phi: TargetFunctions, found: QuadratureNodes
) -> Iterator[tuple[Tensor, Tangents]]:
    """The weighted sums of the tangents at all nodes: ordinals of some rows, and their J̄ on all S segments."""
    S, m, k = len(segments), rows.n, len(phi.names)
    if not network.piecewise:
        count = max(len(places) for places, _ in found.of.values())
        places, weights = _padded([found.of[s, -1] for s in range(S)], count)
        size = max(1, NUMBERS // (network.row_numbers * S * count * k))
        for i in range(0, m, size):
            index = torch.arange(i, min(i + size, m))
            yield index, _at_points(network, rows, segments, index, places, weights, phi)
        return
    buckets: dict[int, list[tuple[int, int]]] = {}  # pairs by how many nodes they have
    for pair, (places, _) in found.of.items():
        buckets.setdefault(len(places), []).append(pair)
    whole = torch.empty(S, m, k, network.n_parameters, dtype=torch.float64) if S > 1 else None
    for count, members in buckets.items():
        size = max(1, NUMBERS // (network.row_numbers * count * k))
        for i in range(0, len(members), size):
            part = sorted(members[i : i + size])
            places, weights = _padded([found.of[pair] for pair in part], count)
            segment, row = torch.tensor(part).unbind(1)
            own = _at_places(network, rows, segments, segment, row, places, weights, phi)
            if whole is None:
                yield row, own
            else:
                whole[segment, row] = join(own, list(network.sizes)).flatten(0, 1)
    if whole is not None:
        yield torch.arange(m), DenseTangents(whole, network.slices)


def dense_mean_tangents(
    network: Network,
    rows: Rows,
    segment: Segments,
    phi: TargetFunctions,
    *,
    n_nodes: int | None = None,
    tolerance: float,
) -> Tensor:
    """Return J̄ of all rows on one segment as a dense tensor (m, k, P)."""
    panels = initial_panels(network, rows, segment)
    nodes = refine(network, rows, segment, phi, panels, n_nodes=n_nodes or START, tolerance=tolerance)
    J = torch.empty(rows.n, len(phi.names), network.n_parameters, dtype=torch.float64)
    for index, tangents in mean_tangents(network, rows, segment, phi, nodes):
        J[index] = join(tangents, list(network.sizes))[0]
    return J


def _padded(nodes: list[Places], count: int) -> tuple[Tensor, Tensor]:
    """Places and weights (b, count), filled up with nodes of no weight."""
    places = [p + [0.5] * (count - len(p)) for p, _ in nodes]
    weights = [w + [0.0] * (count - len(w)) for _, w in nodes]
    return torch.tensor(places, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def _at_points(
    network: Network,
    rows: Rows,
    segments: Segments,
    index: Tensor,
    places: Tensor,
    weights: Tensor,
    phi: TargetFunctions,
) -> Tangents:
    (S, q), r = places.shape, len(index)
    blocks = segments.points(torch.arange(S).repeat_interleave(q), places.flatten(), r)
    many, share = index.repeat(S * q), weights.flatten().repeat_interleave(r)
    return network.factors(
        take(rows, many), lambda f, own: phi.directions(f, many[own]) * share[own, None, None], blocks, lying=(S, q, r)
    )[0]


def _at_places(
    network: Network,
    rows: Rows,
    segments: Segments,
    segment: Tensor,
    row: Tensor,
    places: Tensor,
    weights: Tensor,
    phi: TargetFunctions,
) -> Tangents:
    """Pairs (b,) with nodes of their own: lying as one row on b segments, or as b rows on the only one."""
    b, q = places.shape
    if len(segments) > 1:
        lying, many, at, share = (b, q, 1), row.repeat_interleave(q), places.flatten(), weights.flatten()
        own_segment = segment.repeat_interleave(q)
    else:
        lying, many, at, share = (1, q, b), row.repeat(q), places.T.flatten(), weights.T.flatten()
        own_segment = torch.zeros(b * q, dtype=torch.int64)
    return network.factors(
        take(rows, many),
        lambda f, own: phi.directions(f, many[own]) * share[own, None, None],
        segments.lines(own_segment, at),
        lying=lying,
    )[0]
