"""Digits, small networks, and full-batch gradient descent on the squared error, with every state kept."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernelmem as km
from experiments.path_equivalence.configs import N_TEST, N_TRAIN
from kernelmem.core import seed_sequence
from kernelmem.training import digits

__all__ = ["Problem", "Scaled", "problem", "recorded", "trained"]


@dataclass(frozen=True)
class Problem:
    """Rows in float64, and an untrained network."""

    x: Tensor  # (N_TRAIN, 64)
    y: Tensor
    x_test: Tensor  # (N_TEST, 64)
    y_test: Tensor
    network: nn.Sequential


def problem(seed: int, activation: type[nn.Module]) -> Problem:
    """A split of the digits and a network 64-32-32-10, both from the seed."""
    data = digits(n_train=N_TRAIN, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_sequence(seed, ["weights"])["weights"])
        layers = [nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10)]
    x, x_test = data.x_train.double(), data.x_test[:N_TEST].double()
    return Problem(x, data.y_train, x_test, data.y_test[:N_TEST], nn.Sequential(*layers).double())


class Scaled(nn.Module):
    """scale · (network now − network at the start): zero before training (Chizat, Oyallon and Bach 2019)."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.start = copy.deepcopy(network).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 64) to (n, 10)."""
        return self.scale * (self.network(x) - self.start(x))


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows of half the squared error to one-hot labels."""
    return 0.5 * (outputs - F.one_hot(labels, outputs.shape[1])).square().sum(1).mean()


def trained(own: Problem, rate: float, steps: int) -> dict[str, Tensor]:
    """The parameters after every step: name -> (steps + 1, ...)."""
    network = copy.deepcopy(own.network)
    states = {name: [p.detach().clone()] for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        squared_error(network(own.x), own.y).backward()
        optimizer.step()
        for name, parameter in network.named_parameters():
            states[name].append(parameter.detach().clone())
    return {name: torch.stack(values) for name, values in states.items()}


@contextmanager
def recorded(own: Problem, model: nn.Module, rate: float, steps: int) -> Iterator[km.Run]:
    """The same, of any model, as a recorded run in a directory that is removed in the end."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
        index = torch.arange(len(own.x))
        with km.Recorder(model, optimizer, path, loss="mse", keep="all") as recorder:
            for _ in range(steps):
                optimizer.zero_grad()
                squared_error(model(own.x), own.y).backward()
                recorder.step(index, own.x, own.y)
        yield km.Run.open(path)
