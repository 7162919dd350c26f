"""The mean tangent of a step, J̄ = ∫₀¹ J(x; w + s d) ds, with a residual known from the change of the outputs.

The change of the outputs between any two places of a segment is known exactly from two evaluations, and the slope dφ/ds
at a node from one pass of forward differentiation for any number of outputs. So the residual of every panel,
φ(b) − φ(a) − ∫_a^b (dφ/ds) ds, is known before any tangent is formed. Panels that a rule does not integrate to the
tolerance get more nodes, then are halved. All rows of a step share its panels, so that a node is one set of weights; if the
network is piecewise linear, every row has its own panels, split at its kinks at the start.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.errors import NumericalError, VerificationError
from kernelmem.trajectory.integration.kinks import kinks
from kernelmem.trajectory.integration.quadrature import NODE_COUNTS, gauss_legendre
from kernelmem.trajectory.network.network import Network, take
from kernelmem.trajectory.network.tangent_factors import DenseTangents, Tangents, to_dense
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments
from kernelmem.trajectory.targets import TargetFunctions

MAX_HALVINGS = 44  # of a panel; a panel halved more often has a length below rounding
STALLED_HALVINGS = 4  # after which the residuals must have become fewer or smaller
N_RAISED = 4  # number of node counts that are tried before a panel is halved
INITIAL_NODES = 3  # nodes per panel of the first step
ROUNDING_EPSILONS = 16  # rounding error of a panel, in machine epsilons of the outputs
KINK_SHARE = 1e-3  # of the tolerance: largest accepted pre-activation at the place of a kink
MAX_NUMBERS = 2**25  # activations and gradients in memory at a time (approximately)
Panel: TypeAlias = tuple[int, int, float, float]  # segment, row (-1: all), from, to
PlacesAndWeights: TypeAlias = tuple[list[float], list[float]]  # places on a segment, and their weights


@dataclass(frozen=True)
class Integrand:
    """k functions φ of a network's outputs on m rows, along S segments of weights, with the network's buffers."""

    network: Network
    rows: Rows
    segments: Segments
    target_functions: TargetFunctions

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Return (S, m, k): the numbers of segments, rows and functions."""
        return len(self.segments), self.rows.n, len(self.target_functions.names)


@dataclass(frozen=True)
class QuadratureNodes:
    """Places and weights of the nodes on S segments."""

    by_row: dict[tuple[int, int], PlacesAndWeights]  # key: (segment, row), row −1 for all rows
    evaluations: Tensor  # (S,): nodes per row, on average
    n_nodes: int  # per panel, enough for nine of ten panels of the first segment


@dataclass(frozen=True)
class OutputChange:
    """Change of φ over S segments, which the mean tangents must reproduce."""

    values: Tensor  # (S, m, k): φ at the end minus φ at the start
    noise: Tensor  # (S, m): rounding error of the change over one panel

    def limit(self, panels: list[Panel], tolerance: float) -> Tensor:
        """Return the largest acceptable residual of each segment and row, (S, m).

        It is ``tolerance``, or the rounding error of the row's panels if that is larger.
        """
        counts = torch.zeros_like(self.noise)
        for s, row, *_ in panels:
            counts[s, slice(None) if row < 0 else row] += 1
        return (self.noise * counts.sqrt()).clamp_min(tolerance)


def whole_panels(integrand: Integrand) -> list[Panel]:
    """Return one panel for each segment, with row −1, which means all rows."""
    return [(s, -1, 0.0, 1.0) for s in range(len(integrand.segments))]


def panels_between_kinks(integrand: Integrand, tolerance: float = 0.0) -> list[Panel]:
    """Return panels (segment, row, start, stop) between the kinks of every segment and row.

    For a smooth network these are the whole segments. Kinks are located so that they add little to a residual of
    ``tolerance``.
    """
    S, m, _ = integrand.sizes
    kink_places = kinks(integrand.network, integrand.rows, integrand.segments, accuracy=KINK_SHARE * tolerance)
    if not integrand.network.piecewise:
        return whole_panels(integrand)
    return [(s, row, a, b) for s in range(S) for row in range(m) for a, b in pairwise([0.0, *kink_places[s][row], 1.0])]


