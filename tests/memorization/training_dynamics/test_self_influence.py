import copy

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.memorization.training_dynamics import self_influence_score
from kernelmem.recording import replay
from tests.tolerances import summing

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(8, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, 2, (8,), generator=GENERATOR)
LR = 0.2


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    options = km.FitOptions(batch_size=4, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=LR))
    return km.fit(network(), X, Y, out=tmp_path_factory.mktemp("run") / "run", epochs=2, seed=0, options=options)


def squared_gradient(model, i):
    loss = nn.functional.cross_entropy(model(X[i : i + 1]), Y[i : i + 1])
    return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))


def test_tracin_and_last_checkpoint_are_their_definitions(run):
    states = dict(replay(run, network()))
    tracin = torch.zeros(8, dtype=torch.float64)
    model = network()
    for t, step in enumerate(run.steps):
        model.load_state_dict(states[t])
        for i in step.examples.tolist():
            tracin[i] += LR * squared_gradient(model, i) / 4
    model.load_state_dict(states[len(run)])
    last = torch.tensor([squared_gradient(model, i) for i in range(8)], dtype=torch.float64)
    for method, expected in (("tracin", tracin), ("last", last)):
        values = self_influence_score(run, network(), X, Y, method=method, progress=False).values
        assert torch.allclose(values, expected, rtol=summing(50, 50), atol=0)


def test_the_unrolled_score_is_a_difference_quotient_of_the_training(run, tmp_path):
    values = self_influence_score(run, network(), X, Y, method="unrolled", progress=False).values
    epsilon = 1e-4
    for i in (0, 5):
        losses = []
        for sign in (1, -1):
            model = copy.deepcopy(network())
            weight = torch.ones(8, dtype=torch.float64)
            weight[i] += sign * epsilon
            options = km.FitOptions(batch_size=4, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=LR))
            out = tmp_path / f"{i}{sign}"
            km.fit(model, X, Y, out=out, epochs=2, seed=0, sample_weight=weight, options=options)
            losses.append(float(nn.functional.cross_entropy(model(X[i : i + 1]), Y[i : i + 1]).detach()))
        quotient = -(losses[0] - losses[1]) / (2 * epsilon)
        assert abs(float(values[i]) - quotient) < 1e-6


def test_the_ledger_score_is_the_diagonal_of_the_ledger(run):
    score = self_influence_score(run, network(), X, Y, method="ledger", progress=False)
    ledger = km.ledger(run, network(), X, target="loss", labels=Y, progress=False)
    assert torch.equal(score.values, -ledger.contributions[range(8), range(8), 0])
    assert bool((score.values > 0).all())  # on its own loss, a row is a descent direction


def test_an_unknown_method_is_refused(run):
    with pytest.raises(km.InputError, match="tracin"):
        self_influence_score(run, network(), X, Y, method="arnoldi")
