"""Small trained networks and their audits."""

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.memorization.membership import BlindBaseline
from kernelmem.statistics import Interval
from kernelmem.training.classifier import train_classifier
from kernelmem.training.datasets import digits
from kernelmem.training.mlp import standardized_mlp


@pytest.fixture(scope="session")
def trained():
    """150 digits with 15 % of the labels flipped, and a network that fits them all."""
    data = digits(n_train=150, seed=5)
    noisy = km.corrupt_labels(data.y_train, 0.15, seed=11)
    model = standardized_mlp(data.x_train, 10, widths=(32,), seed=0)
    train_classifier(model, data.x_train, noisy.y, epochs=150, batch_size=32, lr=3e-3, seed=0)
    return model, (data.x_train, noisy.y), (data.x_test[:150], data.y_test[:150]), noisy.flipped


@pytest.fixture(scope="session")
def result(trained):
    model, train, test, flipped = trained
    options = km.AuditOptions(image_shape=(8, 8), date="2026-01-02", show_rows=True)
    return km.audit(model, train, test, flipped=flipped, options=options)


@pytest.fixture
def without_blind_baseline(monkeypatch):
    """Replace the slowest gate by one that passes."""
    passed = BlindBaseline({"nearest": Interval(0.5, 0.45, 0.55, 0.995)}, 0.995, 20, 20, flagged=False)
    monkeypatch.setattr("kernelmem.auditing.conclusions.gates.blind_baseline", lambda *_, **__: passed)


@pytest.fixture(scope="session")
def binary():
    """A binary classifier with one logit, its training and test data."""
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(160, 5, generator=rng), torch.randn(160, generator=rng)
    y = (x[:, 0] + 0.5 * noise > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    train_classifier(model, x[:90], y[:90], epochs=60, lr=1e-2, seed=0)
    return model, (x[:90], y[:90]), (x[90:], y[90:])
