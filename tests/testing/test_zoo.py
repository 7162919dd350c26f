"""kernelmem.testing.zoo: cases are reproducible, take rows one by one, and use every parameter."""

import pytest
import torch

from kernelmem.kernels import reference
from kernelmem.testing.closeness import assert_close
from kernelmem.testing.zoo import zoo_entries

ENTRIES = {entry.name: entry for entry in zoo_entries()}

pytestmark = [  # warnings that torch shows once per process
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]


@pytest.mark.parametrize("name", ENTRIES)
def test_cases_are_replayed_to_the_bit_take_rows_one_by_one_and_use_every_parameter(name):
    """An entry whose parameter had no part in the outputs would test nothing."""
    torch.manual_seed(1)
    case = ENTRIES[name].case()
    torch.manual_seed(2)
    again = ENTRIES[name].case()
    assert torch.equal(case.x, again.x)
    assert torch.equal(case.y, again.y)
    pairs = zip(case.model.state_dict().items(), again.model.state_dict().items(), strict=True)
    assert all(key == other and torch.equal(a, b) for (key, a), (other, b) in pairs)
    with torch.no_grad():
        outputs = case.model(case.x.clone())
        single = torch.cat([case.model(row[None].clone()) for row in case.x])
    assert outputs.ndim == 2
    assert_close(outputs, single, 1e-12, float(outputs.abs().max()))
    sizes = [value.numel() for value in case.model.parameters()]
    tangents = reference.jacobian(case.model, case.x).split(sizes, dim=2)
    names = [parameter for parameter, _ in case.model.named_parameters()]
    silent = [parameter for parameter, J in zip(names, tangents, strict=True) if not bool(J.any())]
    idle = ["free_parameter", "probe.weight", "probe.bias", "never_called.weight", "never_called.bias"]
    assert silent == (idle if name == "unused parameters" else [])


def test_names_are_unique():
    assert len(ENTRIES) == len(zoo_entries())
