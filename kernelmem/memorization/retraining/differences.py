"""Differences between the means of models with and without a row, with standard errors and intervals."""

from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.memorization.output_statistics import MAX_STATISTIC, Statistic
from kernelmem.memorization.shadows import ShadowEnsemble

NAMED_ROWS = 8  # rows that an error message lists
LEAST_SKEWNESS = 1e-6  # below it Hall's transformation is the identity, to rounding


@dataclass(frozen=True)
class Difference:
    """Means over the models with a row minus means over the models without it.

    Attributes:
        value: (n,) the differences. standard_error: (n,). low, high: (n,) confidence interval.
    """

    value: Tensor
    standard_error: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class _Group:
    """Mean, variance of the mean, third cumulant of the mean, and number of models of one group, (n,) each."""

    mean: Tensor
    variance: Tensor
    third: Tensor
    count: Tensor


def paired_difference(masks: Tensor, values: Tensor, *, bounded: bool, level: float) -> Difference:
    """Return mean_{k: i in S_k} v_ki − mean_{k: i not in S_k} v_ki for each row i.

    Args:
        masks: (m, n) bool, with at least two models of each kind per row.
        values: (m, n) float64, the statistic of row i in model k.
        bounded: the values are 0 and 1, or shares of ties.
        level: confidence level of the interval.

    For ``bounded`` values the variance of a mean p of c models is that of the Beta posterior under Jeffreys' prior,
    q (1 − q) / (c + 2) with q = (c p + 1/2) / (c + 1), which is not 0 at p = 0 or 1, and the interval is Newcombe's (1998,
    method 10) from two Wilson intervals. Otherwise the variance is s² / c, and the interval that of Hall's (1992)
    transformation, which allows for skewness, with Student's t at Welch's degrees of freedom.
    """
    indicator = masks.to(torch.float64)
    groups = [_group(weights, values, bounded) for weights in (indicator, 1 - indicator)]
    value = groups[0].mean - groups[1].mean
    standard_error = (groups[0].variance + groups[1].variance).sqrt()
    interval = _newcombe if bounded else _hall
    return Difference(value, standard_error, *interval(groups[0], groups[1], value, standard_error, level))


def crossed_difference(masks: Tensor, values: Tensor, *, bounded: bool) -> tuple[Tensor, Tensor]:
    """Return differences (n, t) of the means of values (m, t) over models with and without row i, and standard errors.

    Variances are those of :func:`paired_difference`. Cost: four products of (n, m) and (m, t) matrices.
    """
    indicator = masks.to(torch.float64)
    # without the common size of a column few digits of its variance cancel
    centered = values if bounded else values - values.mean(0)
    squares = centered.square()
    means, variances = [], []
    for weights in (indicator, 1 - indicator):
        count = weights.sum(0).unsqueeze(1)
        total = weights.T @ centered
        means.append(total / count)
        if bounded:
            variances.append(_jeffreys_variance(total, count))
        else:
            spread = (weights.T @ squares - total * means[-1]).clamp_min(0)
            variances.append(spread / (count - 1) / count)
    return means[0] - means[1], (variances[0] + variances[1]).sqrt()


