"""Reliability of memorization values, and agreement of other scores with them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_indices, as_number, as_seed
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import attenuation_corrected, spearman, spearman_brown, spearman_interval


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Result):
    """Rank agreement of a score with memorization by retraining.

    Attributes:
        spearman: Spearman's correlation over the rows. low, high: its interval (Bonett and Wright) over rows.
        level: confidence level of the interval.
        corrected: correlation with memorization values without noise, spearman / √(reliabilities); it can exceed 1 by
            chance. None if the reliability is 0.
        ceiling: √reliability, the correlation that a score without error has with these noisy values.
        tie_ceiling: largest correlation that a score without ties can have with these values; below 1 where many rows have
            the same memorization, such as 0.
        reliability: split-half reliability of the memorization values.
        n_rows: number of rows compared.
    """

    spearman: float
    low: float
    high: float
    level: float
    corrected: float | None
    ceiling: float
    tie_ceiling: float
    reliability: float
    n_rows: int

    def __str__(self) -> str:
        corrected = "not defined" if self.corrected is None else f"{self.corrected:.3f}"
        return (
            f"Spearman {self.spearman:.3f} ({self.low:.3f} to {self.high:.3f}) on {self.n_rows:,} rows; ceiling"
            f" {self.ceiling:.3f} (reliability {self.reliability:.3f}); corrected for attenuation {corrected}"
            + (f"; ties limit a score without ties to {self.tie_ceiling:.3f}" if self.tie_ceiling < 0.995 else "")
        )


def agreement(
    score: Tensor, memorization: Tensor, *, reliability: float, score_reliability: float, level: float
) -> Agreement:
    """Compare a score (n,) with memorization values (n,) of the given reliability.

    Raises:
        InputError: fewer than four rows, a constant score, or reliabilities out of range.
    """
    score_reliability = as_number(score_reliability, "score_reliability", maximum=1.0, exclusive=True)
    interval = spearman_interval(score, memorization, level=level)
    corrected = attenuation_corrected(interval.value, reliability, score_reliability) if reliability > 0 else None
    ranks = memorization.argsort(stable=True).argsort(stable=True)
    tie_ceiling = spearman(ranks.to(torch.float64), memorization)
    return Agreement(
        interval.value,
        interval.low,
        interval.high,
        level,
        corrected,
        reliability**0.5,
        tie_ceiling,
        reliability,
        len(score),
    )


def split_half_reliability(
    masks: Tensor, values: Tensor, rows: Tensor, *, n_splits: int, seed: int, units: Tensor | None = None
) -> float:
    """Return the Spearman-Brown reliability of differences between models with and without a row.

    Rows that a half of a split has no model with, or without, are left out of that split.

    Args:
        masks: (m, n) bool.
        values: (m, n).
        rows: (r,) row numbers.
        n_splits: number of random splits.
        seed: their seed.
        units: (u, k) numbers of models that stay in one half, because they are not independent; None: single models.

    Raises:
        InputError: fewer than four models or units, or no split in which three rows that differ can be estimated.
    """
    n_splits, m = as_count(n_splits, "n_splits", maximum=100_000), len(masks)
    generator = torch.Generator().manual_seed(as_seed(seed))
    units = torch.arange(m)[:, None] if units is None else units
    if len(units) < 4:
        raise InputError(f"{m} models", expected="at least four, two in each half", hint="train more models")
    indicator, chosen_values = masks[:, rows].to(torch.float64), values[:, rows]
    correlations = []
    for _ in range(n_splits):
        order = units[torch.randperm(len(units), generator=generator)]
        halves = []
        for half in (order[: len(units) // 2].flatten(), order[len(units) // 2 :].flatten()):
            weights, part = indicator[half], chosen_values[half]
            halves.append(
                (weights * part).sum(0) / weights.sum(0) - ((1 - weights) * part).sum(0) / (1 - weights).sum(0)
            )
        estimable = halves[0].isfinite() & halves[1].isfinite()
        first, second = (half[estimable] for half in halves)
        if len(first) > 2 and all(float(half.max()) > float(half.min()) for half in (first, second)):
            correlations.append(spearman(first, second))
    if not correlations:
        raise InputError(
            f"memorization of {len(rows)} rows that halves of {m} models cannot rank",
            expected="at least three rows with different values in both halves",
            hint="train more models, or pass more rows",
        )
    return spearman_brown(sum(correlations) / len(correlations))


def as_row_numbers(rows: ArrayLike | None, name: str, n: int) -> Tensor:
    """Return distinct row numbers in 0..n-1 from numbers, or from a mask (n,); None: all rows.

    Raises:
        InputError: no rows, out of range, repeated, or a mask of another length.
    """
    if rows is None:
        return torch.arange(n)
    return as_indices(rows, name, n, hint=f"pass {name}=None for all rows")
