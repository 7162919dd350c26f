"""Mixture of true classes: normal predictions and noisy labels, fitted by expectation maximization."""

from dataclasses import dataclass

import torch
from torch import Tensor

CLASS_COUNT = 1.0  # prior rows of each class
MEAN_COUNT = 0.1  # prior rows of each class mean, at the mean of all rows
COVARIANCE_SHARE = 1e-3  # prior variance, relative to the mean variance of the outputs
MAX_ITERATIONS = 200
TOLERANCE = 1e-8  # of the objective per row
ROWS_PER_OUTPUT = 10  # fewer: one variance for all outputs instead of a covariance


@dataclass(frozen=True)
class Mixture:
    """Fitted mixture of C true classes over n rows.

    Attributes:
        posterior: (n, C) P(true class | predictions, label).
        log_odds: (n,) log P(label wrong) − log P(label right).
        transition: (C, C) T_cj = P(label j | true class c).
        log_likelihood: mean log P(label | predictions).
        objectives: log of the joint density of predictions and labels, and of the prior, up to a constant, at every step.
    """

    posterior: Tensor
    log_odds: Tensor
    transition: Tensor
    log_likelihood: float
    objectives: tuple[float, ...]


def fit_mixture(outputs: Tensor, labels: Tensor, *, max_iterations: int = MAX_ITERATIONS) -> Mixture:
    """Fit class shares, means, one covariance and the transition matrix to outputs (n, C) and labels (n,), all float64.

    Starts from the largest output of every row. Each step increases the posterior density of the parameters under weak
    conjugate priors, which keep empty classes and singular covariances (outputs that sum to 0) apart from infinity.
    """
    n, C = outputs.shape
    label_rows = torch.nn.functional.one_hot(labels, C).to(torch.float64)
    center = outputs.mean(0)
    f = outputs - center
    prior_variance = COVARIANCE_SHARE * float(f.square().mean()) + torch.finfo(torch.float64).tiny ** 0.5
    is_full = n >= ROWS_PER_OUTPUT * C
    q = torch.nn.functional.one_hot(outputs.argmax(1), C).to(torch.float64)
    objectives: list[float] = []
    while True:
        counts = q.sum(0)
        log_share = torch.log((counts + CLASS_COUNT) / (n + C * CLASS_COUNT))
        sums = q.T @ f  # (C classes, C outputs)
        means = sums / (counts + MEAN_COUNT)[:, None]
        transition = q.T @ label_rows + 1 / C
        transition = transition / transition.sum(1, keepdim=True)
        # Σ q (f − μ)(f − μ)ᵀ + prior terms: the means are sums / (counts + MEAN_COUNT)
        scatter = f.T @ f - sums.T @ means + n * prior_variance * torch.eye(C, dtype=torch.float64)
        if not is_full:
            scatter = scatter.diagonal().mean() * torch.eye(C, dtype=torch.float64)
        factor = torch.linalg.cholesky((scatter + scatter.T) / (2 * (n + C)))
        whitened, whitened_means = (torch.linalg.solve_triangular(factor, v.T, upper=False) for v in (f, means))
        log_class = (
            log_share + whitened.T @ whitened_means - 0.5 * whitened_means.square().sum(0)
        )  # + a constant of the row
        log_joint = log_class + transition[:, labels].log().T
        evidence = log_joint.logsumexp(1)
        q = (log_joint - evidence[:, None]).exp()
        objectives.append(
            float(evidence.sum() - 0.5 * whitened.square().sum())
            - (n + C) * float(factor.diagonal().log().sum())
            + CLASS_COUNT * float(log_share.sum())
            + float(transition.log().sum()) / C
            - 0.5 * MEAN_COUNT * float(whitened_means.square().sum())
            - 0.5 * n * prior_variance * float(torch.linalg.inv(factor).square().sum())
        )
        if len(objectives) == max_iterations:
            break
        if len(objectives) > 1 and objectives[-1] - objectives[-2] <= TOLERANCE * n:
            break
    is_label = label_rows.bool()
    log_right = log_joint[is_label]
    log_wrong = log_joint.masked_fill(is_label, -torch.inf).logsumexp(1)
    predictive = evidence - log_class.logsumexp(1)
    return Mixture(q, log_wrong - log_right, transition, float(predictive.mean()), tuple(objectives))
