"""Quantization: which labels does a network lose first when its weights get fewer bits?"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor, nn

import kernelmem as km
from experiments.compression.networks import train_networks
from experiments.compression.records import account_record
from kernelmem.core import seed_sequence
from kernelmem.training import digits

__all__ = ["Quantization", "code_length", "matched_difference", "quantization", "quantized"]

SCALE_BITS = 16  # of the step of a layer
MARGIN_BINS = 8


@dataclass(frozen=True)
class Quantization:
    """Digits with symmetric flips; the same network without flips is the control.

    Attributes:
        grid: steps of the grid, in standard deviations of the weights of a layer.
    """

    grid: tuple[float, ...] = (1 / 32, 1 / 8, 1 / 4, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
    n_train: int = 1000
    noise: float = 0.2
    width: tuple[int, ...] = (128, 128)
    steps: int = 300


def quantization(setting: Quantization, seed: int) -> Iterator[dict]:
    """Yield one record per grid step, for the network with flips and the one without."""
    seeds = seed_sequence(seed, ["flips", "weights"])
    data = digits(n_train=setting.n_train, seed=seed)
    noisy = km.corrupt_labels(data.y_train, setting.noise, seed=seeds["flips"])
    x, flipped = data.x_train, noisy.flipped
    kernel = km.infinite_ntk(x.double(), depth=2)
    networks = train_networks(
        data, [noisy.y, data.y_train], [setting.width] * 2, steps=setting.steps, seed=seeds["weights"]
    )
    for model, y, name in zip(networks.models, (noisy.y, data.y_train), ("flips", "control"), strict=True):
        margin = _margins(model, x, y)
        for step in (0.0, *setting.grid):
            coarse, bits = quantized(model, step) if step else (model, float("nan"))
            kept = (coarse(x).argmax(1) == y).double()
            yield {
                "labels": name,
                "step": step,
                "seed": seed,
                "bits_per_weight": bits,
                "recall_flipped": float(kept[flipped].mean()),
                "recall_clean": float(kept[~flipped].mean()),
                "difference": float(kept[~flipped].mean() - kept[flipped].mean()),
                "matched_difference": matched_difference(kept, flipped, margin),
                "test_error": float((coarse(data.x_test).argmax(1) != data.y_test).double().mean()),
                **account_record(coarse, x, y, reference=kernel, seed=seed),
            }


@torch.no_grad()
def quantized(model: nn.Module, step: float) -> tuple[nn.Module, float]:
    """Return the network on a uniform grid, and bits per weight of a code of it.

    Weights and biases of a layer are rounded to multiples of ``step`` times the standard deviation of its weights.
    """
    coarse = deepcopy(model)
    bits, count = 0.0, 0
    for layer in coarse.modules():
        if not isinstance(layer, nn.Linear):
            continue
        size = step * float(layer.weight.std())
        bits += SCALE_BITS
        for parameter in (layer.weight, layer.bias):
            integers = torch.round(parameter / size)
            parameter.copy_(integers * size)
            bits += code_length(integers.to(torch.int64).flatten().numpy())
            count += parameter.numel()
    return coarse, bits / count


def code_length(integers: np.ndarray) -> float:
    """Return the bits of an adaptive code (Krichevsky and Trofimov 1981) of integers in -k..k, with k paid (Elias gamma)."""
    k = int(np.abs(integers).max())
    counts = np.bincount(integers + k, minlength=2 * k + 1)
    n, m = len(integers), 2 * k + 1
    nats = gammaln(n + m / 2) - gammaln(m / 2) - (gammaln(counts + 0.5) - gammaln(0.5)).sum()
    return float(nats) / math.log(2) + 2 * math.floor(math.log2(k + 1)) + 1


def matched_difference(kept: Tensor, flipped: Tensor, margin: Tensor) -> float:
    """Return recall of clean minus flipped rows of similar margin before quantization, NaN if none are similar.

    Rows are grouped by the quantiles of the margins of flipped rows; a group counts by its number of flipped rows.
    """
    edges = torch.quantile(margin[flipped], torch.linspace(0, 1, MARGIN_BINS + 1, dtype=margin.dtype))
    group = torch.bucketize(margin, edges[1:-1])
    inside = (margin >= edges[0]) & (margin <= edges[-1])
    total, weight = 0.0, 0
    for k in range(MARGIN_BINS):
        wrong, right = flipped & inside & (group == k), ~flipped & inside & (group == k)
        if wrong.any() and right.any():
            total += int(wrong.sum()) * float(kept[right].mean() - kept[wrong].mean())
            weight += int(wrong.sum())
    return total / weight if weight else float("nan")


@torch.no_grad()
def _margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return output at the label minus the largest other output, (n,) float64."""
    outputs = model(x).double()
    label = outputs.gather(1, y[:, None])[:, 0]
    return label - outputs.scatter(1, y[:, None], -torch.inf).amax(1)
