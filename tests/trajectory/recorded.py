"""Small recorded runs on digits, for the tests of the ledger."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run

OPTIMIZERS = {
    "gd": lambda p: torch.optim.SGD(p, lr=0.3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02),
}


def digits(n=128, dtype=torch.float64):
    """The first n digits, scaled to [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:n] / 16, dtype=dtype), torch.tensor(y[:n])


def mlp(activation=nn.Tanh, dtype=torch.float64, seed=0):
    """64-32-32-10."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10)]
    return nn.Sequential(*layers).to(dtype)


def record(
    path,
    model,
    optimizer,
    x,
    y,
    *,
    loss="cross_entropy",
    steps=20,
    batch=16,
    clip=None,
    schedule=None,
    seed=1,
    **options,
):
    """Train with the recorder; the batches of a seed, ragged at the end of every epoch."""
    generator = torch.Generator().manual_seed(seed)
    function = {
        "cross_entropy": lambda f, t: nn.functional.cross_entropy(f, t),
        "mse": lambda f, t: 0.5 * (f - nn.functional.one_hot(t, f.shape[1])).square().sum(1).mean(),
    }[loss]
    queue = []
    with Recorder(model, optimizer, path, loss=loss, **options) as recorder:
        for _ in range(steps):
            queue = queue or list(torch.randperm(len(x), generator=generator).split(batch))
            index = queue.pop(0)
            optimizer.zero_grad()
            function(model(x[index]), y[index]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            recorder.step(index, x[index], y[index])
            if schedule is not None:
                schedule.step()
    return Run.open(path)
