"""Shared steps of the tests of tangents: an engine on given rows, and one group's kernel block."""

import pytest
import torch

from kernelmem.core.batches import as_rows
from kernelmem.kernels import reference
from kernelmem.tangents.engine.backward import ForwardPass
from kernelmem.tangents.engine.engine import Engine
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.rules import RULES
from kernelmem.tangents.survey import survey
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact


@pytest.fixture
def engine_of():
    """Return a function (model, x, outputs) -> engine."""

    def build(model, x, outputs="trace"):
        rows = as_rows(x)
        prepared = prepare(model, rows)
        return Engine.build(prepared, rows, OutputDirections(outputs, prepared.n_outputs))

    return build


@pytest.fixture
def forward_pass_of():
    """Return a function (engine, x, groups) -> forward pass over all rows."""

    def run(engine, x, groups):
        captured = engine.capture(as_rows(x).slice(0, len(x)), len(x))
        return ForwardPass(captured, groups, engine.directions, engine.survey.readout, engine.directions.k)

    return run


@pytest.fixture
def blocks_of(engine_of, forward_pass_of):
    """Return a function (model, x, outputs) -> [(group, its kernel block in public axis order)]."""

    def compute(model, x, outputs):
        engine, n = engine_of(model, x, outputs), len(x)
        groups, directions = engine.plan(n, n, symmetric=False, memory=2**30).groups, engine.directions
        forward_pass = forward_pass_of(engine, x, groups)
        gradients = forward_pass.gradients(range(directions.k), all_directions=True)
        blocks = []
        for group, uses in zip(groups, forward_pass.group_uses, strict=True):
            k = 1 if group.all_directions else directions.k
            of_group = [gradients.get(use.key) for use in uses]
            like = forward_pass.outputs.detach()
            buffers = group.write(uses, of_group, n, k, directions.combine, like=like)
            for symmetric in (False, True):
                out = torch.zeros(directions.result_shape(n, n), dtype=torch.float64)
                group.add(out, buffers, buffers, directions.combine, symmetric=symmetric)
                blocks.append((group, directions.public(out), symmetric))
        return blocks

    return compute


@pytest.fixture
def assert_factors(engine_of, forward_pass_of):
    """Return a check (model, x, name of a weight): its factors, and those of its bias, give the dense Jacobian."""

    def check(model, x, name):
        engine, J = engine_of(model, x, "diagonal"), reference.jacobian(model, x)
        forward_pass, k = forward_pass_of(engine, x, engine.survey.groups), engine.directions.k
        gradients = forward_pass.gradients(range(k), all_directions=False)
        (group,) = [group for group in engine.survey.groups if group.names[0] == name]
        (use,) = forward_pass.group_uses[engine.survey.groups.index(group)]
        a, g = group.factors([use], [gradients[use.key]], len(x), k)
        tangents = torch.einsum("ngski,ngsj->nkgij", g, a)  # (n, k, groups, fan_out, fan_in + 1)
        size, scale = model.get_parameter(name).numel(), float(J.abs().max())
        weight = use.rule.to_weight_shape(use, tangents[..., :-1])
        assert_close(weight.reshape(*J.shape[:2], -1), J[..., :size], 1e-13, scale)
        bias = tangents[..., -1].reshape(*J.shape[:2], -1)
        assert_close(bias, J[..., size : size + bias.shape[-1]], 1e-13, scale)

    return check


@pytest.fixture(scope="session")
def assert_covered():
    """Return a check (model, x, dtype, dense): every kernel equals the slow reference, and only ``dense`` has no rule."""

    def check(model, x, dtype=torch.float64, dense=()):
        model = with_random_weights(model, dtype=dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        assert survey(prepare(model, as_rows(x)), as_rows(x), RULES).dense == dense
        assert_exact(model, x, verify=False)

    return check


@pytest.fixture
def by_autograd():
    """Return a function (model, x) -> trace kernel from the caller's own module: no copy, nothing of this package."""

    def kernel(model, x):
        tangents = [
            torch.cat([g.flatten() for g in torch.autograd.grad(f, list(model.parameters()), retain_graph=True)])
            for row in x
            for f in model(row[None])[0]
        ]
        J = torch.stack(tangents).reshape(len(x), -1)
        return J @ J.T

    return kernel
