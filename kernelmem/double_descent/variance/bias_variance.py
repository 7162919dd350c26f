r"""Bias and variance of an ensemble of predictors, for squared loss and for cross-entropy.

With K members whose training differs in whatever is asked about (initial weights, data, noise, order), for a row x:

==============  =================================  ===============================  =============================
loss            centroid                           bias                             variance
==============  =================================  ===============================  =============================
squared         f̄ = E f                            |f̄ − y|²                         E |f − f̄|²
cross-entropy   π̄ ∝ exp(E log π)                   KL(y ‖ π̄)                        E KL(π̄ ‖ π) = −log Σ_c exp(E log π_c)
==============  =================================  ===============================  =============================

and risk = bias + variance, exactly: E|f − y|², or E KL(y ‖ π), which for labels is the cross-entropy.

Source: Yang et al. 2020; Heskes 1998 for the divergence.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_labels, as_tensor
from kernelmem.core.errors import InputError

__all__ = ["Decomposition", "decompose_cross_entropy", "decompose_squared"]

SUMS_TO_ONE = 1e-6


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Risk, bias and variance, means over m rows, with jackknife standard errors over the K members.

    The standard errors speak of other members on the same rows; those of bias and variance are NaN with two members.
    Bias is an unbiased estimate of what is never negative, and may be below 0 where it is small.
    """

    loss: Literal["squared", "cross_entropy"]
    members: int
    risk: float
    risk_se: float
    bias: float
    bias_se: float
    variance: float
    variance_se: float
    plug_in_variance: float  # of the K members themselves: too small by about variance / K
    row_bias: Tensor = field(repr=False)  # (m,)
    row_variance: Tensor = field(repr=False)  # (m,)

    def averaged(self, k: int) -> float:
        """Expected risk of the mean of k independent members, bias + variance / k; squared loss.

        Raises:
            InputError: cross-entropy, which has no such formula; k < 1.
        """
        if self.loss != "squared":
            raise InputError(
                "a decomposition of cross-entropy",
                expected="one of squared loss: there the variance of a mean is variance / k",
                hint="decompose_squared of the probabilities, or measure the ensemble",
            )
        as_count(k, "k")
        return self.bias + self.variance / k

    def __str__(self) -> str:
        lines = [f"{self.loss.replace('_', '-')} of {self.members} members on {len(self.row_bias):,} rows"]
        for name in ("risk", "bias", "variance"):
            lines.append(f"{name:<10}{getattr(self, name):>12.5g} ± {getattr(self, name + '_se'):.2g}")
        return "\n".join([*lines, "standard errors: jackknife over members, rows held fixed"])


def decompose_squared(outputs: Any, targets: Any) -> Decomposition:
    r"""Estimate bias = E_x |f̄ − y|² and variance = E_x E|f − f̄|² from K members, without the bias of small K.

    ::

        variance = Σ_k |f_k − f̄|² / (K − 1)        risk = Σ_k |f_k − y|² / K        bias = risk − variance

    Args:
        outputs: (K, m, C), or (K, m) for one output; K >= 2 members, any real outputs (probabilities, say).
        targets: (m,) integer labels, read as one-hot, or real (m, C); (m,) real for one output.

    Returns:
        Decomposition: float64; squares are summed over outputs and averaged over rows.

    Raises:
        InputError: fewer than two members, shapes that do not fit, NaN, labels beyond the outputs.

    Cost: O(K m C).

    Source: Yang et al. 2020; standard errors: Tukey's jackknife.

    >>> found = decompose_squared([[[1.0]], [[3.0]]], [[0.0]])
    >>> found.risk, found.variance, found.bias
    (5.0, 2.0, 3.0)
    """
    f = _members(outputs)
    y = read_targets(targets, f)
    mean = f.mean(0)
    distances = (f - mean).square().sum(2)  # (K, m)
    K = len(f)
    plug_in = distances.mean(0)
    # Without member k the mean moves by (f̄ − f_k)/(K − 1): the sum of squares loses K/(K − 1) |f_k − f̄|².
    without = (K * plug_in - K / (K - 1) * distances) / (K - 1)
    return _finish("squared", (f - y).square().sum(2), plug_in, without)


