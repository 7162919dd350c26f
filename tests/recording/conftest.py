"""Shared by the tests of recorded runs: tiny networks and one training loop, with and without a recorder."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelmem.recording.recorder import Recorder

N = 23


def network(dtype=torch.float32, *, dropout=0.0, norm=False, seed=0):
    """A classifier of 4 features and 3 classes, with weights from ``seed`` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 6)]
        layers += [nn.BatchNorm1d(6)] if norm else []
        layers += [nn.Tanh()] + ([nn.Dropout(dropout)] if dropout else []) + [nn.Linear(6, 3)]
        return nn.Sequential(*layers).to(dtype)


def batch(t, dtype=torch.float32, *, size=6) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of step ``t``; every fourth one is ragged."""
    generator = torch.Generator().manual_seed(17)
    x, y = torch.randn(N, 4, generator=generator), torch.randint(3, (N,), generator=generator)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1000 + t))
    index = order[: size if t % 4 != 3 else 3]
    return index, x[index].to(dtype), y[index]


@dataclass
class Loop:
    """A training loop with everything that a step may be made of."""

    dtype: torch.dtype = torch.float32
    clip: float | None = None
    weighted: bool = False
    schedule: bool = False

    def run(self, model, optimizer, recorder=None, *, steps=7, start=0):
        """Train; the weights after every step."""
        states = []
        base = [group["lr"] for group in optimizer.param_groups]
        for t in range(start, steps):
            if self.schedule:
                for group, rate in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = rate / (1 + t)
            index, x, y = batch(t, self.dtype)
            weight = 0.5 + torch.arange(len(y)) / 7 if self.weighted else None
            optimizer.zero_grad()
            losses = F.cross_entropy(model(x), y, reduction="none" if self.weighted else "mean")
            loss = losses if weight is None else (losses * weight.to(losses.dtype)).mean()
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            torch.rand(2)  # the loop may draw on its own between the forward pass and the step
            if recorder is None:
                optimizer.step()
            else:
                recorder.step(index, x, y, weight)
            states.append({name: value.clone() for name, value in model.state_dict().items()})
        return states


def same(a, b):
    """Whether two sequences of states are equal to the bit."""
    return all(
        first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        for first, second in zip(a, b, strict=True)
    )


@dataclass
class Lab:
    """Handles for the tests: ``lab.network()``, ``lab.batch(t)``, ``lab.loop(...)``, ``lab.record(...)``."""

    directory: Path

    network = staticmethod(network)
    batch = staticmethod(batch)
    same = staticmethod(same)
    loop = Loop

    def record(self, make_optimizer=None, *, loop=None, steps=7, model=None, directory=None, **options):
        """Record a run of a fresh network; (directory, model, the weights after every step)."""
        loop = loop or Loop()
        model = model if model is not None else network(loop.dtype)
        make_optimizer = make_optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        optimizer = make_optimizer(model.parameters())
        directory = self.directory / "run" if directory is None else directory
        options = {"loss": "cross_entropy", **options}
        with Recorder(model, optimizer, directory, **options) as recorder:
            states = loop.run(model, optimizer, recorder, steps=steps)
        return directory, model, states


@pytest.fixture
def lab(tmp_path):
    """The helpers above, in a directory of its own."""
    return Lab(tmp_path)
