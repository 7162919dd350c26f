"""kernelmem.trajectory.network.tangent_factors: slices of embedding tables, formed without the rest of the table."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.kernels import reference
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close
from kernelmem.trajectory.network.network import Network, each_output


class Lookups(nn.Module):
    """A table that is read once, twice, as the readout too, or through a transposed view."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.out = kind, nn.Linear(12, 2)
        self.table = nn.Parameter(torch.zeros((3, 20) if kind == "transposed" else (20, 3)))

    def forward(self, x):
        table = self.table.T if self.kind == "transposed" else self.table
        h = F.embedding(x, table, padding_idx=1 if self.kind == "padded" else None)
        if self.kind == "twice":
            h = h * F.embedding(x.flip(1), table)
        outputs = self.out(torch.tanh(h).flatten(1))
        return F.linear(torch.tanh(h).mean(1), table) if self.kind == "tied" else outputs


@pytest.mark.parametrize("kind", ["once", "padded", "twice", "tied", "transposed"])
@pytest.mark.parametrize("width", [1, 7, 12, 1000])
def test_slices_of_a_table(kind, width):
    model = with_random_weights(Lookups(kind))
    x = torch.randint(20, (12, 4), generator=torch.Generator().manual_seed(0)).clamp_max(9)
    x[0] = 1
    J = reference.jacobian(model, x, parameters=["table"])
    network = Network(model, as_rows(x), parameters=["table"])
    S, q, r = 2, 3, 2
    tangents, _ = network.tangent_factors(as_rows(x), each_output, row_axes=(S, q, r))
    expected = J.unflatten(0, (S, q, r)).sum(1)
    for rows in (slice(0, r), slice(1, 2)):
        parts = [tangents.form("table", part, rows) for part in tangents.parts("table", width)]
        assert_close(torch.cat(parts, -1), expected[:, rows], 1e-12, float(J.abs().max()))
    if kind in ("once", "padded"):
        assert max(part.stop - part.start for part in tangents.parts("table", width)) <= max(3, width)
