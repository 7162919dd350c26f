"""Choice of the quadrature nodes of each step, from those that sufficed for the steps before.

One panel for each segment is tried first. Where kinks make that too inaccurate for the tolerance, the kinks of every row are
located, and the panels lie between them; whole segments are then tried again after some steps, more and more rarely.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kernelmem.trajectory.integration.node_schedule import FIRST_WAIT, LONGEST_WAIT, NodeSchedule
from kernelmem.trajectory.integration.quadrature import MAX_NODES, Quadrature
from kernelmem.trajectory.integration.step_integral import (
    INITIAL_NODES,
    Integrand,
    OutputChange,
    Panel,
    QuadratureNodes,
    nodes_on,
    panels_between_kinks,
    refine,
    whole_panels,
)

LARGE_MARGIN = 1e-4  # a residual below this share of the limit: fewer nodes are tried on the next step
INITIAL_NODES_BETWEEN_KINKS = 2
SAFETY = 2.0  # of the error that is predicted for more nodes


@dataclass(frozen=True)
class Candidate:
    """Nodes to be tried on S segments."""

    panels: list[Panel]
    n_nodes: int  # per panel
    nodes: QuadratureNodes
    limit: Tensor  # (S, m): largest acceptable residual

    @property
    def is_whole(self) -> bool:
        """True if each segment is one panel for all rows."""
        return self.panels[0][1] < 0


class AdaptiveNodes:
    """Numbers of nodes that sufficed for the steps so far, of whole segments and between kinks."""

    def __init__(self, quadrature: Quadrature, step_tolerance: float) -> None:
        """Start with the requested number of nodes; ``step_tolerance`` is the largest accepted residual of a step."""
        self.tolerance, self.is_adaptive = step_tolerance, quadrature.n_nodes is None
        n = quadrature.n_nodes
        self.counts = {True: n or INITIAL_NODES, False: n or INITIAL_NODES_BETWEEN_KINKS}  # key: of whole segments
        self.schedules = {True: NodeSchedule(), False: NodeSchedule()}
        self.wait, self.n_located = (
            FIRST_WAIT,
            FIRST_WAIT,
        )  # steps between trying whole segments, and since the last try
        self.excess = 1.0  # largest ratio of a residual of the last candidate to its limit

    def candidates(self, integrand: Integrand, change: OutputChange) -> Iterator[Candidate]:
        """Yield the nodes to be tried on the segments of ``integrand``, until :meth:`accepts` returns True."""
        network, panels = integrand.network, list[Panel]()
        if network.piecewise is False or self.n_located >= self.wait:
            whole = whole_panels(integrand)
            yield from self._with_counts(integrand, change, whole)
            if network.piecewise is None:  # not known before kinks are looked for
                panels = panels_between_kinks(integrand, self.tolerance)
            if not network.piecewise:
                return
            # The error of a rule across kinks falls as 1 / n².
            n_nodes = math.ceil(self.counts[True] * math.sqrt(SAFETY * self.excess)) if self.excess < 1e4 else MAX_NODES
            if n_nodes < MAX_NODES:
                yield self._candidate(integrand, change, whole, n_nodes)
        yield from self._with_counts(integrand, change, panels or panels_between_kinks(integrand, self.tolerance))

    def accepts(self, candidate: Candidate, residual: Tensor) -> bool:
        """Return True if a residual (S, m, k) of a candidate is within the limit, and take note of it for later steps."""
        self.excess = float((residual.abs().amax(2) / candidate.limit).max())
        if not self.excess <= 1.0:
            return False
        n_steps = LONGEST_WAIT if self.excess <= LARGE_MARGIN else len(candidate.limit)
        self._update(candidate.is_whole, candidate.n_nodes, n_steps)
        if candidate.is_whole:
            self.wait, self.n_located = FIRST_WAIT, FIRST_WAIT
        return True

    def refine(self, integrand: Integrand) -> QuadratureNodes:
        """Return nodes that integrate the tangents of all rows to the tolerance, after no candidate was accepted."""
        panels = panels_between_kinks(integrand, self.tolerance)
        is_whole = panels[0][1] < 0
        nodes = refine(integrand, panels, n_nodes=self.counts[is_whole], tolerance=self.tolerance)
        self._update(is_whole, nodes.n_nodes, len(integrand.segments))
        return nodes

    def _with_counts(self, integrand: Integrand, change: OutputChange, panels: list[Panel]) -> Iterator[Candidate]:
        is_whole = panels[0][1] < 0
        fallback = self.schedules[is_whole].fallback
        for n_nodes in [self.counts[is_whole]] if fallback is None else [self.counts[is_whole], fallback]:
            yield self._candidate(integrand, change, panels, n_nodes)

    def _candidate(self, integrand: Integrand, change: OutputChange, panels: list[Panel], n_nodes: int) -> Candidate:
        S, m, _ = integrand.sizes
        nodes = nodes_on([(panel, n_nodes) for panel in panels], S, m)
        return Candidate(panels, n_nodes, nodes, change.limit(panels, self.tolerance))

    def _update(self, is_whole: bool, n_nodes: int, n_steps: int) -> None:
        if not is_whole:
            if self.n_located >= self.wait:
                self.wait, self.n_located = min(2 * self.wait, LONGEST_WAIT), 0
            self.n_located += 1
        if self.is_adaptive:
            schedule = self.schedules[is_whole]
            self.counts[is_whole] = schedule.next_count(self.counts[is_whole], n_nodes, n_steps)
