"""Estimates from models with and without each document: memorization, its null, and membership inference."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError
from kernelmem.memorization.membership.lira import lira_scores
from kernelmem.memorization.retraining.agreement import split_half_reliability
from kernelmem.memorization.retraining.differences import check_estimable, paired_difference
from kernelmem.statistics import Interval, auroc, mean_interval

SPLITS = 20  # random halves of the models, for the reliability
ROUNDING = 64 * np.finfo(np.float64).eps


class Memorization(NamedTuple):
    """Memorization of n documents, its standard errors and confidence intervals, each (n,), and its mean."""

    values: Tensor
    standard_errors: Tensor
    low: Tensor
    high: Tensor
    mean: Interval


@dataclass(frozen=True)
class PermutedMasks:
    """Control: memorization with the masks of the models permuted, so that they say nothing about the bits.

    Attributes:
        mean: mean over permutations of the mean memorization of the documents; its expectation is 0.
        sd: standard deviation of that mean over permutations.
        spread: standard deviation over the documents, mean over permutations.
        p: (1 + permutations whose mean is at least the observed one) / (1 + permutations).
        permutations: number of permutations.
    """

    mean: float
    sd: float
    spread: float
    p: float
    permutations: int


def complementary_pairs(masks: Tensor) -> Tensor | None:
    """Return pairs (m/2, 2) of models such that exactly one of a pair was trained on each document, or None.

    >>> complementary_pairs(torch.tensor([[True, False], [True, False], [False, True], [False, True]]))
    tensor([[0, 2],
            [1, 3]])
    """
    waiting: dict[bytes, list[int]] = {}
    pairs: list[tuple[int, int]] = []
    for k, mask in enumerate(masks.numpy()):
        if partners := waiting.get((~mask).tobytes()):
            pairs.append((partners.pop(0), k))
        else:
            waiting.setdefault(mask.tobytes(), []).append(k)
    return torch.tensor(sorted(pairs)) if 2 * len(pairs) == len(masks) else None


def memorization(masks: Tensor, bits: Tensor, pairs: Tensor | None, level: float) -> Memorization:
    """Return mean bits of the models without a document minus mean bits of those with it.

    The models of a pair are not independent: what one is trained on, the other is not. With pairs, standard errors and
    Student's intervals therefore come from the m/2 differences within pairs. Without pairs the intervals are those of
    :func:`kernelmem.memorization.retraining.differences.paired_difference`, and that of the mean is from the jackknife.
    """
    if pairs is None:
        check_estimable(masks)
        parts = paired_difference(masks, -bits, bounded=False, level=level)
        return Memorization(parts.value, parts.standard_error, parts.low, parts.high, _jackknife(masks, bits, level))
    from scipy.special import stdtrit  # slow to import

    differences = pair_differences(masks, bits, pairs)
    values, n_pairs = differences.mean(0), len(pairs)
    errors = differences.std(0) / n_pairs**0.5
    half_width = errors * float(stdtrit(n_pairs - 1, (1 + level) / 2))
    mean = mean_interval(differences.mean(1), level=level)
    return Memorization(values, errors, values - half_width, values + half_width, mean)


def pair_differences(masks: Tensor, bits: Tensor, pairs: Tensor) -> Tensor:
    """Return bits of the model without a document minus bits of the model with it, (m/2, n), for each pair."""
    first, second = pairs.unbind(1)
    return torch.where(masks[first], bits[second] - bits[first], bits[first] - bits[second])


def permuted_masks(masks: Tensor, bits: Tensor, observed: float, *, permutations: int, seed: int) -> PermutedMasks:
    """Return memorization with the rows of the masks permuted; a permutation test of the mean over the documents."""
    generator = torch.Generator().manual_seed(seed)
    means, spreads = [], []
    for _ in range(permutations):
        values = permuted_memorization(masks, bits, generator)
        means.append(float(values.mean()))
        spreads.append(float(values.std()) if len(values) > 1 else 0.0)
    slack = ROUNDING * float(bits.abs().max()) * len(masks)
    p = (1 + sum(mean >= observed - slack for mean in means)) / (1 + permutations)
    return PermutedMasks(float(np.mean(means)), float(np.std(means)), float(np.mean(spreads)), p, permutations)


def permuted_memorization(masks: Tensor, bits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the memorization (n,) with the masks of the models permuted once."""
    used = masks[torch.randperm(len(masks), generator=generator)].to(torch.float64)
    n_with = used.sum(0)
    return ((1 - used) * bits).sum(0) / (len(masks) - n_with) - (used * bits).sum(0) / n_with


def reliability(masks: Tensor, bits: Tensor, pairs: Tensor | None, seed: int) -> float | None:
    """Return the split-half reliability of the memorization values, or None if halves of the models cannot rank them."""
    try:
        return split_half_reliability(
            masks, -bits, torch.arange(masks.shape[1]), n_splits=SPLITS, seed=seed, units=pairs
        )
    except InputError:
        return None


def membership_aurocs(masks: Tensor, bits: Tensor, tokens: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return AUROCs of membership inference on each model (m,): by the other models (LiRA), and by its losses alone.

    The scores of a model never use its own mask, nor, with pairs, that of its partner, which would show it: every document
    then has as many models with as without it, whatever the mask. AUROCs that cannot be computed are left out.
    """
    with_ensemble, from_loss = [], []
    for k, mask in enumerate(masks):
        if not bool(mask.any()) or bool(mask.all()):
            continue
        others = torch.ones(len(masks), dtype=torch.bool)
        others[[k] if pairs is None else pairs[(pairs == k).any(1)][0]] = False
        used = masks[others]
        scores, enough = lira_scores(-bits[k], -bits[others], used, ~used, variance="shrunk", offline=False)
        enough &= scores.isfinite()
        if bool(mask[enough].any()) and not bool(mask[enough].all()):
            with_ensemble.append(auroc(scores[enough], mask[enough]))
        from_loss.append(auroc(-bits[k] / tokens.clamp_min(1), mask))
    return torch.tensor(with_ensemble, dtype=torch.float64), torch.tensor(from_loss, dtype=torch.float64)


def over_models(aurocs: Tensor, pairs: Tensor | None, level: float) -> Interval | None:
    """Return the mean AUROC with its interval over models, or over pairs; None for fewer than four models."""
    if len(aurocs) < 4:
        return None
    if pairs is not None and len(aurocs) == 2 * len(pairs):
        aurocs = aurocs[pairs].mean(1)
    interval = mean_interval(aurocs, level=level)
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high), level)


def _jackknife(masks: Tensor, bits: Tensor, level: float) -> Interval:
    """Return the mean memorization of the documents with its jackknife interval over models."""
    from scipy.special import stdtrit

    used, m = masks.to(torch.float64), len(masks)
    n_with, total_with, total = used.sum(0), (used * bits).sum(0), bits.sum(0)

    def mean(n_with: Tensor, total_with: Tensor, total: Tensor, m: int) -> Tensor:
        return ((total - total_with) / (m - n_with) - total_with / n_with).mean(-1)

    value = float(mean(n_with, total_with, total, m))
    left_out = mean(n_with - used, total_with - used * bits, total - bits, m - 1)
    error = float(((m - 1) / m * (left_out - left_out.mean()).square().sum()).sqrt())
    half_width = error * float(stdtrit(m - 1, (1 + level) / 2))
    return Interval(value, value - half_width, value + half_width, level)