def bounded_mean(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the models with weight 1 and its standard error, for 0 and 1 (see above).

    ``weights`` and ``values`` are (m, n); the results (n,).
    """
    group = _group(weights, values, bounded=True)
    return group.mean, group.variance.sqrt()


def check_estimable(masks: Tensor, *, least: int = 2, without_only: bool = False) -> None:
    """Check that each row is in the training set of ``least`` models, and left out by as many.

    Raises:
        InputError: naming the rows that are not.
    """
    n_with = masks.sum(0)
    n_without = len(masks) - n_with
    short = n_without < least if without_only else (n_with < least) | (n_without < least)
    if bool(short.any()):
        rows = [int(i) for i in short.nonzero()[:, 0]]
        models = f"{least} model{'s' * (least > 1)}"
        raise InputError(
            f"{len(masks)} models, of which fewer than {least} {'leave' if without_only else 'train on, or leave'} out"
            f" rows {', '.join(map(str, rows[:NAMED_ROWS]))}{', ...' * (len(rows) > NAMED_ROWS)}"
            f" ({len(rows)} of {masks.shape[1]} rows)",
            expected=f"rows left out by at least {models}"
            if without_only
            else f"rows that at least {models} train on, and at least {models} leave out",
            hint="train more models, draw subsets with sampling='balanced', or leave these rows out of the ensemble",
        )


def finite_statistic(shadows: ShadowEnsemble, statistic: Statistic) -> tuple[Tensor, Tensor]:
    """Return a statistic of the outputs on the training rows (m, n) and on the test rows (m, t).

    Raises:
        InputError: outputs that are not finite, naming the models.
    """
    values = shadows.statistic(statistic), shadows.test_statistic(statistic)
    diverged = (~(torch.cat(values, 1).abs() < MAX_STATISTIC)).any(1).nonzero()[:, 0].tolist()
    if diverged:
        raise InputError(
            f"outputs that are not finite, or beyond 1e140, of models {', '.join(map(str, diverged[:NAMED_ROWS]))}"
            f"{', ...' * (len(diverged) > NAMED_ROWS)}",
            expected="finite outputs of every model",
            hint="leave models that diverged out with shadows.select(models)",
        )
    return values


def _group(weights: Tensor, values: Tensor, bounded: bool) -> _Group:
    """Return the moments of the values (m, n) of the models with weight 1 in ``weights`` (m, n)."""
    count = weights.sum(0)
    total = (weights * values).sum(0)
    mean = total / count
    if bounded:
        return _Group(mean, _jeffreys_variance(total, count), torch.zeros_like(mean), count)
    deviations = weights * (values - mean)
    variance = deviations.square().sum(0) / (count - 1)
    third = (deviations**3).sum(0) * count / ((count - 1) * (count - 2)).clamp_min(1)  # 0 for two values
    return _Group(mean, variance / count, third / count.square(), count)


def _jeffreys_variance(total: Tensor, count: Tensor) -> Tensor:
    smoothed = (total + 0.5) / (count + 1)
    return smoothed * (1 - smoothed) / (count + 2)


def _newcombe(
    with_row: _Group, without_row: _Group, value: Tensor, standard_error: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    (low_1, high_1), (low_2, high_2) = (_wilson(group, level) for group in (with_row, without_row))
    below = ((with_row.mean - low_1).square() + (high_2 - without_row.mean).square()).sqrt()
    above = ((high_1 - with_row.mean).square() + (without_row.mean - low_2).square()).sqrt()
    return value - below, value + above


def _wilson(group: _Group, level: float) -> tuple[Tensor, Tensor]:
    """Return Wilson's interval (1927) of a proportion."""
    z = float(ndtri((1 + level) / 2))
    p, n = group.mean, group.count
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)).clamp_min(0).sqrt()
    return (middle - half).clamp_min(0), (middle + half).clamp_max(1)


def _hall(
    with_row: _Group, without_row: _Group, value: Tensor, standard_error: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    # two groups without variance give 0/0: no width, whatever the degrees of freedom and the skewness
    terms = [group.variance.square() / (group.count - 1) for group in (with_row, without_row)]
    freedom = (standard_error**4 / (terms[0] + terms[1])).nan_to_num(1.0).clamp_min(1.0)
    t = torch.from_numpy(stdtrit(freedom.numpy(), (1 + level) / 2))
    skewness = ((with_row.third - without_row.third) / standard_error**3).nan_to_num(0.0, 0.0, 0.0)
    skewness = torch.where(skewness.abs() < LEAST_SKEWNESS, LEAST_SKEWNESS, skewness)

    def transformed(x: Tensor) -> Tensor:
        u = 1 + skewness * (x - skewness / 6)
        return 3 / skewness * (u.sign() * u.abs().pow(1 / 3) - 1)

    return value - standard_error * transformed(t), value - standard_error * transformed(-t)
