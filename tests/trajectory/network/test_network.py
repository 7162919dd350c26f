"""Network: tangents at the current weights, and of rows at their own places on a segment."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from kernelmem.core.batches import as_rows
from kernelmem.kernels import reference
from kernelmem.testing.zoo import zoo_entries
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.weight_blocks import Blocks, Segments

# What these tests ask is that every feature enters; functions of rows that need integers or dicts come as they are.
NAMES = [entry.name for entry in zoo_entries()]
ENTRIES = {entry.name: entry for entry in zoo_entries()}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]


def network(case):
    names = [name for name, parameter in case.model.named_parameters() if parameter.requires_grad]
    return Network(case.model, as_rows(case.x), parameters=names), names


def every_output(outputs, _):
    n, C = outputs.shape
    return torch.eye(C, dtype=outputs.dtype).expand(n, C, C)


@pytest.mark.parametrize("name", NAMES)
def test_tangents_equal_the_definition(name):
    case = ENTRIES[name].case()
    own, names = network(case)
    rows = as_rows(case.x).to(dtype=torch.float64, device=torch.device("cpu"))
    found, outputs = own.tangents(rows, every_output)
    expected = reference.jacobian(case.model, case.x, parameters=names)
    assert float((found - expected).abs().max()) <= 1e-10 * max(1e-30, float(expected.abs().max()))
    with torch.no_grad():
        assert float((outputs - case.model(case.x)).abs().max()) <= 1e-12 * max(1.0, float(outputs.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_rows_at_different_places_equal_separate_passes(name):
    case = ENTRIES[name].case()
    own, names = network(case)
    rows = as_rows(case.x).to(dtype=torch.float64, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    start = {n: p.detach().clone() for n, p in case.model.named_parameters() if n in names}
    stop = {n: p + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in start.items()}
    places = torch.linspace(0, 1, rows.n, dtype=torch.float64)
    lines = Segments.from_states([start, stop], names).rows_at_places(torch.zeros(rows.n, dtype=torch.int64), places)
    found, outputs = own.tangents(rows, every_output, lines)
    for i, place in enumerate(places):
        own.set_state(lines.state(0, float(place)))
        one = as_rows(rows.slice(i, i + 1))
        expected, value = own.tangents(one, every_output)
        scale = max(1e-30, float(expected.abs().max()))
        assert float((found[i] - expected[0]).abs().max()) <= 1e-10 * scale
        assert float((outputs[i] - value[0]).abs().max()) <= 1e-11 * max(1.0, float(value.abs().max()))


def test_the_users_model_is_never_changed():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = Network(model, as_rows(torch.randn(3, 3)), parameters=list(before))
    own.set_state({name: value + 1 for name, value in before.items()})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].weight.dtype == torch.float32


class Views(nn.Module):
    """Parameters that enter operations as views."""

    def __init__(self):
        super().__init__()
        self.up, self.weight, self.out = nn.ConvTranspose1d(5, 6, 2), nn.Parameter(torch.randn(6, 3)), nn.Linear(3, 2)
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        h = torch.tanh(self.up(x) + self.bias.view(-1, 1)).mean(2)
        return self.out(nn.functional.linear(h, self.weight.T))


def test_blocks_replace_views_of_parameters_too():
    """As many rows as channels: a view of a parameter must not be taken for a batch."""
    torch.manual_seed(0)
    model, x = Views().double(), torch.randn(3, 5, 4, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    network = Network(model, as_rows(x), parameters=names)
    weights = {name: torch.stack([p.detach(), 1.1 * p.detach() + 0.1]) for name, p in model.named_parameters()}
    outputs = network.outputs(as_rows(torch.cat([x, x])), Blocks((3, 3), weights))
    for block in range(2):
        expected = functional_call(model, {name: w[block] for name, w in weights.items()}, (x,))
        torch.testing.assert_close(outputs[3 * block : 3 * block + 3], expected, rtol=1e-12, atol=1e-14)
