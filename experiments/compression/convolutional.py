"""A small convolutional network: its account with the kernel of its own architecture and with that of infinite MLPs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import kernelmem as km
from experiments.audit_validation.training import Training
from experiments.compression.noise_kinds import entropy_of_noise
from experiments.compression.records import account_record
from kernelmem.core import seed_sequence
from kernelmem.training import digits

__all__ = ["Convolutional", "convolutional"]

REFERENCES = ("initial_ntk", "infinite_ntk")


@dataclass(frozen=True)
class Convolutional:
    """Digits as images (1, 8, 8), with and without symmetric flips, which the network fits."""

    rates: tuple[float, ...] = (0.0, 0.2)
    n_train: int = 600
    channels: int = 24
    steps: int = 150


@torch.no_grad()
def convolutional(setting: Convolutional, seed: int) -> Iterator[dict]:
    """Yield one record per noise rate and reference."""
    seeds = seed_sequence(seed, ["flips", "weights"])
    training = Training(setting.steps, lr=0.01, width=setting.channels, convolutional=True)
    data = digits(n_train=setting.n_train, seed=seed)
    x, x_test = training.rows(data.x_train), training.rows(data.x_test)
    clean: dict[str, float] = {}
    for rate in setting.rates:
        labels = km.corrupt_labels(data.y_train, rate, seed=seeds["flips"])
        y = labels.y
        model = training.networks(x, y, [torch.arange(len(y))], [seeds["weights"] % 2**31])[0].eval()
        for reference in REFERENCES:
            record = account_record(model, x, y, reference=reference, seed=seed)
            if rate == 0:
                clean[reference] = record["memorized"]
            yield {
                "rate": rate,
                "reference": reference,
                "seed": seed,
                "train_error": float((model(x).argmax(1) != y).double().mean()),
                "test_error": float((model(x_test).argmax(1) != data.y_test).double().mean()),
                **record,
                "true_noise": entropy_of_noise(labels, data.y_train),
                "memorized_above_clean": record["memorized"] - clean.get(reference, math.nan),
            }
