"""Kinks: all on a segment are located, and tangents are polynomials between them."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.trajectory.integration.kinks import RowSegmentPairs, kinks
from kernelmem.trajectory.integration.step_integral import (
    Integrand,
    initial_panels,
    mean_tangents,
    output_change,
    refine,
)
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.tangent_factors import to_dense
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.targets import as_target_functions


def case(model, x, size=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, _ in model.named_parameters()]
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    stop = {
        name: v + size * torch.randn(v.shape, generator=generator, dtype=v.dtype) * v.std() for name, v in start.items()
    }
    return Network(model, as_rows(x), parameters=names), as_rows(x), Segments.from_states([start, stop], names)


def relu_network(depth=2, width=8, activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    sizes = [5] + [width] * depth
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 3)).double()


def signs(network, rows, line, places):
    """Pieces of the first row at many places, by brute force."""
    zeros = torch.zeros(len(places), dtype=torch.int64)
    return RowSegmentPairs(network, rows, line, zeros, zeros).distances(places) > 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh])
@pytest.mark.parametrize("seed", range(3))
def test_all_kinks_of_a_fine_grid_are_found(activation, seed):
    model = relu_network(activation=activation, seed=seed)
    torch.manual_seed(seed)
    network, rows, line = case(model, torch.randn(4, 5, dtype=torch.float64), seed=seed)
    (found,) = kinks(network, rows, line)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for i in range(rows.n):
        one = as_rows(rows.slice(i, i + 1))
        pieces = signs(network, one, line, grid)
        crossings = (pieces[1:] != pieces[:-1]).any(1).nonzero()[:, 0]
        # Cells of the grid in which a piece changes, and those of the kinks; pairs within a cell are not seen by the grid.
        cells = {int(place * 20_000) for place in found[i]}
        assert set(crossings.tolist()) <= cells
        assert found[i] == sorted(found[i])


def test_smooth_networks_have_no_kinks():
    network, rows, line = case(relu_network(activation=nn.Tanh), torch.randn(4, 5, dtype=torch.float64))
    assert kinks(network, rows, line) == [[[], [], [], []]]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_few_nodes_between_kinks_are_exact(depth):
    """Depth weight layers + readout: the tangent of a step has degree depth in the place."""
    torch.manual_seed(0)
    network, rows, line = case(relu_network(depth=depth), torch.randn(6, 5, dtype=torch.float64))
    phi = as_target_functions(None, None, rows.n, 3)
    integrand = Integrand(network, rows, line, phi)
    found = refine(integrand, initial_panels(integrand), n_nodes=(depth + 2) // 2, tolerance=1e-11)
    panels = sum(len(own) + 1 for own in kinks(network, rows, line)[0]) / rows.n
    assert found.n_nodes == (depth + 2) // 2  # no panel had to be refined
    assert float(found.evaluations) <= 1.1 * panels * ((depth + 2) // 2)
    start, stop = ({name: w[0] for name, w in end.items()} for end in (line.start, line.stop))
    step = network.parameter_vector(stop) - network.parameter_vector(start)
    network.set_state(stop)
    change = network.outputs(rows)
    network.set_state(start)
    change -= network.outputs(rows)
    for index, tangents in mean_tangents(integrand, found):
        explained_change = to_dense(tangents, list(network.sizes))[0] @ step
        assert float((explained_change - change[index]).abs().max()) < 1e-10


def test_max_pooling_is_resolved_by_halving():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 2)).double()
    network, rows, line = case(model, torch.randn(5, 1, 8, dtype=torch.float64))
    phi = as_target_functions(None, None, rows.n, 2)
    integrand = Integrand(network, rows, line, phi)
    found = refine(integrand, initial_panels(integrand), n_nodes=2, tolerance=1e-10)
    steps = torch.cat([step.flatten() for step in line.steps().values()])
    must = output_change(integrand).values[0]
    for index, tangents in mean_tangents(integrand, found):
        assert float((to_dense(tangents, list(network.sizes))[0] @ steps - must[index]).abs().max()) < 1e-9
