"""kernelmem.tangents.rules.linear: closed forms, and the factors against the dense Jacobian."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.rules import RULES
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close
from kernelmem.testing.modules import Apply


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("S", [1, 2, 3, 4])
def test_linear_on_sequences_by_hand(S):
    """f = mean_s (W x_s + b): the kernel of the mean input, whichever axis equals which."""
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), Apply(lambda h: h.mean(1)))), rows(4, S, 4)
    inner = x.mean(1) @ x.mean(1).T + 1
    assert_close(ntk(model, x), 4 * inner, 1e-13, 4 * float(inner.max()))


def test_factors_give_the_dense_jacobian(assert_factors):
    model, x = (
        with_random_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2))),
        rows(4, 3, 4),
    )
    assert_factors(model, x, "0.weight")


def test_a_matrix_on_the_right_is_a_transposed_weight():
    class Right(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x):
            return x @ self.matrix

    x = rows(5, 4)
    gram = x @ x.T
    assert_close(ntk(with_random_weights(Right()), x), 3 * gram, 1e-14, 3 * float(gram.max()))


def test_blocks_of_rows_with_weights_of_their_own():
    """run_blocks: S weights on S equal blocks of the first axis."""
    rule, x = RULES[0], rows(6, 2, 4)
    weights, biases = rows(3, 5, 4, seed=2), rows(3, 5, seed=3)
    call = rule.read(F.linear, (x, weights[0].requires_grad_(), biases[0]), {}, lambda tensor: tensor.requires_grad)
    expected = torch.cat([F.linear(x[2 * s : 2 * s + 2], weights[s], biases[s]) for s in range(3)])
    torch.testing.assert_close(call.run_blocks({"weight": weights, "bias": biases}), expected)
