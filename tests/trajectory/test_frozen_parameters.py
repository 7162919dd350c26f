"""Parameters that are frozen for some steps while the optimizer keeps moving them: momentum acts, examples do not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernelmem as km
from tests.tolerances import summing

N, STEPS = 12, 6
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2),
    "decay": lambda p: torch.optim.SGD(p, lr=0.2, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def train(net, make, x, y, *, weight=None, directory=None, set_to_none=False):
    """Train with the first layer frozen in steps 2 and 3; recorded if there is a directory."""
    optimizer = make(net.parameters())
    weight = torch.ones(N, dtype=torch.float64) if weight is None else weight
    recorder = None if directory is None else km.Recorder(net, optimizer, directory, loss="cross_entropy", keep=3)
    order = torch.Generator().manual_seed(1)
    if recorder is not None:
        recorder.__enter__()
    for t in range(STEPS):
        net[0].requires_grad_(t not in (2, 3))
        index = torch.randperm(N, generator=order)[:5]
        optimizer.zero_grad(set_to_none=set_to_none)
        (weight[index] * F.cross_entropy(net(x[index]), y[index], reduction="none")).mean().backward()
        optimizer.step() if recorder is None else recorder.step(index, x[index], y[index])
    if recorder is not None:
        recorder.__exit__(None, None, None)
    return net


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_layer_moves_without_its_examples(tmp_path, name, set_to_none):
    torch.manual_seed(0)
    x, y, rows = torch.randn(N, 3).double(), torch.arange(N) % 2, torch.randn(2, 3).double()
    first = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net = train(copy.deepcopy(first), OPTIMIZERS[name], x, y, directory=tmp_path / "run", set_to_none=set_to_none)
    run = km.Run.open(tmp_path / "run")
    frozen = {"0.weight", "0.bias"} if not set_to_none else set()
    assert [set(step.frozen) for step in run.steps] == [set(), set(), frozen, frozen, set(), set()]
    ledgers = [km.ledger(run, net, rows), km.ledger(run, net, rows, by=torch.zeros(N, dtype=torch.int64))]
    for ledger in ledgers:
        change = float((ledger.final - ledger.initial).abs().max())
        assert float(ledger.rounding.abs().max()) <= summing(STEPS * 32) * max(change, 1.0)
        assert float(ledger.residual.abs().max()) <= 1e-9 * change
    torch.testing.assert_close(ledgers[0].contributions.sum(1), ledgers[1].contributions[:, 0], rtol=1e-8, atol=1e-10)
    influence = km.influence(run, net, rows).influence
    i = int(influence.abs().amax((0, 2)).argmax())
    changed = [
        train(
            copy.deepcopy(first),
            OPTIMIZERS[name],
            x,
            y,
            weight=torch.ones(N, dtype=torch.float64).index_fill(0, torch.tensor(i), 1 + e),
            set_to_none=set_to_none,
        )(rows).detach()
        for e in (1e-5, -1e-5)
    ]
    torch.testing.assert_close(influence[:, i], (changed[0] - changed[1]) / 2e-5, rtol=1e-4, atol=1e-7)
