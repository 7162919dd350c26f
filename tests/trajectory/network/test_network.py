"""Network: tangents at the current weights, and of rows at their own places on a segment."""

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.kernels import reference
from kernelmem.testing.zoo import zoo_entries
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.weight_blocks import Segments

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
