"""Likelihood-ratio attack (LiRA): Gaussian or Student-t distributions of a statistic with and without each row."""

import math
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from kernelmem.memorization.membership.signals import Variance

SMALLEST_VARIANCE = 1e-8  # relative to the pooled variance: models that agree to rounding give no infinite density
ROUNDING = 1e-12  # of the statistic, relative to its largest mean: a standard deviation below it is none


class Moments(NamedTuple):
    """Number of models, mean and sum of squared residuals of one side of every row, each (n,)."""

    size: Tensor
    mean: Tensor
    squares: Tensor


class Predictive(NamedTuple):
    """Distribution of the statistic of a further model: location + scale · t(dof); dof = ∞ is a Gaussian; each (n,)."""

    location: Tensor
    scale: Tensor
    dof: Tensor

    def log_density(self, phi: Tensor) -> Tensor:
        """Return the log density at ``phi``, (n,)."""
        z = (phi - self.location) / self.scale
        gaussian = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        dof = torch.where(self.dof.isinf(), 1.0, self.dof)
        constant = torch.lgamma((dof + 1) / 2) - torch.lgamma(dof / 2) - 0.5 * torch.log(dof * math.pi)
        student = constant - (dof + 1) / 2 * torch.log1p(z.square() / dof)
        return torch.where(self.dof.isinf(), gaussian, student) - self.scale.log()

    def normal_quantile(self, phi: Tensor) -> Tensor:
        """Return the z (n,) with Φ(z) = Pr[a further model's statistic ≤ phi], without rounding in either tail."""
        from scipy.special import ndtri, stdtr

        z = (phi - self.location) / self.scale
        dof = torch.where(self.dof.isinf(), 1.0, self.dof).numpy()
        tail = stdtr(dof, -z.abs().numpy()).clip(1e-300)
        student = -torch.from_numpy(np.asarray(ndtri(tail))) * z.sign()
        return torch.where(self.dof.isinf(), z, student)


def mean_over(values: Tensor, used: Tensor) -> Tensor:
    """Return the mean (n,) of ``values`` (M, n) over the models in ``used`` (M, n), exact for equal values; 0 / 0 = first."""
    first = values[0]  # differences of equal numbers are 0, so that a constant statistic has exactly equal scores
    return first + ((values - first) * used).sum(0) / used.sum(0).clamp_min(1)


def moments(values: Tensor, used: Tensor) -> Moments:
    """Return count, mean and sum of squared residuals over the models in ``used`` (M, n) of ``values`` (M, n)."""
    count = used.sum(0)
    mean = mean_over(values, used)
    squares = ((values - mean).square() * used).sum(0)
    return Moments(count.to(torch.float64), mean, squares)


def predictive(side: Moments, variance: Variance) -> tuple[Predictive, Tensor]:
    """Return the predictive distribution of every row, and for which rows (n,) there are enough models.

    - ``"per_row"``: Gaussian with the row's own variance; at least 2 models.
    - ``"pooled"``: Gaussian with Σ squared residuals / Σ (count − 1) over all rows, never the spread of the raw statistic.
    - ``"shrunk"``: σ² has a scaled inverse-χ² prior (ν₀, s₀²) fitted to all rows, the mean a flat prior: Student t with
      ν₀ + d degrees of freedom and squared scale (ν₀ s₀² + Σ squared residuals) / (ν₀ + d) · (1 + 1 / count), d = count − 1;
      at least 1 model.
    """
    dof = (side.size - 1).clamp_min(0)
    total = float(dof.sum())
    pooled = float(side.squares.sum()) / total if total else 0.0
    floor = max(SMALLEST_VARIANCE * pooled, (ROUNDING * float(side.mean.abs().max())) ** 2, 1e-100)
    infinite = torch.full_like(dof, torch.inf)
    enough = side.size >= (2 if variance == "per_row" else 1)
    if not total:  # no variance can be estimated
        enough = torch.zeros_like(enough)
    if pooled <= floor:  # all models agree: then neither do scores depend on the number of models
        return Predictive(side.mean, torch.full_like(dof, math.sqrt(floor)), infinite), enough
    if variance == "per_row":
        s2 = side.squares / dof.clamp_min(1)
        return Predictive(side.mean, s2.clamp_min(floor).sqrt(), infinite), enough
    if variance == "pooled":
        return Predictive(side.mean, torch.full_like(dof, max(pooled, floor)).sqrt(), infinite), enough
    prior_dof, prior_variance = variance_prior(side.squares, dof)
    if math.isinf(prior_dof):
        s2, posterior_dof = torch.full_like(dof, prior_variance), infinite
    else:
        posterior_dof = prior_dof + dof
        s2 = (prior_dof * prior_variance + side.squares) / posterior_dof
    s2 = s2.clamp_min(floor) * (1 + 1 / side.size.clamp_min(1))
    return Predictive(side.mean, s2.sqrt(), posterior_dof), enough


