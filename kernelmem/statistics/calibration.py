"""Temperature and noise floor that turn outputs into calibrated class probabilities."""

import math

import numpy as np
import torch
from torch import Tensor

MAX_FLOOR, MIN_FLOOR = 0.999, 1e-6
LOG_TEMPERATURES = tuple(
    float(value) for value in np.linspace(math.log(1e-3), math.log(1e2), 12)
)  # relative to the spread
ENTRIES_PER_BLOCK = 2**20  # of probabilities at a time


def fit_calibration(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the temperature and the noise floor with the largest likelihood of the labels (n,) given outputs (n, C).

    The likelihood is concave in the floor, so that only the temperature is searched: on a grid, then between its neighbors.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    n_classes = outputs.shape[1]
    spread = output_spread(outputs)
    if spread == 0:
        return 1.0, MIN_FLOOR

    def negative_log_likelihood(log_temperature: float) -> float:
        p = label_probabilities(outputs, labels, spread * math.exp(log_temperature))
        floor = _best_floor(p, n_classes)
        return -float(((1 - floor) * p + floor / n_classes).log().mean())

    values = [negative_log_likelihood(log_temperature) for log_temperature in LOG_TEMPERATURES]
    best = int(np.argmin(values))
    low, high = LOG_TEMPERATURES[max(0, best - 1)], LOG_TEMPERATURES[min(len(values), best + 2) - 1]
    result = minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    log_temperature = float(result.x) if result.fun < values[best] else LOG_TEMPERATURES[best]  # pyright: ignore[reportAttributeAccessIssue]
    temperature = spread * math.exp(log_temperature)
    return temperature, _best_floor(label_probabilities(outputs, labels, temperature), n_classes)


def _best_floor(p: Tensor, n_classes: int) -> float:
    """Return the floor ε in its range with the largest Σ log((1 − ε) p + ε / C), for probabilities p (n,)."""
    from scipy.optimize import brentq

    def slope(floor: float) -> float:
        return float(((1 / n_classes - p) / ((1 - floor) * p + floor / n_classes)).mean())

    if slope(MIN_FLOOR) <= 0:
        return MIN_FLOOR
    if slope(MAX_FLOOR) >= 0:
        return MAX_FLOOR
    return float(brentq(slope, MIN_FLOOR, MAX_FLOOR, xtol=1e-9))  # pyright: ignore[reportArgumentType]


def label_probabilities(outputs: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the softmax of outputs / temperature at the labels, (n,), block by block of the rows."""
    block = max(1, ENTRIES_PER_BLOCK // outputs.shape[1])
    parts = []
    for start in range(0, len(outputs), block):
        z = outputs[start : start + block] / temperature
        parts.append((z.gather(1, labels[start : start + block, None])[:, 0] - z.logsumexp(1)).exp())
    return torch.cat(parts)


def calibrated_probabilities(outputs: Tensor, temperature: float, floor: float) -> Tensor:
    """Return (1 − ε) softmax(f / τ) + ε / C of outputs f (n, C), (n, C)."""
    return (1 - floor) * (outputs / temperature).softmax(1) + floor / outputs.shape[1]


def output_spread(outputs: Tensor) -> float:
    """Return the root mean square of outputs (n, C) after subtracting the mean of each row: the scale of temperatures."""
    return float((outputs - outputs.mean(1, keepdim=True)).square().mean().sqrt())
