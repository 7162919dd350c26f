"""Other data: tables of scikit-learn, and Gaussian classes whose Bayes noise is known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import kernelmem as km
from experiments.compression.networks import train_networks
from experiments.compression.noise_kinds import entropy_of_noise
from experiments.compression.records import account_record
from kernelmem.core import seed_sequence
from kernelmem.training import LabeledData, labeled_data

__all__ = ["GaussianClasses", "Generated", "Tables", "generated", "table_of", "tables"]


@dataclass(frozen=True)
class Tables:
    """Wine (178 rows, 13 features, 3 classes) and breast cancer (569, 30, 2), each feature standardized, with flips."""

    names: tuple[str, ...] = ("wine", "breast_cancer")
    rates: tuple[float, ...] = (0.0, 0.2)
    width: tuple[int, ...] = (128, 128)
    steps: int = 400


def tables(setting: Tables, seed: int) -> Iterator[dict]:
    """Yield one record per table and noise rate."""
    seeds = seed_sequence(seed, ["flips", "weights"])
    for name in setting.names:
        data = table_of(name)
        noisy = [km.corrupt_labels(data.y_train, rate, seed=seeds["flips"]) for rate in setting.rates]
        networks = train_networks(
            data,
            [labels.y for labels in noisy],
            [setting.width] * len(noisy),
            steps=setting.steps,
            seed=seeds["weights"],
        )
        clean = math.nan
        for k, (rate, labels) in enumerate(zip(setting.rates, noisy, strict=True)):
            record = account_record(networks.models[k], data.x_train, labels.y, reference="infinite_ntk", seed=seed)
            clean = clean if rate else record["memorized"]
            yield {
                "data": name,
                "rate": rate,
                "seed": seed,
                "rows": len(data.y_train),
                "train_error": float(networks.train_error[k]),
                **record,
                "true_noise": entropy_of_noise(labels, data.y_train),
                "memorized_above_clean": record["memorized"] - clean,
            }


def table_of(name: str) -> LabeledData:
    """Return all rows of a table of scikit-learn as training rows; they are the test rows, too, which are not used."""
    from sklearn.datasets import load_breast_cancer, load_wine

    x, y = {"wine": load_wine, "breast_cancer": load_breast_cancer}[name](return_X_y=True)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    return labeled_data(x, y, x, y, name=name)


@dataclass(frozen=True)
class GaussianClasses:
    """Rows of C classes, equally likely, with covariance I around means that are all ``distance`` apart."""

    distance: float
    n_classes: int = 3
    dimension: int = 10

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows (n, d), labels (n,) and the posteriors p(y | x), (n, C)."""
        means = np.eye(self.n_classes, self.dimension) * self.distance / np.sqrt(2)
        y = rng.integers(self.n_classes, size=n)
        x = means[y] + rng.standard_normal((n, self.dimension))
        logits = torch.from_numpy(x @ means.T - (means**2).sum(1) / 2)
        return torch.from_numpy(x), torch.from_numpy(y), logits.softmax(1)


@dataclass(frozen=True)
class Generated:
    """Gaussian classes that overlap, with and without symmetric flips of their labels.

    Attributes:
        distances: distances of the means; 6 is a Bayes error of .3 %, 4 of 4 %, 3 of 11 %, 2 of 25 % (three classes).
    """

    distances: tuple[float, ...] = (6.0, 4.0, 3.0, 2.0)
    rates: tuple[float, ...] = (0.0, 0.2)
    n: int = 600
    width: tuple[int, ...] = (128, 128)
    steps: int = 600


def generated(setting: Generated, seed: int) -> Iterator[dict]:
    """Yield one record per distance and noise rate: the account, and the Bayes noise of the same labels."""
    for distance in setting.distances:
        seeds = seed_sequence(seed, ["rows", "flips", "weights"])
        classes = GaussianClasses(distance)
        x, y, clean_posterior = classes.draw(setting.n, np.random.default_rng(seeds["rows"]))
        data = labeled_data(x.float(), y, x.float(), y)
        noisy = [km.corrupt_labels(y, rate, seed=seeds["flips"]) for rate in setting.rates]
        networks = train_networks(
            data,
            [labels.y for labels in noisy],
            [setting.width] * len(noisy),
            steps=setting.steps,
            seed=seeds["weights"],
        )
        for k, (rate, labels) in enumerate(zip(setting.rates, noisy, strict=True)):
            posterior = clean_posterior @ labels.matrix
            entropy = float(torch.special.entr(posterior).sum()) / np.log(2)
            record = account_record(networks.models[k], data.x_train, labels.y, reference="infinite_ntk", seed=seed)
            bayes = -float(posterior.gather(1, labels.y[:, None]).log2().sum())
            yield {
                "distance": distance,
                "rate": rate,
                "seed": seed,
                "train_error": float(networks.train_error[k]),
                "bayes_error": float(1 - posterior.amax(1).mean()),
                "bayes_entropy": entropy,
                "bayes_bits": bayes,
                **record,
                "rate_bias": record["noise_rate"] - rate,
                "noise_bias": record["noise"] - entropy,
                "left_out_above_bayes": record["left_out"] - bayes,
            }