def variance_prior(squares: Tensor, dof: Tensor) -> tuple[float, float]:
    """Return (ν₀, s₀²) of the scaled inverse-χ² prior of variances, from sums of squares and degrees of freedom (n,).

    Moments of log s²: its mean is log s₀² + ψ(d/2) − log(d/2) − ψ(ν₀/2) + log(ν₀/2), its variance ψ′(d/2) + ψ′(ν₀/2).
    ν₀ = ∞ if the variances differ by no more than their sampling error. Source: Smyth 2004.
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    usable = (dof > 0) & (squares > 0)
    d, total = dof[usable].numpy(), float(dof.sum())
    pooled = float(squares.sum()) / total if total else 0.0
    if len(d) < 3:
        return math.inf, max(pooled, 1e-300)
    log_s2 = np.log(squares[usable].numpy() / d) - digamma(d / 2) + np.log(d / 2)
    excess = float(log_s2.var(ddof=1) - polygamma(1, d / 2).mean())
    if excess <= float(polygamma(1, 5e5)):
        return math.inf, pooled
    log_half = brentq(lambda u: float(polygamma(1, math.exp(u))) - excess, math.log(1e-3), math.log(1e6))
    half = math.exp(cast(float, log_half))
    half = max(half, 0.05)
    return 2 * half, math.exp(float(log_s2.mean()) + float(digamma(half)) - math.log(half))


def lira_scores(
    phi: Tensor, values: Tensor, with_row: Tensor, without_row: Tensor, *, variance: Variance, offline: bool
) -> tuple[Tensor, Tensor]:
    """Return LiRA scores (n,) of one target, larger = more likely a member, and the rows (n,) with enough shadow models.

    - online: log p_in(φ) − log p_out(φ);
    - offline: the standard normal quantile of 1 − Pr[Z > φ], Z from p_out, which is one-sided: the order is that of the
      probability, which would round to 1.

    Args:
        phi: (n,) statistic of the target.
        values: (M, n) statistic of the shadow models.
        with_row: (M, n) bool, the shadow models that were trained on each row.
        without_row: (M, n) bool, the shadow models that were not.
        variance: see :func:`predictive`.
        offline: use ``without_row`` only.

    Source: Carlini et al. 2022; offline one-sided as in their equation, not as in their code.
    """
    outside, enough = predictive(moments(values, without_row), variance)
    if offline:
        return outside.normal_quantile(phi), enough
    inside, enough_inside = predictive(moments(values, with_row), variance)
    return inside.log_density(phi) - outside.log_density(phi), enough & enough_inside


def separation(values: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return d′ = (μ_in − μ_out) / √((σ_in² + σ_out²) / 2) of every row and its standard error, each (n,).

    Variances are posterior means under the prior of :func:`predictive`. A row without models on one side, or an ensemble in
    which no variance can be estimated, has d′ = 0 with an infinite standard error.
    """
    sides = [moments(values, masks), moments(values, ~masks)]
    variances, error, known = [], torch.zeros_like(values[0]), torch.ones_like(masks[0])
    total_dof = torch.zeros_like(values[0])
    for side in sides:
        dof = (side.size - 1).clamp_min(0)
        prior_dof, prior_variance = variance_prior(side.squares, dof)
        if math.isinf(prior_dof):
            variances.append(torch.full_like(dof, prior_variance))
        else:
            variances.append((prior_dof * prior_variance + side.squares) / (prior_dof + dof))
        error += 1 / side.size.clamp_min(1)
        total_dof += dof
        known &= (side.size > 0) & bool(dof.sum() > 0)
    spread = ((variances[0] + variances[1]) / 2).clamp_min(1e-300).sqrt()
    d = (sides[0].mean - sides[1].mean) / spread
    d = torch.where(known, d, 0.0)
    standard_error = (error + d.square() / (2 * total_dof.clamp_min(1))).sqrt()
    return d, torch.where(known, standard_error, torch.inf)
