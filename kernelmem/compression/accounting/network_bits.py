"""Bits of the labels once the network is known: a mixture over temperatures, floors and the reference."""

import math

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.accounting.calibration import LeftOutBits
from kernelmem.statistics import output_spread

TEMPERATURES = tuple(10 ** (k / 2) for k in range(-5, 2))  # relative to the spread of the logits
FLOOR_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of n: floors are n^−power / 2


def bits_given(logits: Tensor, labels: Tensor, left_out: LeftOutBits) -> tuple[float, Tensor]:
    """Return :func:`network_bits` with calibrated left-out predictions for a reference."""
    return network_bits(logits, labels, left_out.probabilities, left_out.total, math.log2(left_out.n_choices))


def network_bits(
    logits: Tensor, labels: Tensor, reference: Tensor, reference_bits: float, price: float = 0.0
) -> tuple[float, Tensor]:
    """Return the bits of the labels (n,) given the network, and the bits of each row (n,) under the best expert.

    The experts are p = (1 − f) softmax(z / T) + f p_floor, for 7 temperatures T relative to the spread of the logits, 5
    shares f between 1/2 and 1 / (2n), and two floors, the uniform distribution and the reference p_ref. They have the weight
    1/2 together, and the reference alone has the weight 1/2::

        bits = −log₂(½ 2^−reference_bits + ½ mean over experts of 2^−bits of the expert)

    Experts with the floor p_ref pay ``price``, because a receiver needs the calibration of p_ref, which was chosen by the
    labels. So the bits satisfy Kraft's inequality for a network and a reference that have not seen the labels, and they are
    at most one bit above ``reference_bits``, whatever the network. The rows add up to the total without the prices of
    choices, at most log₂ 140 bits and ``price`` or the price within ``reference_bits``.

    Args:
        logits: (n, C) outputs of the network, float64.
        labels: (n,) int64.
        reference: (n, C) probabilities p_ref, all positive.
        reference_bits: bits of the labels under the reference, with what it costs to calibrate it.
        price: log₂ of the number of calibrations that p_ref was chosen from by means of the labels.
    """
    n, C = logits.shape
    at_label = labels[:, None]
    p_reference = reference.gather(1, at_label)[:, 0]
    floors = [0.5 * n**-power for power in FLOOR_POWERS]
    z = logits / (float(logits.abs().max()) or 1.0)  # squares of large logits would overflow
    z = z - z.amax(1, keepdim=True)
    spread = output_spread(z) or 1.0
    experts, prices = [], []
    for temperature in TEMPERATURES:
        p = (z / (temperature * spread)).log_softmax(1).gather(1, at_label)[:, 0].exp()
        for p_floor, paid in ((torch.full_like(p, 1 / C), 0.0), (p_reference, price)):
            experts += [-((1 - f) * p + f * p_floor).log2() for f in floors]
            prices += [paid] * len(floors)
    rows = torch.stack(experts)
    lengths = rows.sum(1) + torch.tensor(prices, dtype=rows.dtype)
    log_mean = float(torch.logsumexp(-lengths * math.log(2), 0)) / math.log(2) - math.log2(len(lengths))
    best = int(lengths.argmin())
    total = 1 - float(np.logaddexp2(-reference_bits, log_mean))
    if reference_bits <= float(lengths[best]):
        return total, -p_reference.log2()
    return total, rows[best]
