import numpy as np
import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.memorization.training_dynamics import prediction_depth

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, 3, (40,), generator=GENERATOR)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def definition(model, x, y, k):
    """One loop over rows and layers, in NumPy."""
    layers = [x]
    with torch.no_grad():
        for module in model.eval():
            layers.append(module(layers[-1]))
    del layers[3]  # dropout returns its input
    predicted = layers[-1].argmax(1).numpy()
    depths = []
    for i in range(len(x)):
        agrees = []
        for layer in layers:
            distances = np.linalg.norm(layer.numpy() - layer[i].numpy(), axis=1)
            distances[i] = np.inf
            votes = np.bincount(y.numpy()[distances <= np.sort(distances)[k - 1]], minlength=3)
            agrees.append(votes[predicted[i]] == votes.max())
        depths.append(next((depth for depth in range(len(layers)) if all(agrees[depth:])), len(layers)))
    return depths


@pytest.mark.parametrize("k", [1, 7, 39])
def test_depth_is_its_definition_and_the_model_stays_as_it_was(k):
    model = network()
    score = prediction_depth(model, X, Y, k=k)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert score.values.tolist() == definition(network(), X, Y, k)
    assert "first of 4 layers" in score.meaning


def test_order_of_rows_names_of_classes_and_chosen_layers():
    score = prediction_depth(network(), X, Y, k=5)
    order = torch.randperm(40, generator=GENERATOR)
    assert torch.equal(prediction_depth(network(), X[order], Y[order], k=5).values, score.values[order])
    renamed = network()
    with torch.no_grad():
        renamed[3].weight.copy_(renamed[3].weight[[1, 2, 0]])
        renamed[3].bias.copy_(renamed[3].bias[[1, 2, 0]])
    assert torch.equal(prediction_depth(renamed, X, (Y - 1) % 3, k=5).values, score.values)
    last = prediction_depth(network(), X, Y, k=5, layers=["3"])
    assert set(last.values.tolist()) <= {0.0, 1.0}
    assert torch.equal(last.values == 1, score.values == 4)


def test_rows_whose_label_the_network_memorized_are_deep():
    """Two clusters and a row with the label of the other one, which only the last layer separates."""
    x = torch.tensor([[-1.0 - i / 100, 0.0] for i in range(20)] + [[1.0 + i / 100, 0.0] for i in range(20)])
    x[3, 1] = 1.0
    y = (x[:, 0] > 0).long()
    y[3] = 1
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
        model[1].weight.copy_(torch.tensor([[-1.0, -50.0], [1.0, 50.0]]))
        model[1].bias.zero_()
    values = prediction_depth(model, x, y, k=5).values
    assert values[3] == values.max()
    assert values[3] > values[[i for i in range(40) if i != 3]].mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 40}, r"k in 1..39"),
        ({"k": 0}, "whole number"),
        ({"layers": ["9"]}, "named_modules"),
        ({"layers": []}, "named_modules"),
        ({"y": Y[:3]}, "40 labels"),
        ({"model": 3}, "torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(km.InputError, match=message):
        prediction_depth(**({"model": network(), "x": X, "y": Y, "k": 5} | arguments))


def test_a_layer_that_does_not_run_is_refused():
    model = network()
    model.unused = nn.Linear(2, 2).double()
    with pytest.raises(km.InputError, match="do not run"):
        prediction_depth(model, X, Y, k=5, layers=["unused"], forward=lambda m, x: m[3](m[0](x)))