def decompose_cross_entropy(log_probabilities: Any, targets: Any) -> Decomposition:
    r"""Estimate bias = E_x KL(y ‖ π̄) and variance = E_x E KL(π̄ ‖ π), π̄ ∝ exp(E log π), from K members.

    The variance is −log Σ_c exp(mean_k log π_kc), with its leading bias in 1/K removed by the jackknife; the risk is
    the mean of KL(y ‖ π_k), the cross-entropy for labels; bias = risk − variance.

    Args:
        log_probabilities: (K, m, C), log-softmax of the outputs.
        targets: (m,) integer labels, or (m, C) probabilities.

    Returns:
        Decomposition: float64, in nats, averaged over rows.

    Raises:
        InputError: rows whose probabilities do not sum to 1 (outputs without log_softmax), fewer than two members, shapes
            that do not fit, NaN or infinite values.

    Cost: O(K m C).

    Source: Yang et al. 2020; Heskes 1998; jackknife correction: Quenouille 1956.
    """
    f = _members(log_probabilities)
    if bool((f.logsumexp(2).abs() > SUMS_TO_ONE).any()):
        raise InputError(
            f"log-probabilities whose exponentials sum to {float(f.logsumexp(2).exp().max()):.4g} in a row",
            expected="1 in every row, of every member",
            hint="pass outputs.log_softmax(-1), in float64",
        )
    y = read_targets(targets, f)
    if bool((y < 0).any()) or bool(((y.sum(1) - 1).abs() > SUMS_TO_ONE).any()):
        raise InputError(
            "targets (m, C) that are no probabilities",
            expected="rows that are >= 0 and sum to 1",
            hint="pass labels (m,), or probabilities",
        )
    K, total = len(f), f.sum(0)
    risk = torch.special.xlogy(y, y).sum(1) - (f * y).sum(2)
    without = torch.stack([-((total - own) / (K - 1)).logsumexp(1) for own in f])
    return _finish("cross_entropy", risk, -(total / K).logsumexp(1), without)


def _finish(
    loss: Literal["squared", "cross_entropy"], risks: Tensor, plug_in: Tensor, without: Tensor
) -> Decomposition:
    """Jackknife: pseudo-values K θ − (K − 1) θ without member k, of which the estimate is the mean."""
    K = len(risks)
    variances = K * plug_in - (K - 1) * without  # (K, m)
    row_variance = variances.mean(0)
    row_bias = risks.mean(0) - row_variance

    def error(pseudo: Tensor) -> float:
        return float(pseudo.mean(1).std(correction=1)) / K**0.5

    few = K < 3  # of two members, each left out leaves no variance: nothing to judge by
    return Decomposition(
        loss=loss,
        members=K,
        risk=float(risks.mean()),
        risk_se=error(risks),
        bias=float(row_bias.mean()),
        bias_se=float("nan") if few else error(risks - variances),
        variance=float(row_variance.mean()),
        variance_se=float("nan") if few else error(variances),
        plug_in_variance=float(plug_in.mean()),
        row_bias=row_bias,
        row_variance=row_variance,
    )


def _members(outputs: Any) -> Tensor:
    f = as_tensor(outputs, "outputs", dtype=torch.float64).cpu()
    f = f[:, :, None] if f.ndim == 2 else f
    if f.ndim != 3 or len(f) < 2 or 0 in f.shape:
        raise InputError(
            f"outputs of shape {tuple(f.shape)}",
            expected="(K, m, C) of K >= 2 members on the same m rows",
            hint="stack the outputs of the members along a first axis",
        )
    return f


def read_targets(targets: Any, f: Tensor) -> Tensor:
    """Read targets of outputs ``f`` (K, m, C): labels (m,) as one-hot rows, or real numbers (m, C); float64 (m, C).

    Raises:
        InputError: another shape, labels out of range.
    """
    m, C = f.shape[1:]
    y = as_tensor(targets, "targets").cpu()
    if y.ndim == 1 and not y.is_floating_point() and C > 1:
        return torch.nn.functional.one_hot(as_labels(y, "targets", n=m, n_classes=C), C).double()
    y = y[:, None] if y.ndim == 1 else y
    if tuple(y.shape) != (m, C):
        raise InputError(
            f"targets of shape {tuple(y.shape)} for outputs {tuple(f.shape)}",
            expected=f"integer labels ({m},), or real targets ({m}, {C})",
            hint="give the targets of the rows that the outputs are of",
        )
    return y.double()
