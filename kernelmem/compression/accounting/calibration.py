"""Calibrated left-out predictions: their bits, the price of the calibration, and the noise rate that it estimates."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.statistics import calibrated_probabilities, fit_calibration, label_probabilities, output_spread

N_TEMPERATURES = 41
LOW, HIGH = math.log(1e-3), math.log(1e2)  # log temperatures, relative to the spread of the outputs
MIN_FLOOR, MAX_FLOOR = 1e-6, 0.999
ENTRIES_PER_BLOCK = 2**21


@dataclass(frozen=True)
class LeftOutBits:
    """Bits of the labels of n rows under calibrated predictions by the other rows.

    Attributes:
        probabilities: (n, C) calibrated probabilities, every one at least 1e-6 / C.
        rows: (n,) −log₂ p of each label.
        price: bits for the choice of ridge, temperature and noise rate: what a mixture of all of them is longer than the best.
        n_choices: number of all ridges, temperatures and noise rates that ``probabilities`` were chosen from.
        noise_rate: r of the most likely calibration p = (1 − r) s + r (1 − s) / (C − 1), s the softmax of outputs / τ.
        noise_rate_error: its standard error.
    """

    probabilities: Tensor
    rows: Tensor
    price: float
    n_choices: int
    noise_rate: float
    noise_rate_error: float

    @property
    def total(self) -> float:
        """The sum over rows, and the price."""
        return float(self.rows.sum()) + self.price


def left_out_bits(outputs: Tensor, labels: Tensor, choices: int = 1) -> LeftOutBits:
    """Calibrate predictions (n, C) of rows by the other rows on the labels (n,), and count their bits.

    With s the softmax of f / τ, a symmetric label noise of rate r gives the probabilities::

        p_c = (1 − r) s_c + r (1 − s_c) / (C − 1) = (1 − ε) s_c + ε / C,        ε = r C / (C − 1)

    The bits of the rows are those of the most likely pair (τ, ε) of a grid, 41 temperatures and floors with sin⁻¹ √ε about
    1 / √n apart. The price is the difference of the mixture of all pairs, −log₂ of the mean of 2^−bits, to the best pair, and
    log₂ ``choices`` for what was chosen before. Rate and standard error are those of the maximum of the likelihood.

    Args:
        outputs: (n, C) float64 predictions, none of which has seen the label of its row.
        labels: (n,) int64.
        choices: number of candidates that ``outputs`` were chosen from by means of the labels.
    """
    n, C = outputs.shape
    spread = output_spread(outputs) or 1.0
    scale = spread * torch.linspace(LOW, HIGH, N_TEMPERATURES, dtype=torch.float64).exp()
    n_floors = math.ceil(math.pi / 2 * math.sqrt(n)) + 1
    angles = torch.linspace(0, math.pi / 2, n_floors, dtype=torch.float64)
    floors = angles.sin().square().clamp(MIN_FLOOR, MAX_FLOOR)
    lengths = torch.stack([_lengths(label_probabilities(outputs, labels, float(t)), floors, C) for t in scale])
    best = int(lengths.argmin())
    shortest = float(lengths.flatten()[best])
    mixture = -torch.logsumexp(-lengths.flatten() * math.log(2), 0) / math.log(2) + math.log2(lengths.numel())
    p = calibrated_probabilities(outputs, float(scale[best // n_floors]), float(floors[best % n_floors]))
    temperature, floor = fit_calibration(outputs, labels)
    rate = (C - 1) / C * floor if floor > MIN_FLOOR else 0.0
    return LeftOutBits(
        probabilities=p,
        rows=-p.gather(1, labels[:, None])[:, 0].log2(),
        price=max(0.0, float(mixture) - shortest) + math.log2(choices),
        n_choices=choices * lengths.numel(),
        noise_rate=rate,
        noise_rate_error=_rate_error(outputs, temperature, rate),
    )


def noise_entropy(rate: float, n_classes: int) -> float:
    """Return H(r) = h(r) + r log₂(C − 1), the bits per label of symmetric label noise of rate r.

    >>> noise_entropy(0.5, 2), noise_entropy(0.0, 10)
    (1.0, 0.0)
    """
    entropy = rate * math.log2(n_classes - 1)
    return entropy - sum(p * math.log2(p) for p in (rate, 1 - rate) if p > 0)


def _lengths(p: Tensor, floors: Tensor, C: int) -> Tensor:
    """Return Σ −log₂((1 − ε) p + ε / C) for every floor ε (J,), of probabilities p (n,) of the labels, (J,)."""
    block = max(1, ENTRIES_PER_BLOCK // len(floors))
    total = torch.zeros_like(floors)
    for start in range(0, len(p), block):
        total -= ((1 - floors) * p[start : start + block, None] + floors / C).log2().sum(0)
    return total


def _rate_error(outputs: Tensor, temperature: float, rate: float) -> float:
    """Return the standard error of the noise rate, from the expected information on (r, log τ), at most 1.

    At rate 0 the information of one wrong label in n is used, so that the error is about 1 / n and not 0.
    """
    n, C = outputs.shape
    r = min(max(rate, 1 / n), (C - 1) / C)
    z = outputs / temperature
    s = z.softmax(1)
    p = s * (1 - r) + (1 - s) * r / (C - 1)
    by_rate = (1 - C * s) / (C - 1)
    by_temperature = (1 - r * C / (C - 1)) * s * ((s * z).sum(1, keepdim=True) - z)
    gradients = torch.stack([by_rate, by_temperature])  # (2, n, C)
    information = torch.einsum("anc,bnc->ab", gradients / p, gradients)
    determinant = float(information[0, 0] * information[1, 1] - information[0, 1] ** 2)
    if determinant <= 1e-12 * float(information[0, 0] * information[1, 1]):
        return 1.0 if float(information[0, 0]) <= 1 else float(information[0, 0]) ** -0.5
    return min(1.0, math.sqrt(float(information[1, 1]) / determinant))
