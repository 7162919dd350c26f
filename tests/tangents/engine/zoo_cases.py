"""The models of the zoo with the Jacobians of their cases by the definition."""

from functools import cache

import pytest

from kernelmem.kernels import reference
from kernelmem.testing.zoo import zoo_entries

KINDS = ("trace", "diagonal", "full", "pseudo")
ENTRIES = {entry.name: entry for entry in zoo_entries()}
WARNINGS = [
    # Torch says once a process that such convolutions copy their input, and such LSTMs do without oneDNN.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]
every = pytest.mark.parametrize("name", ENTRIES)


@cache
def known(name):
    """The float64 case and its Jacobians by the definition."""
    case = ENTRIES[name].case()
    return case, reference.jacobian(case.model, case.x), reference.jacobian(case.model, case.y)
