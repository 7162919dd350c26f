"""The adjoint kept as factors equals the dense recursion, and its sizes are bounded by those of a dense one."""

import pytest
import torch

from kernelmem.trajectory.ledger.factored_adjoint import FactoredAdjoint
from kernelmem.trajectory.network.tangent_factors import OuterFactors
from kernelmem.trajectory.optimizers import AdjointState, ParameterStep, StochasticGradientDescent

M, K, OUT, IN, B, NODES = 3, 2, 4, 5, 6, 2


@pytest.mark.parametrize("same_inputs", [False, True])
@pytest.mark.parametrize("options", [{"dampening": 0.3, "maximize": True}, {"nesterov": True}, {}])
def test_factors_follow_the_dense_recursion(same_inputs, options):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05, **options}
    parameter_filter = StochasticGradientDescent()
    adjoint, state = FactoredAdjoint(parameter_filter, M, K, OUT, IN), AdjointState()
    inputs = draw(1, 1, M, IN).expand(1, NODES, M, IN)
    for t in range(5, 0, -1):
        a = inputs if same_inputs else draw(1, NODES, M, IN)
        J, gradients = (
            OuterFactors((0,), a, draw(1, NODES, M, K, OUT)),
            OuterFactors((0,), draw(1, 1, B, IN), draw(1, 1, B, 1, OUT)),
        )
        step = ParameterStep(draw(OUT * IN), options, t, is_first_momentum_step=t == 1, weights=draw(OUT * IN))
        is_zero = t == 2
        dense_J = torch.einsum("qmi,qmko->mkoi", J.activations[0], J.gradients[0]).flatten(2) * (not is_zero)
        dense_g = torch.einsum("bi,bo->boi", gradients.activations[0, 0], gradients.gradients[0, 0, :, 0]).flatten(1)
        A, expected_decay = parameter_filter.backward(dense_J, step, state)
        product = torch.zeros(M, K, B, dtype=torch.float64)
        decay = adjoint.add_step(None if is_zero else J, gradients, step, product)
        torch.testing.assert_close(product, A @ dense_g.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(decay, expected_decay, rtol=1e-12, atol=1e-12)
        assert adjoint.factor == state.factor
    assert len(adjoint.terms) == (1 if same_inputs else 4)
    assert adjoint.exceeds_dense(B, has_decay=True) is not same_inputs
    q = torch.cat([tile for _, tile in adjoint.form(2 * IN)], 2)
    torch.testing.assert_close(q, state.q, rtol=1e-12, atol=1e-12)
