"""Online codes of kernels and of learners: lengths over label noise and orders of the rows, times, decoding."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import kernelmem as km
from experiments.compression.other_data import table_of
from kernelmem.compression import lengths_over_orders
from kernelmem.core import seed_sequence
from kernelmem.training import digits

__all__ = ["Online", "Orders", "online", "orders"]


@dataclass(frozen=True)
class Online:
    """Handwritten digits, wine and breast cancer, with symmetric flips, or labels drawn at random (rate 1)."""

    data: tuple[str, ...] = ("digits", "wine", "breast_cancer")
    rates: tuple[float, ...] = (0.0, 0.2, 1.0)
    n_train: int = 1400
    """Rows of the digits."""
    sources: tuple[str, ...] = ("kernel", "logistic")
    """Of "kernel", "logistic", "network"."""


@dataclass(frozen=True)
class Orders(Online):
    """The kernel code of the same labels in several orders of the rows."""

    rates: tuple[float, ...] = (0.0, 0.2)
    n_orders: int = 6


def online(setting: Online, seed: int) -> Iterator[dict]:
    """Yield one record per data set, noise rate and source of predictions: kernel, logistic regression, network."""
    for name, rate, x, y, C in _cases(setting, seed):
        record = {"data": name, "rate": rate, "seed": seed, "rows": len(y), "uniform": len(y) * np.log2(C)}
        sources = {
            "kernel": (km.infinite_ntk(x, depth=2), None),
            "logistic": (_logistic, x.numpy()),
            "network": (_network(C), x.float()),
        }
        for source in setting.sources:
            predicted_by, rows = sources[source]
            yield {**record, "source": source, **_measure(predicted_by, rows, y, C)}


def orders(setting: Orders, seed: int) -> Iterator[dict]:
    """Yield one record per data set and noise rate: mean and standard deviation of the kernel code over orders."""
    for name, rate, x, y, C in _cases(setting, seed):
        lengths = lengths_over_orders(km.infinite_ntk(x, depth=2), y, n_orders=setting.n_orders, n_classes=C)
        yield {
            "data": name,
            "rate": rate,
            "seed": seed,
            "mean": float(lengths.mean()),
            "standard_deviation": float(lengths.std()),
        }


def _cases(setting: Online, seed: int) -> Iterator[tuple[str, float, Tensor, Tensor, int]]:
    """Yield name, noise rate, rows (n, d) float64, labels (n,) and number of classes."""
    seeds = seed_sequence(seed, ["flips", "random"])
    for name in setting.data:
        data = digits(n_train=setting.n_train, seed=seed) if name == "digits" else table_of(name)
        for rate in setting.rates:
            y = _labels(data.y_train, rate, data.n_classes, seeds)
            yield name, rate, data.x_train.flatten(1).double(), y, data.n_classes


def _labels(clean: Tensor, rate: float, C: int, seeds: dict[str, int]) -> Tensor:
    if rate == 1:
        return torch.randint(C, (len(clean),), generator=torch.Generator().manual_seed(seeds["random"]))
    return km.corrupt_labels(clean, rate, seed=seeds["flips"]).y


def _measure(source: Tensor | Callable, x: Tensor | np.ndarray | None, y: Tensor, C: int) -> dict[str, float]:
    """Return lengths in bits, times in seconds, and the largest change of the probabilities that still decodes."""
    start = time.perf_counter()
    code = km.online_code(source, y, x=x, n_classes=C, progress=False)
    coded = time.perf_counter()
    decoded = km.OnlineCode.decode(code.encode(), source, x=x, progress=False)
    stop = time.perf_counter()
    return {
        "bits": float(code.bits),
        "ideal": code.ideal,
        "mistakes": float(code.mistakes),
        "decodes": float(torch.equal(decoded, y)),
        "tolerance": code.tolerance,
        "seconds": coded - start,
        "decode_seconds": stop - coded,
    }


def _logistic(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(x, y)


def _network(C: int) -> Callable:
    """MLP of one hidden layer of 128 units: 150 steps of AdamW with all rows, and its softmax."""

    def train(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        model = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, C))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.3)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return lambda rows: model(rows).softmax(1)

    return train
