"""Banks of retrained subsets: one size, several seeds, new models; the score of an attribution on them."""

import copy

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.memorization.attribution import kernel_refit, subset_bank
from kernelmem.training import Recipe

TRAINING = km.EnsembleTraining(Recipe(steps=20, lr=0.05), width=4)


def data(n=24, t=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + t, 3, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(n + t, generator=generator) > 0).long()
    return (x[:n], y[:n]), (x[n:], y[n:])


def test_subsets_have_one_size_and_several_models():
    train, test = data()
    bank = subset_bank(train, TRAINING, test=test, n_subsets=10, models_per_subset=3, share=0.25)
    assert bank.masks.sum(1).tolist() == [6] * 30
    subsets, counts = bank.masks.unique(dim=0, return_counts=True)
    assert len(subsets) == 10
    assert counts.tolist() == [3] * 10
    assert len(bank.test_logits.unique(dim=0)) == 30  # other initial weights
    assert bank.identity.share == 0.25
    again = subset_bank(train, TRAINING, test=test, n_subsets=10, models_per_subset=3, share=0.25)
    torch.testing.assert_close(again.logits, bank.logits)
    other = subset_bank(train, TRAINING, test=test, n_subsets=10, models_per_subset=3, share=0.25, seed=1)
    assert not torch.equal(other.masks, bank.masks)


def ridge_model(x, y, indices):
    """A linear model at the minimum of squared loss with weight decay."""
    targets = nn.functional.one_hot(y[indices], 2).double() - 0.5
    rows = x[indices].double()
    model = nn.Linear(x.shape[1], 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(rows.T @ rows + torch.eye(3).double(), rows.T @ targets).T)
    return model


def test_refits_and_sums_of_linear_models():
    """The refit predicts every subset of a trained linear model; leave-one-out sums most of them."""
    (x, y), (x_test, y_test) = data()
    x, x_test = x.double(), x_test.double()
    bank = subset_bank(
        (x, y),
        lambda indices, seed: ridge_model(x, y, indices),
        test=(x_test, y_test),
        n_subsets=30,
        options=km.ShadowOptions(dtype=torch.float64),
    )
    K, K_test = x @ x.T, x_test @ x.T
    loo = km.memorization.attribution.leave_one_out_attribution(km.leave_one_out(K, y, 1.0), K_test, y_test)
    found = km.lds({"refit": kernel_refit(K, y, K_test, y_test, 1.0), "leave-one-out": loo}, bank)
    assert float(found.values[0]) == pytest.approx(1, abs=1e-6)
    assert float(found.values[1]) > 0.8
    assert found.ceiling == pytest.approx(1)  # without noise of seeds


def test_leave_one_out_attributions_are_changes_of_margins():
    (x, y), (x_test, y_test) = data(n=12)
    x, x_test = x.double(), x_test.double()
    K, K_test = x @ x.T, x_test @ x.T
    refit = kernel_refit(K, y, K_test, y_test, 0.3)
    masks = torch.cat([torch.ones(1, 12, dtype=torch.bool), ~torch.eye(12, dtype=torch.bool)])
    margins = refit(masks)
    found = km.memorization.attribution.leave_one_out_attribution(km.leave_one_out(K, y, 0.3), K_test, y_test)
    torch.testing.assert_close(found, (margins[0] - margins[1:]).T, rtol=1e-9, atol=1e-10)


def test_a_training_function_that_keeps_its_model_is_refused():
    """Subset models that start from a trained model have seen the rows that are left out."""
    train, test = data()
    model = nn.Linear(3, 2)
    with pytest.raises(km.InputError, match="same module"):
        subset_bank(train, lambda indices, seed: model, test=test, n_subsets=10)


def test_a_training_function_that_copies_trained_weights_is_named():
    (x, y), test = data()
    trained = ridge_model(x, y, torch.arange(len(x)))
    bank = subset_bank(
        (x.double(), y), lambda indices, seed: copy.deepcopy(trained), test=(test[0].double(), test[1]), n_subsets=20
    )
    with pytest.raises(km.InputError, match="the same for all subsets"):
        km.lds(torch.zeros(6, 24), bank)


def test_refusals():
    train, test = data()
    for arguments, message in (
        ({"test": None}, "test=None"),
        ({"share": 0.01}, "subsets of 0 rows"),
        ({"share": 1.5}, "share"),
        ({"n_subsets": 5}, "n_subsets"),
        ({"models_per_subset": 0}, "models_per_subset"),
    ):
        with pytest.raises(km.InputError, match=message):
            subset_bank(train, TRAINING, **{"test": test, **arguments})
    diverging = km.EnsembleTraining(Recipe(optimizer="sgd", steps=60, lr=1e30, loss="mse"), width=4)
    with pytest.raises(km.KernelmemError, match="finite"):
        subset_bank(train, diverging, test=test, n_subsets=10)
