"""Change of the losses of documents compared with the reference model."""

import math

import torch
from torch import Tensor

from kernelmem.auditing.text.schema import ChangeAnswer, ChangeGroup
from kernelmem.statistics import Interval, mean_interval
from kernelmem.text import TokenLosses

SIGNIFICANCE = 0.01
LEVEL = 0.95


def change(losses: TokenLosses, reference: TokenLosses, n_members: int) -> ChangeAnswer | None:
    """Return the change of bits per token from the reference to the model, by document; None for one document of a kind."""
    after, before = (part.per_document() / part.counts for part in (losses, reference))
    difference = after - before
    is_member = torch.arange(len(difference)) < n_members
    if min(n_members, len(difference) - n_members) < 2 or not bool(difference.isfinite().all()):
        return None
    groups = tuple(
        ChangeGroup(
            name=name,
            n=int(mask.sum()),
            before=float(before[mask].mean()),
            after=float(after[mask].mean()),
            difference=mean_interval(difference[mask], level=LEVEL),
            worse=float((difference[mask] > 0).double().mean()),
        )
        for name, mask in (("train", is_member), ("unseen", ~is_member))
    )
    excess, p = _welch(difference[is_member], difference[~is_member])
    return ChangeAnswer(groups, excess, p, SIGNIFICANCE)


def _welch(x: Tensor, y: Tensor) -> tuple[Interval, float]:
    """Return the difference of two means with its interval and two-sided p-value; p = 1 for equal constants."""
    from scipy.stats import t  # slow to import

    value = float(x.mean() - y.mean())
    parts = [float(group.var()) / len(group) for group in (x, y)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Interval(value, value, value, LEVEL), float(value == 0)
    degrees = error**4 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, (x, y), strict=True))
    half = float(t.ppf((1 + LEVEL) / 2, degrees)) * error
    return Interval(value, value - half, value + half, LEVEL), float(2 * t.sf(abs(value) / error, degrees))
