"""Statistics of a model's outputs at the given label: accuracy, probability, log-odds, margin, log-likelihood."""

from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import check_choice
from kernelmem.core.errors import InputError

Statistic = Literal["correct", "probability", "logit", "margin", "log_likelihood"]
STATISTICS: tuple[Statistic, ...] = ("correct", "probability", "logit", "margin", "log_likelihood")
MAX_STATISTIC = 1e140  # of which sums of squares are finite


def label_statistic(outputs: Tensor, labels: Tensor, statistic: Statistic) -> Tensor:
    """Return one statistic of the outputs at the given labels; larger = the model fits the label better.

    For outputs z with softmax p and the label y:

    - ``"correct"``: 1 if z_y is the only largest output, 1/t if t outputs including z_y are largest, 0 otherwise;
    - ``"probability"``: p_y;
    - ``"logit"``: log(p_y / (1 − p_y)) = z_y − log Σ_{k≠y} exp z_k;
    - ``"margin"``: z_y − max_{k≠y} z_k;
    - ``"log_likelihood"``: log p_y; for real targets t, −Σ_c (z_c − t_c)² / 2.

    Args:
        outputs: (..., n, C), C ≥ 2; any number of leading dimensions (models, steps).
        labels: (n,) int64 labels, or (n, C) real targets, for which only "log_likelihood" is defined.
        statistic: one of the names above.

    Returns:
        (..., n) float64; NaN where an output is not finite.

    Raises:
        InputError: an unknown statistic, or one that real targets do not have.
    """
    check_choice(statistic, "statistic", STATISTICS)
    z = outputs.to(torch.float64)
    finite = z.isfinite().all(-1)
    if labels.is_floating_point():
        if statistic != "log_likelihood":
            raise InputError(
                f"statistic={statistic!r} for real targets of shape {tuple(labels.shape)}",
                expected="statistic='log_likelihood', −|f − target|²/2",
                hint="pass statistic='log_likelihood', or class labels",
            )
        return torch.where(finite, -0.5 * (z - labels.to(torch.float64)).square().sum(-1), torch.nan)
    index = labels.to(torch.int64).expand(z.shape[:-1]).unsqueeze(-1)
    label_output = z.gather(-1, index).squeeze(-1)
    others = z.scatter(-1, index, -torch.inf)
    if statistic == "correct":
        largest = z.amax(-1, keepdim=True)
        ties = (z == largest).sum(-1)
        values = (label_output == largest.squeeze(-1)).to(torch.float64) / ties.clamp_min(1)
    elif statistic == "margin":
        values = label_output - others.amax(-1)
    elif statistic == "logit":
        values = label_output - others.logsumexp(-1)
    else:
        values = label_output - z.logsumexp(-1)
        values = values.exp() if statistic == "probability" else values
    return torch.where(finite, values, torch.nan)
