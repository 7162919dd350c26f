"""Width: what networks memorize on the way through the interpolation peak."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

import kernelmem as km
from experiments.compression.networks import train_networks
from experiments.compression.records import account_record
from experiments.over_seeds import summary
from kernelmem.core import seed_sequence
from kernelmem.double_descent import crossing, peak
from kernelmem.training import digits

__all__ = ["Widths", "through_the_peak", "widths"]


@dataclass(frozen=True)
class Widths:
    """Digits with symmetric flips, and networks of one hidden layer of increasing width; all else is equal."""

    widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 128)
    n_train: int = 400
    noise: float = 0.2
    steps: int = 1500


def widths(setting: Widths, seed: int) -> Iterator[dict]:
    """Yield one record per width, with flips and without them (the control).

    ``bits_per_parameter`` counts the bits of the labels that are not missing once network and reference are known,
    ``alone_per_parameter`` those of the network alone, without its calibration: uniform minus cross-entropy.
    """
    seeds = seed_sequence(seed, ["flips", "weights"])
    data = digits(n_train=setting.n_train, seed=seed)
    noisy = km.corrupt_labels(data.y_train, setting.noise, seed=seeds["flips"])
    kernel = km.infinite_ntk(data.x_train.double(), depth=2)
    count = len(setting.widths)
    networks = train_networks(
        data,
        [noisy.y] * count + [data.y_train] * count,
        setting.widths * 2,
        steps=setting.steps,
        seed=seeds["weights"],
    )
    for k, (width, model) in enumerate(zip(setting.widths * 2, networks.models, strict=True)):
        y = noisy.y if k < count else data.y_train
        record = account_record(model, data.x_train, y, reference=kernel, seed=seed)
        recalled = model(data.x_train).argmax(1) == y
        cross_entropy = setting.n_train * float(networks.train_loss[k]) / np.log(2)
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        yield {
            "rate": setting.noise if k < count else 0.0,
            "width": width,
            "seed": seed,
            "parameters": n_parameters,
            "train_error": float(networks.train_error[k]),
            "test_error": float(networks.test_error[k]),
            "test_loss": float(networks.test_loss[k]) / np.log(2),
            "flips_fitted": float(recalled[noisy.flipped].double().mean()),
            **record,
            "bits_per_parameter": (record["uniform"] - record["network"]) / n_parameters,
            "alone_per_parameter": (record["uniform"] - cross_entropy) / n_parameters,
        }


def through_the_peak(records: Sequence[dict], rate: float) -> dict:
    """Return the peaks of test error and loss, the interpolation threshold, and where the memorized bits arrive.

    The bits have arrived at the first width from which their mean stays within 5 % of that at the largest width.
    ``memorized_above_control`` is their paired difference to networks without flips, at the largest width.
    """
    frame = pd.DataFrame(records)
    runs = frame.query("rate == @rate")
    control = frame.query("rate == 0 and width == width.max()").set_index("seed")["memorized"]
    tables = {
        name: runs.pivot_table(index="seed", columns="width", values=name)
        for name in ("test_error", "test_loss", "train_error", "memorized")
    }
    axis = [float(width) for width in tables["memorized"].columns]
    threshold = crossing(axis, tables["train_error"].to_numpy(), epsilon=0.02)
    memorized = tables["memorized"].to_numpy().mean(0)
    below = np.flatnonzero(memorized < 0.95 * memorized[-1])
    result: dict[str, object] = {
        "threshold": threshold.value if threshold.found else None,
        "memorized_arrives_at": axis[min(len(axis) - 1, int(below[-1]) + 1)] if len(below) else axis[0],
    }
    if rate:
        largest = tables["memorized"].iloc[:, -1]
        result["memorized_above_control"] = summary((largest - control[largest.index]).tolist())
    for name in ("test_error", "test_loss"):
        top = peak(tables[name].to_numpy(), axis, metric=name)
        result[name] = {
            "at": top.axis_value,
            "picked": list(top.picked),
            "height": top.height,
            "rise": top.rise,
            "rise_interval": list(top.rise_interval),
            "fall": top.fall,
            "fall_interval": list(top.fall_interval),
        }
    return result
