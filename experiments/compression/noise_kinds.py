"""Kinds of label noise: does the estimated noise rate, which assumes symmetric flips, hold for others?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import kernelmem as km
from experiments.compression.networks import train_networks
from experiments.compression.records import account_record
from kernelmem.core import seed_sequence
from kernelmem.label_noise import CorruptedLabels
from kernelmem.training import digits

__all__ = ["NoiseKinds", "entropy_of_noise", "noise_kinds"]


@dataclass(frozen=True)
class NoiseKinds:
    """Digits with noise of several kinds and rates; one network per cell and seed, that fits every label.

    Attributes:
        width: hidden widths.
    """

    kinds: tuple[str, ...] = ("symmetric", "pair", "confusable", "instance")
    rates: tuple[float, ...] = (0.2, 0.4)
    n_train: int = 1000
    width: tuple[int, ...] = (128, 128)
    steps: int = 300


def noise_kinds(setting: NoiseKinds, seed: int) -> Iterator[dict]:
    """Yield one record per kind and rate, and one without noise: the account, and what the noise really was."""
    seeds = seed_sequence(seed, ["flips", "weights"])
    data = digits(n_train=setting.n_train, seed=seed)
    x, clean = data.x_train, data.y_train
    cells = [("none", 0.0), *((kind, rate) for kind in setting.kinds for rate in setting.rates)]
    noisy = [
        km.corrupt_labels(clean, rate, kind if rate else "symmetric", seed=seeds["flips"], x=x) for kind, rate in cells
    ]
    networks = train_networks(
        data, [labels.y for labels in noisy], [setting.width] * len(cells), steps=setting.steps, seed=seeds["weights"]
    )
    kernel = km.infinite_ntk(x.double(), depth=2)
    baseline = 0.0
    for (kind, rate), labels, model, error in zip(
        cells, noisy, networks.models, networks.train_error.tolist(), strict=True
    ):
        record = account_record(model, x, labels.y, reference=kernel, seed=seed)
        if kind == "none":
            baseline = record["memorized"]
        truth, flipped = entropy_of_noise(labels, clean), float(labels.flipped.double().mean())
        estimate = km.estimate_label_noise(kernel, labels.y)
        yield {
            "kind": kind,
            "rate": rate,
            "seed": seed,
            "train_error": error,
            **record,
            "true_noise": truth,
            "rate_bias": record["noise_rate"] - flipped,
            "rate_covered": float(abs(record["noise_rate"] - flipped) <= 1.96 * record["noise_rate_error"]),
            "noise_bias": record["noise"] - truth,
            "matrix_rate_bias": estimate.noise_rate - flipped,
            "matrix_noise_bias": float((estimate.posterior @ _entropies(estimate.transition)).sum()) - truth,
            "memorized_above_clean": record["memorized"] - baseline,
            "memorized_bias": record["memorized"] - baseline - truth,
        }


def entropy_of_noise(labels: CorruptedLabels, clean: Tensor) -> float:
    """Return the entropy of the noisy labels given the true ones, in bits: the sum over rows of H(T_row)."""
    per_row = len(labels.matrix) == len(clean) != labels.matrix.shape[1]
    return float(_entropies(labels.matrix if per_row else labels.matrix[clean]).sum())


def _entropies(distributions: Tensor) -> Tensor:
    """Return the entropies (m,) of distributions (m, C), in bits."""
    return torch.special.entr(distributions).sum(1) / math.log(2)
