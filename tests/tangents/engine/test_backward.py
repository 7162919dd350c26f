"""kernelmem.tangents.engine.backward: output gradients against the dense Jacobian, one direction or all."""

import pytest
import torch
from torch import nn

from kernelmem.kernels import reference
from kernelmem.tangents.groups.gradients import one_direction, store_direction
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model():
    return with_random_weights(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3), nn.Softmax(dim=1))
    )


def test_gradients_give_the_dense_jacobian(model, engine_of, forward_pass_of):
    x = rows(4, 4)
    engine, J = engine_of(model, x, "diagonal"), reference.jacobian(model, x)
    forward_pass = forward_pass_of(engine, x, engine.survey.groups)
    gradients = forward_pass.gradients(range(3), all_directions=True)
    linear, norm, readout = engine.survey.groups
    for group, start in ((linear, 20), (readout, 50)):  # the tangent of a bias is the output gradient
        size = group.shape.fan_out
        assert_close(gradients[group.keys[0]].reshape(4, 3, size), J[..., start : start + size], 1e-13, 1.0)
    assert_close(gradients[norm.keys[0]]["weight"], J[..., 25:30], 1e-13, 1.0)
    assert_close(gradients[norm.keys[0]]["bias"], J[..., 30:35], 1e-13, 1.0)


def test_one_direction_after_another_is_all_directions(model, engine_of, forward_pass_of):
    x = rows(4, 4)
    engine = engine_of(model, x, "diagonal")
    forward_pass = forward_pass_of(engine, x, engine.survey.groups)
    together = forward_pass.gradients(range(3), all_directions=True)
    stored = {}
    for c in range(3):
        ((_, by_use),) = forward_pass.sweep(range(c, c + 1))
        for use, gradient in by_use:
            store_direction(stored, use, gradient, c, 3)
    for key, gradient in together.items():
        parts = gradient.items() if isinstance(gradient, dict) else [(None, gradient)]
        for slot, tensor in parts:
            assert torch.equal(tensor, stored[key] if slot is None else stored[key][slot])


def test_a_use_off_the_graph_of_the_outputs_has_zero_gradients(model, engine_of, forward_pass_of):
    x = rows(4, 4)
    engine = engine_of(model, x, "diagonal")
    forward_pass = forward_pass_of(engine, x, engine.survey.groups)
    stored = forward_pass.gradients(range(3), all_directions=True)
    for use in forward_pass.swept:
        assert one_direction(use, None, 4) is None
        store_direction(stored, use, None, 1, 3)
        tensors = stored[use.key].values() if isinstance(stored[use.key], dict) else [stored[use.key]]
        for tensor in tensors:
            axis = use.rule.direction_axis(use) % tensor.ndim if torch.is_tensor(stored[use.key]) else 1
            assert not bool(tensor.select(axis, 1).any())
            assert bool(tensor.select(axis, 0).any())
