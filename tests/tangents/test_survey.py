"""kernelmem.tangents.survey: what is found on the graph, and the traps where it must not be."""

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk, ntk_plan
from kernelmem.tangents.engine.engine import Engine
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.survey import certificate


class Wrap(nn.Module):
    """Two hidden layers and a readout, put together by a function."""

    def __init__(self, run, hidden=6, outputs=3):
        super().__init__()
        self.run = run
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.readout, self.side = nn.Linear(hidden, outputs), nn.Linear(6, outputs)

    def forward(self, x):
        return self.run(self, x)


def plain(m, x):
    return m.readout(torch.relu(m.second(torch.tanh(m.first(x)))))


def residual_below(m, x):
    h = torch.tanh(m.first(x))
    return m.readout(torch.relu(m.second(h) + h))


def around_the_readout(m, x):
    h = torch.tanh(m.first(x))
    return m.readout(torch.relu(m.second(h))) + m.side(h)


def hidden_used_beside(m, x):
    h = torch.relu(m.second(torch.tanh(m.first(x))))
    return m.readout(h) * (1 + h.sum(1, keepdim=True))


def mixed_channels(m, x):
    return m.readout(torch.relu(m.second(torch.tanh(m.first(x)))).flip(1))


def normalized(m, x):
    return m.readout(m.norm(m.second(torch.tanh(m.first(x)))))


def gated_by_another_channel(m, x):
    z = m.second(torch.tanh(m.first(x)))
    return m.readout(z * torch.sigmoid(z.roll(1, 1)))


def scaled_outputs(m, x):
    return 2 * m.readout(torch.relu(m.second(torch.tanh(m.first(x)))))


def found_by(run, x):
    torch.manual_seed(0)
    model = Wrap(run).double()
    rows = as_rows(x)
    prepared = prepare(model, rows)
    engine = Engine.build(prepared, rows, OutputDirections("trace", 3))
    readout = engine.survey.readout
    names = {key: set(group.names) for group in engine.survey.groups for key in group.keys}
    factored = set() if readout is None else set().union(*(names[key] for key in readout.factored))
    return model, readout, factored


@pytest.fixture
def x():
    return torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("run", "has_readout", "factors"),
    [
        (plain, True, True),
        (residual_below, True, True),
        (around_the_readout, False, False),
        (hidden_used_beside, False, False),
        (mixed_channels, True, False),
        (normalized, True, False),
        (gated_by_another_channel, True, False),
        (scaled_outputs, False, False),
    ],
)
def test_only_what_holds_is_used_and_all_kernels_are_right(run, has_readout, factors, x):
    model, readout, factored = found_by(run, x)
    assert (readout is not None) == has_readout
    assert (("second.weight" in factored) if readout else False) == factors
    assert "first.weight" not in factored
    for outputs in ("trace", "diagonal", "full", "pseudo"):
        expected = reference.ntk(model, x, outputs=outputs)
        gap = float((ntk(model, x, outputs=outputs) - expected).abs().max() / expected.abs().max())
        assert gap < 1e-12


def test_compressed_weight_has_the_same_gram():
    torch.manual_seed(0)
    from kernelmem.tangents.survey import Readout

    W = torch.randn(30, 4, dtype=torch.float64)
    W[:, 3] = W[:, 0] + W[:, 1]  # rank 3
    R = Readout(1, W, frozenset()).compressed
    assert R.shape == (4, 4)
    assert float((R.T @ R - W.T @ W).abs().max()) < 1e-12


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(4), nn.AdaptiveMaxPool2d(1)])
def test_the_last_convolution_factors_under_every_pooling(pool):
    """Torch pools channels-last pictures by other operations than contiguous ones."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        pool,
        nn.Flatten(),
        nn.Linear(6, 4),
    ).double()
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    plan = ntk_plan(model, x)
    assert [group.factored for group in plan.groups] == [False, True, False]
    found, expected = ntk(model, x, verify=False), reference.ntk(model, x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12


@pytest.mark.parametrize("scale", [1e-25, 1e-13, 1.0, 1e14, 1e18])
def test_gradients_are_measured_also_where_their_squares_leave_float32(scale):
    assert float(certificate._norm(torch.full((10_000,), scale))) / (100 * scale) == pytest.approx(1.0, rel=1e-5)
