"""Small runs for the tests of faults."""

import pytest
import torch
import torch.nn.functional as F

from kernelmem.recording import Recorder

X, Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2


def train(directory, steps=2, resume=False, acknowledge=lambda step: None):
    """Record ``steps`` training steps of a linear network, or resume them; return the model."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, directory, loss="cross_entropy", resume=resume) as recorder:
        for t in range(recorder.restore() if resume else 0, steps):
            rows = torch.tensor([t % 6, (t + 1) % 6])
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), Y[rows]).backward()
            recorder.step(rows, X[rows], Y[rows])
            acknowledge(t)
    return model


@pytest.fixture(scope="package")
def small_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "a"
    train(directory)
    return directory
