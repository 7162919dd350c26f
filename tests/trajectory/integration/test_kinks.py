"""Kinks: all on a segment are located, and tangents are polynomials between them."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.trajectory.integration.kinks import RowSegmentPairs, kinks
from kernelmem.trajectory.integration.step_integral import (
    Integrand,
    mean_tangents,
    output_change,
    panels_between_kinks,
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
    found = refine(integrand, panels_between_kinks(integrand), n_nodes=(depth + 2) // 2, tolerance=1e-11)
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


class UpConvolution(nn.Module):
    """A transposed convolution and a relu."""

    def __init__(self):
        super().__init__()
        self.up, self.out = nn.ConvTranspose1d(2, 3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.relu(self.up(x)).mean(2))


class NormalizedWeight(nn.Module):
    """A weight that is not an affine function of the parameter: every row has a pass of its own."""

    def __init__(self):
        super().__init__()
        self.v, self.out = nn.Parameter(torch.randn(16, 3)), nn.Linear(16, 2)

    def forward(self, x):
        return self.out(torch.relu(x.flatten(1)[:, :3] @ (self.v / self.v.norm()).T))


class SequenceFirst(nn.Module):
    """Rows along the second axis."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(torch.relu(self.inner(x.permute(2, 0, 1))).mean(0))


def pooled(pool, outputs):
    return nn.Sequential(nn.Conv1d(2, 3, 3), pool, nn.Flatten(), nn.Linear(outputs, 2))


NETWORKS_OF_SEQUENCES = {
    "max-pooling": lambda: pooled(nn.MaxPool1d(2), 9),
    "overlapping max-pooling": lambda: pooled(nn.MaxPool1d(3, stride=2, padding=1), 9),
    "relu and max-pooling": lambda: pooled(nn.Sequential(nn.ReLU(), nn.MaxPool1d(3)), 6),
    "relu6": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU6(), nn.Linear(8, 2)),
    "transposed convolution": UpConvolution,
    "derived weight": NormalizedWeight,
    "sequence first": SequenceFirst,
}


@pytest.mark.parametrize("name", NETWORKS_OF_SEQUENCES)
def test_panels_between_kinks_need_no_refinement(name):
    torch.manual_seed(0)
    x = torch.randn(5, 2, 8, dtype=torch.float64) * (8.0 if name == "relu6" else 1.0)
    network, rows, line = case(NETWORKS_OF_SEQUENCES[name]().double(), x)
    integrand = Integrand(network, rows, line, as_target_functions(None, None, rows.n, 2))
    panels = panels_between_kinks(integrand)
    assert len(panels) > rows.n  # there are kinks
    smooth = 8 if name == "derived weight" else 3  # the place enters it as a ratio
    nodes = refine(integrand, panels, n_nodes=smooth, tolerance=1e-11)
    assert sum(len(places) for places, _ in nodes.by_row.values()) == smooth * len(panels)
    steps = torch.cat([step.flatten() for step in line.steps().values()])
    change = output_change(integrand).values[0]
    for index, tangents in mean_tangents(integrand, nodes):
        assert float((to_dense(tangents, list(network.sizes))[0] @ steps - change[index]).abs().max()) < 1e-10


def test_dilated_max_pooling_is_resolved_by_halving():
    torch.manual_seed(0)
    model = pooled(nn.MaxPool1d(2, dilation=2), 6).double()
    network, rows, line = case(model, torch.randn(5, 2, 8, dtype=torch.float64))
    integrand = Integrand(network, rows, line, as_target_functions(None, None, rows.n, 2))
    nodes = refine(integrand, panels_between_kinks(integrand), n_nodes=2, tolerance=1e-10)
    steps = torch.cat([step.flatten() for step in line.steps().values()])
    change = output_change(integrand).values[0]
    for index, tangents in mean_tangents(integrand, nodes):
        assert float((to_dense(tangents, list(network.sizes))[0] @ steps - change[index]).abs().max()) < 1e-9
