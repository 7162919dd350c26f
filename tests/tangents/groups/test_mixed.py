"""kernelmem.tangents.groups.mixed: tangents are summed over all uses and pulled back to the parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.kernels import reference
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, scale_of


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tied(nn.Module):
    """A weight that is used directly, transposed and scaled."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        h = torch.tanh(F.linear(x, self.weight))
        return F.linear(h, self.weight.T * self.gain) * self.gain


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full", "pseudo"])
def test_tangents_are_summed_over_all_uses(outputs, blocks_of):
    model, x = with_random_weights(Tied()), rows(5, 4)
    J = reference.jacobian(model, x)
    expected = reference.kernel_of(J, J, outputs)
    blocks = blocks_of(model, x, outputs)
    assert {type(group) for group, _, _ in blocks} == {MixedGroup}
    assert {group.names for group, _, _ in blocks} == {("weight", "gain")}
    assert_close(blocks[0][1], expected, 1e-12, scale_of(J))


def test_a_use_without_gradient_counts_as_zero(engine_of, forward_pass_of):
    model, x = with_random_weights(Tied()), rows(5, 4)
    engine = engine_of(model, x, "diagonal")
    (group,) = engine.survey.groups
    forward_pass = forward_pass_of(engine, x, (group,))
    (uses,) = forward_pass.group_uses
    buffers = group.write(uses, [None] * len(uses), 5, 4, "diagonal", like=x)
    assert buffers["tangents"].shape == (5, 4, 20)
    assert not bool(buffers["tangents"].any())
    assert group.numbers_per_row(4) == 4 * 20
