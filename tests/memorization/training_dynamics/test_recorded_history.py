import copy

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.memorization.training_dynamics import (
    TrainingHistory,
    gradient_norm,
    training_history,
    variance_of_gradients,
)
from kernelmem.recording import replay
from tests.tolerances import summing

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, 3, (12,), generator=GENERATOR)


def network(outputs=3, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, outputs)).to(dtype)


def recorded(directory, model, x=X, y=Y, **options):
    return km.fit(
        copy.deepcopy(model), x, y, out=directory, epochs=3, seed=0, options=km.FitOptions(batch_size=4, **options)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.3)  # noqa: E731
    return recorded(tmp_path_factory.mktemp("run") / "run", network(), keep=4, optimizer=optimizer)


@pytest.fixture(scope="module")
def states(run):
    return dict(replay(run, network()))


def at(states, t, outputs=3):
    model = network(outputs)
    model.load_state_dict(states[t])
    return model.eval()


def test_outputs_gradients_and_rates_are_those_of_the_replayed_weights(run, states):
    model = network()
    history = training_history(run, model, X, Y, steps=[0, 4, 9], gradients=["weights", "inputs"])
    input_gradients = []
    for t, step in enumerate([0, 4, 9]):
        reference = at(states, step)
        x = X.clone().requires_grad_()
        outputs = reference(x)
        assert torch.equal(history.logits[0, t], outputs.detach())
        input_gradients.append(torch.autograd.grad(outputs[torch.arange(12), Y].sum(), x)[0])
        for i in range(12):
            loss = nn.functional.cross_entropy(reference(X[i : i + 1]), Y[i : i + 1])
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(reference.parameters()))])
            assert torch.isclose(history.gradient_norms[0, t, i], gradient.norm(), rtol=summing(31, 4, 3), atol=0)
    variance = torch.stack(input_gradients).var(0, correction=0).mean(1)
    size = float(torch.stack(input_gradients).square().max())
    assert torch.allclose(history.input_gradient_variance[0], variance, rtol=0, atol=summing(3, 4, 3) * size)
    assert history.learning_rates.tolist() == [0.3] * 3
    assert model.training
    assert torch.equal(gradient_norm(history, step=4).values, history.gradient_norms[0, 1])


def test_checkpoints_by_default_and_every(run):
    assert training_history(run, network(), X, Y).steps.tolist() == list(range(10))
    assert training_history(run, network(), X, Y, every=4).steps.tolist() == [0, 4, 8, 9]


def test_other_rows_in_other_passes_have_the_same_outputs(run, monkeypatch):
    expected = training_history(run, network(), X, Y, steps=[9], gradients=["weights", "inputs"])
    monkeypatch.setattr("kernelmem.memorization.training_dynamics.recorded_history.ROWS_PER_PASS", 5)
    history = training_history(run, network(), X, Y, steps=[9], gradients=["weights", "inputs"])
    assert torch.allclose(history.logits, expected.logits, rtol=0, atol=summing(4, 3) * 10)
    assert torch.allclose(history.gradient_norms, expected.gradient_norms, rtol=summing(31, 4), atol=0)


def test_one_logit_float32_and_real_targets(tmp_path):
    binary = (Y > 0).long()
    loss = "cross_entropy"
    run = recorded(tmp_path / "binary", network(1, torch.float32), X, binary, loss=loss)
    history = training_history(run, network(1, torch.float32), X, binary, gradients=["weights"])
    assert history.logits.shape[-1] == 2
    assert bool((history.logits[..., 0] == 0).all())
    assert history.gradient_norms.dtype == torch.float64
    targets = torch.randn(12, 2, generator=GENERATOR, dtype=torch.float64)
    run = recorded(tmp_path / "real", network(2), X, targets, loss="mse")
    history = training_history(run, network(2), X, targets, steps=[9], gradients=["weights"])
    assert torch.equal(history.labels, targets)
    same = training_history(run, network(2), X, targets.numpy(), steps=[9])
    assert torch.equal(same.labels, targets)
    one = recorded(tmp_path / "one", network(1), X, Y.double()[:, None], loss="mse")  # whole numbers, but real targets
    assert training_history(one, network(1), X, Y.double()[:, None], steps=[9]).labels.shape == (12, 1)
    with pytest.raises(km.InputError, match="class labels and floating-point inputs"):
        training_history(run, network(2), X, targets, gradients=["inputs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [10]}, "in 0..9"),
        ({"steps": [4, 2]}, "that increase"),
        ({"steps": []}, "that increase"),
        ({"every": 2, "steps": [1]}, "one of them"),
        ({"every": 0}, "whole number"),
        ({"gradients": ["hidden"]}, "weights"),
        ({"gradients": "weights"}, r'pass gradients=\["weights"\]'),
        ({"y": torch.rand(12)}, "in the shape of the outputs"),
        ({"y": Y[:5]}, "12 labels"),
        ({"model": nn.Linear(3, 3)}, "expected"),
        ({"run": 3}, "kernelmem.Run"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(run, arguments, message):
    with pytest.raises(km.KernelmemError, match=message):
        training_history(**({"run": run, "model": network(), "x": X, "y": Y} | arguments))


def test_variance_of_gradients_is_standardized_within_each_class():
    variance = torch.tensor([[1.0, 3.0, 5.0, 5.0, 7.0]], dtype=torch.float64)
    history = TrainingHistory(
        torch.zeros(1, 2, 5, 3),
        torch.tensor([0, 0, 1, 1, 2]),
        torch.tensor([0, 1]),
        input_gradient_variance=variance,
    )
    assert variance_of_gradients(history).values.tolist() == [-1, 1, 0, 0, 0]
    with pytest.raises(km.InputError, match="without input gradients"):
        variance_of_gradients(TrainingHistory.from_arrays(torch.zeros(2, 5, 3), [0] * 5))
    with pytest.raises(km.InputError, match="without gradient norms"):
        gradient_norm(TrainingHistory.from_arrays(torch.zeros(2, 5, 3), [0] * 5))
