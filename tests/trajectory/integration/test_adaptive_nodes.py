"""Whole segments are tried first, and kinks are located only where the tolerance asks for it."""

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.trajectory.integration.adaptive_nodes import AdaptiveNodes
from kernelmem.trajectory.integration.quadrature import Quadrature
from kernelmem.trajectory.integration.step_integral import Integrand, mean_tangents, output_change
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.tangent_factors import to_dense
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.targets import as_target_functions


def integrand(activation, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 30), activation(), nn.Linear(30, 3)).double()
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    stop = {name: value + 0.1 * torch.randn_like(value) for name, value in start.items()}
    rows = as_rows(torch.randn(6, 5, dtype=torch.float64))
    segments = Segments.from_states([start, stop], list(start))
    return Integrand(
        Network(model, rows, parameters=list(start)), rows, segments, as_target_functions(None, None, 6, 3)
    )


def first_accepted(nodes, integrand):
    """The candidates up to the one that is accepted, and the residual of this one."""
    change, tried = output_change(integrand), []
    steps = torch.cat([step.flatten() for step in integrand.segments.steps().values()])
    for candidate in nodes.candidates(integrand, change):
        tried.append(candidate)
        residual = change.values.clone()
        for index, tangents in mean_tangents(integrand, candidate.nodes):
            residual[:, index] -= to_dense(tangents, list(integrand.network.sizes)) @ steps
        if nodes.accepts(candidate, residual):
            return tried, float(residual.abs().max())
    return tried, None


@pytest.mark.parametrize(("tolerance", "is_whole"), [(1.0, True), (1e-11, False)])
def test_kinks_are_located_where_the_tolerance_asks_for_it(tolerance, is_whole):
    nodes, case = AdaptiveNodes(Quadrature(tolerance=tolerance), tolerance), integrand(nn.ReLU)
    tried, residual = first_accepted(nodes, case)
    assert tried[-1].is_whole == is_whole
    assert residual is not None
    assert residual <= tolerance


def test_whole_segments_of_a_run_with_kinks_are_tried_more_and_more_rarely():
    nodes, case = AdaptiveNodes(Quadrature(tolerance=1e-11), 1e-11), integrand(nn.ReLU)
    tries = [t for t in range(40) if first_accepted(nodes, case)[0][0].is_whole]
    assert tries == [0, 16]  # then after 32 steps


def test_smooth_networks_have_whole_segments_only():
    nodes, case = AdaptiveNodes(Quadrature(tolerance=1e-11), 1e-11), integrand(nn.Tanh)
    for _ in range(3):
        assert all(candidate.is_whole for candidate in first_accepted(nodes, case)[0])
        nodes.refine(case)
    tried, residual = first_accepted(nodes, case)
    assert len(tried) == 1
    assert residual is not None


@pytest.mark.parametrize("excess", [2.0, 10.0, 1e3, 1e6])
def test_the_first_step_of_a_smooth_network_takes_no_more_nodes_than_it_needs(excess):
    """Errors of smooth functions fall faster than those across kinks, from which no number of nodes may be predicted."""
    _, residual = first_accepted(AdaptiveNodes(Quadrature(tolerance=1.0), 1.0), integrand(nn.Tanh))
    assert residual is not None
    tolerance = residual / excess
    nodes, case = AdaptiveNodes(Quadrature(tolerance=tolerance), tolerance), integrand(nn.Tanh)
    tried, _ = first_accepted(nodes, case)
    needed = nodes.refine(case).n_nodes
    assert max(candidate.n_nodes for candidate in tried) <= needed <= 8


def test_a_large_margin_lowers_the_number_of_nodes_at_once():
    nodes, case = AdaptiveNodes(Quadrature(tolerance=10.0), 10.0), integrand(nn.Tanh)
    counts = [first_accepted(nodes, case)[0][-1].n_nodes for _ in range(4)]
    assert counts == [3, 2, 1, 1]


def test_a_requested_number_of_nodes_is_kept():
    nodes, case = AdaptiveNodes(Quadrature(n_nodes=2, tolerance=10.0), 10.0), integrand(nn.ReLU)
    assert [first_accepted(nodes, case)[0][-1].n_nodes for _ in range(3)] == [2, 2, 2]
