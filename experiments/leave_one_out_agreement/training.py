"""The recorded run, and its repetition for many networks at once, each with different weights of the examples."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

import kernelmem as km
from experiments.leave_one_out_agreement.configs import Options
from kernelmem.core import seed_sequence
from kernelmem.training import digits

__all__ = ["Problem", "centered_logit", "make", "record", "retrain"]


@dataclass(frozen=True)
class Problem:
    """Data with wrong labels, a network before training, the batches of a run; float64."""

    x: Tensor
    y: Tensor
    flipped: Tensor
    x_test: Tensor
    y_test: Tensor
    model: nn.Module
    batches: list[Tensor]
    options: Options


def centered_logit(outputs: Tensor, labels: Tensor) -> Tensor:
    """The logit of the row's own label less the mean of all logits."""
    return outputs.gather(-1, labels[..., None])[..., 0] - outputs.mean(-1)


def make(options: Options, seed: int) -> Problem:
    """Everything that the seed decides."""
    seeds = seed_sequence(seed, ["split", "flips", "weights", "batches"])
    data = digits(n_train=options.n_train, seed=seed)
    noisy = km.corrupt_labels(data.y_train, options.rate, "symmetric", seed=seeds["flips"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds["weights"])
        layers = [nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)]
        model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(seeds["batches"])
    batches: list[Tensor] = []
    while len(batches) < options.steps:
        batches += list(torch.randperm(options.n_train, generator=generator).split(options.batch))
    return Problem(
        data.x_train.double(),
        noisy.y,
        noisy.flipped,
        data.x_test[: options.n_test].double(),
        data.y_test[: options.n_test],
        model,
        batches[: options.steps],
        options,
    )


def _optimizer(parameters, options: Options) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)


def record(problem: Problem, directory: Path) -> km.Run:
    """Train ``problem.model`` with the recorder."""
    optimizer = _optimizer(problem.model.parameters(), problem.options)
    with km.Recorder(problem.model, optimizer, directory, loss="cross_entropy") as recorder:
        for index in problem.batches:
            optimizer.zero_grad()
            F.cross_entropy(problem.model(problem.x[index]), problem.y[index]).backward()
            recorder.step(index, problem.x[index], problem.y[index])
    return km.Run.open(directory)


def retrain(problem: Problem, first: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Train one network for each row of ``weights`` (networks, n) from the same first state, with torch's own optimizer.

    The loss of a batch is Σ_i weight_i ℓ_i / B: a weight of 0 leaves an example out and the divisor as it was.
    Returns the outputs on training rows and on test rows, (networks, rows, 10).
    """
    networks = len(weights)
    stacked = {name: own.expand(networks, *own.shape).clone().requires_grad_() for name, own in first.items()}
    optimizer = _optimizer(list(stacked.values()), problem.options)
    outputs = vmap(lambda own, x: functional_call(problem.model, own, (x,)), in_dims=(0, None))
    for index in problem.batches:
        optimizer.zero_grad()
        found = outputs(stacked, problem.x[index])
        losses = F.cross_entropy(found.flatten(0, 1), problem.y[index].repeat(networks), reduction="none")
        ((weights[:, index] * losses.view(networks, -1)).sum() / len(index)).backward()
        optimizer.step()
    with torch.no_grad():
        return outputs(stacked, problem.x), outputs(stacked, problem.x_test)
