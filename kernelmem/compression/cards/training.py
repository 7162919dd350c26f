"""Training of the whole numbers that determine a network, for a short code of network and labels together."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kernelmem.compression.cards.code import LARGEST_NUMBER
from kernelmem.compression.cards.inputs import FRACTION_BITS
from kernelmem.compression.cards.network import WEIGHT_BITS, Architecture
from kernelmem.compression.cards.options import CardOptions
from kernelmem.core import seed_sequence

BETAS = (0.9, 0.999)  # of Adam
MAX_SWEEP_OPERATIONS = 1e11  # of all sweeps together: about 20 s on one core


def train(
    architecture: Architecture,
    z: np.ndarray,
    labels: np.ndarray,
    options: CardOptions,
    report: Callable[[int, int], object],
) -> np.ndarray:
    """Return whole numbers (d,) in −15..15, chosen to make the code of network and labels short.

    Adam on ``cross-entropy + d log₂(mean |q| + 1/2)`` (the length of a discretized Laplace code with a fitted scale) in real
    numbers q, each with uniform noise of ±1/2 that imitates rounding. Then q is rounded, and each number changed by ±1 where
    that shortens the code.
    """
    forward = _Forward(architecture, z)
    generator = torch.Generator().manual_seed(seed_sequence(architecture.seed, ["card training"])["card training"])
    targets, n, d = torch.from_numpy(labels), len(labels), architecture.dimensions
    sweeps = min(options.sweeps, int(MAX_SWEEP_OPERATIONS / (4.0 * d * n * architecture.n_weights)))
    n_units = options.steps + sweeps * d
    q, mean, square = torch.zeros(3, d, dtype=torch.float32).unbind()
    for step in range(options.steps):
        rows = torch.randint(0, n, (min(n, options.batch_size),), generator=generator)
        noise = torch.rand(d, generator=generator, dtype=torch.float32) - 0.5
        with torch.enable_grad():
            q = q.detach().requires_grad_()
            bits_per_row = F.cross_entropy(forward(q + noise, rows), targets[rows]) / math.log(2)
            loss = bits_per_row + d * torch.log2(q.abs().mean() + 0.5) / n
            (gradient,) = torch.autograd.grad(loss, q)
        # Adam by hand: torch.optim imports the compiler of torch, which takes longer than this training
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient**2, 1 - BETAS[1])
        first, second = (1 - beta ** (step + 1) for beta in BETAS)
        rate = options.lr * (0.52 + 0.5 * math.cos(math.pi * step / options.steps))
        q = q.detach() - rate * (mean / first) / ((square / second).sqrt() + 1e-8)
        report(step + 1, n_units)
    rounded = q.detach().round().clamp(-LARGEST_NUMBER, LARGEST_NUMBER)
    refined = _refine(forward, rounded, targets, sweeps, generator, lambda done: report(options.steps + done, n_units))
    return refined.numpy().astype(np.int64)


def _refine(
    forward: "_Forward",
    q: Tensor,
    targets: Tensor,
    sweeps: int,
    generator: torch.Generator,
    report: Callable[[int], object],
) -> Tensor:
    """Return q with numbers changed by ±1 wherever that shortens the code, in random order; report the numbers tried."""

    def length(numbers: Tensor) -> float:
        return _laplace_bits(numbers) + float(F.cross_entropy(forward(numbers), targets, reduction="sum")) / math.log(2)

    shortest = length(q)
    for sweep in range(sweeps):
        before = shortest
        for place, i in enumerate(torch.randperm(len(q), generator=generator).tolist()):
            report(sweep * len(q) + place)
            for change in (-1.0, 1.0):
                candidate = q.clone()
                candidate[i] += change
                if abs(float(candidate[i])) <= LARGEST_NUMBER and (bits := length(candidate)) < shortest:
                    q, shortest = candidate, bits
                    break
        if shortest == before:
            break
    if sweeps:
        report(sweeps * len(q))
    return q


def _laplace_bits(numbers: Tensor) -> float:
    """Return the length of a two-sided geometric code with the most probable parameter."""
    mean = float(numbers.abs().mean())
    if mean == 0:
        return 0.0
    ratio = (math.sqrt(1 + mean * mean) - 1) / mean
    return -len(numbers) * (math.log2((1 - ratio) / (1 + ratio)) + mean * math.log2(ratio))


class _Forward:
    """Outputs of the network of real numbers q (d,), in float32: those of the exact network up to rounding."""

    def __init__(self, architecture: Architecture, z: np.ndarray) -> None:
        self._architecture = architecture
        ones = np.ones((len(z), 1))
        self._x = torch.from_numpy(np.concatenate([z / (1 << FRACTION_BITS), ones], 1).astype(np.float32))
        self._initial = torch.from_numpy((architecture.initial() / (1 << WEIGHT_BITS)).astype(np.float32))
        signs = torch.from_numpy(architecture.signs()).to(torch.float32)
        self._split = (architecture.n_inputs + 1) * architecture.width
        first_step, second_step = architecture.steps
        signs[:, : self._split] *= 2.0**first_step
        signs[:, self._split :] *= 2.0**second_step
        self._directions = signs

    def __call__(self, q: Tensor, rows: Tensor | None = None) -> Tensor:
        x = self._x if rows is None else self._x[rows]
        change = q @ self._directions
        first = self._initial + change[: self._split].view(-1, self._architecture.width)
        second = change[self._split :].view(-1, self._architecture.n_classes)
        return torch.addmm(second[-1], torch.relu(x @ first), second[:-1])