def nodes_on(panels: list[tuple[Panel, int]], S: int, m: int) -> QuadratureNodes:
    """Return the nodes and weights of Gauss-Legendre rules on panels of S segments and m rows.

    ``panels`` are pairs of a panel and the number of nodes on it.
    """
    evaluations = torch.zeros(S, dtype=torch.float64)
    nodes: dict[tuple[int, int], PlacesAndWeights] = {}
    for (s, row, a, b), n in panels:
        rule = gauss_legendre(n)
        places, weights = nodes.setdefault((s, row), ([], []))
        places += [a + (b - a) * node for node in rule.nodes]
        weights += [(b - a) * weight for weight in rule.weights]
        evaluations[s] += n if row < 0 else n / m
    counts = sorted(n for (s, *_), n in panels if s == 0)
    return QuadratureNodes(nodes, evaluations, counts[(9 * len(counts)) // 10])


def output_change(integrand: Integrand) -> OutputChange:
    """Return the change of the target functions of the outputs from the start to the end of every segment."""
    network, rows, segments, (S, m, _) = integrand.network, integrand.rows, integrand.segments, integrand.sizes
    ends = {name: torch.cat([w, segments.stop[name][-1:]]) if S > 1 else w for name, w in segments.start.items()}
    if S > 1:
        outputs = network.outputs(take(rows, torch.arange(m).repeat(S + 1)), Blocks((m,) * (S + 1), ends))
    else:
        outputs = torch.cat([network.outputs(rows, Blocks((m,), end)) for end in (ends, segments.stop)])
    values = integrand.target_functions.values(outputs, torch.arange(m).repeat(S + 1)).unflatten(0, (S + 1, m))
    size = values.abs().amax(2)
    return OutputChange(values.diff(dim=0), _rounding_error(torch.maximum(size[1:], size[:-1])))


def refine(integrand: Integrand, panels: list[Panel], *, n_nodes: int, tolerance: float) -> QuadratureNodes:
    """Find nodes that integrate the tangents of all rows along S segments.

    Args:
        integrand: rows, segments, and functions of the outputs.
        panels: initial panels.
        n_nodes: initial number of nodes per panel.
        tolerance: largest accepted residual of a panel.

    Raises:
        NumericalError: the outputs or targets are NaN or infinite.
        VerificationError: halving the panels does not help: derivatives differ from the change of the outputs.

    Cost: a slope of m rows at each node, and an evaluation at each end of a panel.
    """
    accepted: list[tuple[Panel, int]] = []  # each panel with its number of nodes
    counts = [n for n in NODE_COUNTS if n >= n_nodes][:N_RAISED] or [n_nodes]
    pending, unresolved = panels, []  # unresolved: at every depth, the number of panels and the sum of their residuals
    for depth in range(MAX_HALVINGS + 1):
        total = 0.0
        for n in counts:  # more nodes first: a smooth panel needs no more
            if not pending:
                break
            residuals, noise = _residuals(integrand, pending, n)  # (panels, rows of each, k), (panels,)
            largest = residuals.abs().amax((1, 2))
            is_last_try = depth == MAX_HALVINGS and n == counts[-1]
            limit = torch.full((len(pending),), torch.inf) if is_last_try else noise.clamp_min(tolerance)
            is_accurate = (largest <= limit).tolist()
            accepted += [(panel, n) for panel, accurate in zip(pending, is_accurate, strict=True) if accurate]
            pending = [panel for panel, accurate in zip(pending, is_accurate, strict=True) if not accurate]
            total = float(largest[~torch.tensor(is_accurate)].sum())
        unresolved.append((len(pending), total))
        _check_progress(unresolved)
        pending = [
            half for s, row, a, b in pending for half in ((s, row, a, 0.5 * (a + b)), (s, row, 0.5 * (a + b), b))
        ]
    return nodes_on(accepted, len(integrand.segments), integrand.rows.n)


def _check_progress(unresolved: list[tuple[int, float]]) -> None:
    """Raise an error if the number of panels doubles at every depth with the same sum of residuals.

    A single kink or jump would leave only one inaccurate panel per depth.
    """
    if not math.isfinite(unresolved[-1][1]):
        raise NumericalError(
            "outputs, or a target of them, that are NaN or infinite along a step",
            expected="finite numbers at the recorded weights and between them",
            hint="check the rows of x, and a callable target at outputs of any size",
        )
    if len(unresolved) <= STALLED_HALVINGS:
        return
    (count, total), (count_before, total_before) = unresolved[-1], unresolved[-1 - STALLED_HALVINGS]
    if count >= 0.75 * 2**STALLED_HALVINGS * max(count_before, 1) and total >= 0.5 * total_before:
        raise VerificationError(
            f"outputs whose change along a step differs by {total:.2g} from the integral of their derivatives",
            expected="a model and a target that torch differentiates correctly almost everywhere",
            hint="look for detach(), jumps (thresholds, rounding, top-k) or a custom gradient (straight-through) in forward,"
            " and in a callable target",
        )


def _residuals(integrand: Integrand, panels: list[Panel], n_nodes: int) -> tuple[Tensor, Tensor]:
    """Return the change of k functions over each panel minus its quadrature, and the rounding error of each panel.

    The shapes are (panels, rows, k) and (panels,).
    """
    network, rows, segments, target_functions = (
        integrand.network,
        integrand.rows,
        integrand.segments,
        integrand.target_functions,
    )
    rule = gauss_legendre(n_nodes)
    nodes, weights = (torch.tensor(values, dtype=torch.float64) for values in (rule.nodes, rule.weights))
    segment = torch.tensor([panel[0] for panel in panels])
    ends = torch.tensor([panel[2:] for panel in panels], dtype=torch.float64)
    length = ends[:, 1] - ends[:, 0]
    places = ends[:, :1] + length[:, None] * nodes  # (panels, n_nodes)
    is_row_by_row = panels[0][1] >= 0
    count = 1 if is_row_by_row else rows.n
    chunk_size = max(1, MAX_NUMBERS // (network.numbers_per_row * (n_nodes + 2) * count))
    residuals, rounding = [], []
    for i in range(0, len(panels), chunk_size):
        chunk = slice(i, i + chunk_size)
        n_panels = len(segment[chunk])
        if is_row_by_row:
            row = torch.tensor([panel[1] for panel in panels[chunk]])
            outputs, slopes = network.slopes(
                take(rows, row.repeat_interleave(n_nodes)),
                segments.rows_at_places(segment[chunk].repeat_interleave(n_nodes), places[chunk].flatten()),
            )
            at_ends = network.outputs(
                take(rows, row.repeat_interleave(2)),
                segments.rows_at_places(segment[chunk].repeat_interleave(2), ends[chunk].flatten()),
            )
            row = row[:, None]
        else:
            row = torch.arange(rows.n).expand(n_panels, rows.n)
            outputs, slopes = _all_rows(integrand, segment[chunk], places[chunk])
            at_ends = _all_rows_at_ends(integrand, segment[chunk], ends[chunk])
        # outputs (n_panels · n_nodes · count, C), panel by panel, node by node
        directions = target_functions.directions(outputs, row[:, None].expand(n_panels, n_nodes, count).flatten())
        rates = (directions * slopes[:, None]).sum(2).unflatten(0, (n_panels, n_nodes, count))
        rows_at_ends = row[:, None].expand(n_panels, 2, count).flatten()
        before, after = target_functions.values(at_ends, rows_at_ends).unflatten(0, (n_panels, 2, count)).unbind(1)
        residuals.append((after - before) - length[chunk, None, None] * (rates * weights[:, None, None]).sum(1))
        rounding.append(_rounding_error(torch.maximum(before.abs(), after.abs()).amax((1, 2))))
    return torch.cat(residuals), torch.cat(rounding)


def _rounding_error(magnitude: Tensor) -> Tensor:
    """Return the expected absolute rounding error of target values with these absolute values."""
    return ROUNDING_EPSILONS * torch.finfo(torch.float64).eps * magnitude.clamp_min(1.0)


def _all_rows(integrand: Integrand, segment: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of all rows, and their derivatives along the segment, at each place (n_panels, n_nodes)."""
    segments, m, (n_panels, n_nodes) = integrand.segments, integrand.rows.n, places.shape
    segment_of_place = segment.repeat_interleave(n_nodes)
    blocks = segments.blocks_at_places(segment_of_place, places.flatten(), m)
    steps = {
        name: step.expand(n_panels * n_nodes, *step.shape[1:]) if len(step) == 1 else step[segment_of_place]
        for name, step in segments.steps().items()
    }
    return integrand.network.slopes(take(integrand.rows, torch.arange(m).repeat(n_panels * n_nodes)), blocks, steps)


def _all_rows_at_ends(integrand: Integrand, segment: Tensor, ends: Tensor) -> Tensor:
    """Return the outputs of all rows at both ends (n_panels, 2) of every panel; a shared end is evaluated once."""
    segments, m = integrand.segments, integrand.rows.n
    keys = [(int(s), float(place)) for s, pair in zip(segment, ends, strict=True) for place in pair]
    # The end of a segment is the start of the next one.
    keys = [(s + 1, 0.0) if place == 1.0 and s + 1 < len(segments) else (s, place) for s, place in keys]
    unique = sorted(set(keys))
    position = {key: i for i, key in enumerate(unique)}
    end_blocks = segments.blocks_at_places(
        torch.tensor([s for s, _ in unique]), torch.tensor([place for _, place in unique], dtype=torch.float64), m
    )
    outputs = integrand.network.outputs(take(integrand.rows, torch.arange(m).repeat(len(unique))), end_blocks)
    return outputs.unflatten(0, (len(unique), m))[[position[key] for key in keys]].flatten(0, 1)


def factor_numbers(integrand: Integrand, nodes: QuadratureNodes) -> float:
    """Estimate how many numbers the tangent factors at these nodes keep in memory (activations and gradients)."""
    _, m, k = integrand.sizes
    return integrand.network.numbers_per_row * m * k * float(nodes.evaluations.sum())


def mean_tangents(integrand: Integrand, nodes: QuadratureNodes) -> Iterator[tuple[Tensor, Tangents]]:
    """Yield pairs: indices of some rows, and the mean tangents of these rows on all S segments.

    A mean tangent is the sum, weighted by the quadrature, of the derivatives of φ with respect to the parameters.
    """
    network, segments, (S, m, k) = integrand.network, integrand.segments, integrand.sizes
    if (0, -1) in nodes.by_row:
        count = max(len(places) for places, _ in nodes.by_row.values())
        places, weights = _pad_nodes([nodes.by_row[s, -1] for s in range(S)], count)
        chunk_size = max(1, MAX_NUMBERS // (network.numbers_per_row * S * count * k))
        for i in range(0, m, chunk_size):
            row_indices = torch.arange(i, min(i + chunk_size, m))
            blocks = segments.blocks_at_places(
                torch.arange(S).repeat_interleave(count), places.flatten(), len(row_indices)
            )
            shares = weights.flatten().repeat_interleave(len(row_indices))
            yield (
                row_indices,
                _weighted_tangents(
                    integrand, row_indices.repeat(S * count), shares, blocks, (S, count, len(row_indices))
                ),
            )
        return
    buckets: dict[int, list[tuple[int, int]]] = {}  # pairs (segment, row) by their number of nodes
    for pair, (places, _) in nodes.by_row.items():
        buckets.setdefault(len(places), []).append(pair)
    J = torch.empty(S, m, k, network.n_parameters, dtype=torch.float64) if S > 1 else None
    for count, pairs in buckets.items():
        chunk_size = max(1, MAX_NUMBERS // (network.numbers_per_row * count * k))
        for i in range(0, len(pairs), chunk_size):
            chunk = sorted(pairs[i : i + chunk_size])
            places, weights = _pad_nodes([nodes.by_row[pair] for pair in chunk], count)
            segment, row = torch.tensor(chunk).unbind(1)
            tangents = _tangents_of_pairs(integrand, segment, row, places, weights)
            if J is None:
                yield row, tangents
            else:
                J[segment, row] = to_dense(tangents, list(network.sizes)).flatten(0, 1)
    if J is not None:
        yield torch.arange(m), DenseTangents(J, network.slices)


def dense_mean_tangents(integrand: Integrand, *, n_nodes: int | None = None, tolerance: float) -> Tensor:
    """Return the mean tangents of m rows on the only segment, (m, k, P), for k functions and P parameters."""
    nodes = refine(
        integrand, panels_between_kinks(integrand, tolerance), n_nodes=n_nodes or INITIAL_NODES, tolerance=tolerance
    )
    _, m, k = integrand.sizes
    J = torch.empty(m, k, integrand.network.n_parameters, dtype=torch.float64)
    for row_indices, tangents in mean_tangents(integrand, nodes):
        J[row_indices] = to_dense(tangents, list(integrand.network.sizes))[0]
    return J


def _pad_nodes(nodes: list[PlacesAndWeights], count: int) -> tuple[Tensor, Tensor]:
    """Return places and weights, each (b, count), of b rules; shorter rules are filled up with nodes of zero weight."""
    places = [row_places + [0.5] * (count - len(row_places)) for row_places, _ in nodes]
    weights = [row_weights + [0.0] * (count - len(row_weights)) for _, row_weights in nodes]
    return torch.tensor(places, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def _tangents_of_pairs(integrand: Integrand, segment: Tensor, row: Tensor, places: Tensor, weights: Tensor) -> Tangents:
    """Return the weighted tangents of pairs (segment, row), which all have the same row or the same segment.

    ``places`` and ``weights`` (n_pairs, q) are the q quadrature nodes of each pair, over which the tangents are
    summed.
    """
    n_pairs, q = places.shape
    if len(integrand.segments) > 1:
        row_axes, rows, places, weights = (
            (n_pairs, q, 1),
            row.repeat_interleave(q),
            places.flatten(),
            weights.flatten(),
        )
        segment_of_place = segment.repeat_interleave(q)
    else:
        row_axes, rows, places, weights = (1, q, n_pairs), row.repeat(q), places.T.flatten(), weights.T.flatten()
        segment_of_place = torch.zeros(n_pairs * q, dtype=torch.int64)
    return _weighted_tangents(
        integrand, rows, weights, integrand.segments.rows_at_places(segment_of_place, places), row_axes
    )


def _weighted_tangents(
    integrand: Integrand, rows: Tensor, weights: Tensor, blocks: Blocks, row_axes: tuple[int, int, int]
) -> Tangents:
    """Return the tangents of n = S · q · r rows, summed with ``weights`` (n,) over the q nodes of S segments and r rows."""

    def directions(outputs: Tensor, row_indices: Tensor) -> Tensor:
        return integrand.target_functions.directions(outputs, rows[row_indices]) * weights[row_indices, None, None]

    return integrand.network.tangent_factors(take(integrand.rows, rows), directions, blocks, row_axes=row_axes)[0]
