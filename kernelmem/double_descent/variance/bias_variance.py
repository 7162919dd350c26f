r"""Bias-variance decomposition of an ensemble of predictors, for squared loss and cross-entropy.

The K members differ in whatever their training varied (initial weights, data, label noise, batch order). For an example x:

==============  =================================  ===============================  =============================
loss            centroid                           bias                             variance
==============  =================================  ===============================  =============================
squared         f̄ = E f                            |f̄ − y|²                         E |f − f̄|²
cross-entropy   π̄ ∝ exp(E log π)                   KL(y ‖ π̄)                        E KL(π̄ ‖ π) = −log Σ_c exp(E log π_c)
==============  =================================  ===============================  =============================

and risk = bias + variance, exactly: E|f − y|², or E KL(y ‖ π), which is the cross-entropy if y is a label.

Source: Yang et al. 2020; Heskes 1998 for the divergence.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY_TOLERANCE = 1e-6  # absolute tolerance on the sum of the probabilities of an example


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Result):
    """Risk, bias and variance: means over m examples, with jackknife standard errors over the K members.

    The standard errors are for other members on the same examples; those of bias and variance are NaN if K = 2. The
    estimate of the bias is unbiased and can therefore be slightly negative although the bias is not.

    Attributes:
        loss: "squared" or "cross_entropy".
        n_members: number of members K.
        risk, bias, variance: estimates with risk = bias + variance; ``risk_se``, ``bias_se`` and ``variance_se`` are their
            standard errors.
        plug_in_variance: variance of the K members themselves, too small by about variance / K.
        example_bias: (m,) bias of each example, float64.
        example_variance: (m,) variance of each example, float64.
    """

    loss: Literal["squared", "cross_entropy"]
    n_members: int
    risk: float
    risk_se: float
    bias: float
    bias_se: float
    variance: float
    variance_se: float
    plug_in_variance: float
    example_bias: Tensor
    example_variance: Tensor

    def averaged(self, k: int) -> float:
        """Return the expected risk of the mean of k independent members, bias + variance / k (squared loss only).

        Raises:
            InputError: the loss is cross-entropy, for which there is no such formula, or k < 1.
        """
        if self.loss != "squared":
            raise InputError(
                "a decomposition of cross-entropy",
                expected="a decomposition of squared loss, where the variance of a mean is variance / k",
                hint="use decompose_squared on the probabilities, or measure the averaged ensemble",
            )
        return self.bias + self.variance / as_count(k, "k")

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with the rows risk, bias and variance and the columns value and se."""
        import pandas as pd

        rows = {
            name: {"value": getattr(self, name), "se": getattr(self, f"{name}_se")}
            for name in ("risk", "bias", "variance")
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __str__(self) -> str:
        unit = "nats" if self.loss == "cross_entropy" else "squared error, summed over outputs"
        lines = [f"bias-variance decomposition ({unit}): {self.n_members} members, {len(self.example_bias):,} examples"]
        lines += [
            f"  {name:<10}{getattr(self, name):>12.5g} ± {getattr(self, name + '_se'):.2g}"
            for name in ("risk", "bias", "variance")
        ]
        return "\n".join([*lines, "standard errors: jackknife over members, examples fixed"])


def decompose_squared(outputs: ArrayLike, targets: ArrayLike) -> Decomposition:
    r"""Estimate bias = E_x |f̄ − y|² and variance = E_x E|f − f̄|² without bias from K members.

    ::

        variance = Σ_k |f_k − f̄|² / (K − 1)        risk = Σ_k |f_k − y|² / K        bias = risk − variance

    Args:
        outputs: (K, m, C), or (K, m) for one output; K >= 2 members, any real outputs (for example probabilities).
        targets: (m,) integer labels, read as one-hot, or real (m, C); (m,) real for one output.

    Returns:
        Decomposition: float64; squares are summed over outputs and averaged over examples.

    Raises:
        InputError: there are fewer than two members, the shapes do not match, an output is NaN, or a label is >= C.

    Cost: O(K m C).

    Source: Yang et al. 2020; standard errors: Tukey's jackknife.

    >>> decomposition = decompose_squared([[[1.0]], [[3.0]]], [[0.0]])
    >>> decomposition.risk, decomposition.variance, decomposition.bias
    (5.0, 2.0, 3.0)
    """
    members = _as_members(outputs)
    y = as_targets(targets, members)
    mean_output = members.mean(0)
    squared_deviations = (members - mean_output).square().sum(2)  # (K, m)
    K = len(members)
    plug_in = squared_deviations.mean(0)
    # Without member k the mean moves by (f̄ − f_k)/(K − 1): the sum of squares loses K/(K − 1) |f_k − f̄|².
    leave_one_out = (K * plug_in - K / (K - 1) * squared_deviations) / (K - 1)
    return _jackknife_decomposition("squared", (members - y).square().sum(2), plug_in, leave_one_out)


def decompose_cross_entropy(log_probabilities: ArrayLike, targets: ArrayLike) -> Decomposition:
    r"""Estimate bias = E_x KL(y ‖ π̄) and variance = E_x E KL(π̄ ‖ π), π̄ ∝ exp(E log π), from K members.

    The variance is −log Σ_c exp(mean_k log π_kc), its O(1/K) bias removed by the jackknife; the risk is the mean of
    KL(y ‖ π_k), which is the cross-entropy for labels; bias = risk − variance.

    Args:
        log_probabilities: (K, m, C), log-softmax of the outputs.
        targets: (m,) integer labels, or (m, C) probabilities.

    Returns:
        Decomposition: float64, in nats, averaged over examples.

    Raises:
        InputError: probabilities do not sum to 1 (outputs without log_softmax), there are fewer than two members, the
            shapes do not match, or a value is NaN or infinite.

    Cost: O(K m C).

    Source: Yang et al. 2020; Heskes 1998; jackknife correction: Quenouille 1956.
    """
    log_members = _as_members(log_probabilities)
    if bool((log_members.logsumexp(2).abs() > PROBABILITY_TOLERANCE).any()):
        raise InputError(
            f"log-probabilities whose exponentials sum to as much as {float(log_members.logsumexp(2).exp().max()):.4g}",
            expected="a sum of 1 for every example of every member",
            hint="pass outputs.log_softmax(-1), in float64",
        )
    y = as_targets(targets, log_members)
    if bool((y < 0).any()) or bool(((y.sum(1) - 1).abs() > PROBABILITY_TOLERANCE).any()):
        raise InputError(
            "targets (m, C) that are not probabilities",
            expected="rows of values >= 0 that sum to 1",
            hint="pass labels (m,), or probabilities",
        )
    K, log_sum = len(log_members), log_members.sum(0)
    risks = torch.special.xlogy(y, y).sum(1) - (log_members * y).sum(2)
    leave_one_out = torch.stack([-((log_sum - member) / (K - 1)).logsumexp(1) for member in log_members])
    return _jackknife_decomposition("cross_entropy", risks, -(log_sum / K).logsumexp(1), leave_one_out)


def _jackknife_decomposition(
    loss: Literal["squared", "cross_entropy"], risks: Tensor, plug_in: Tensor, leave_one_out: Tensor
) -> Decomposition:
    """Return the decomposition whose variance is the mean of K jackknife pseudo-values K θ − (K − 1) θ₋ₖ.

    K is the number of members and m that of examples (Quenouille 1956; Tukey 1958).

    Args:
        loss: loss of the risks.
        risks: (K, m) risk of each member on each example.
        plug_in: (m,) variance θ computed from all members.
        leave_one_out: (K, m) variance θ₋ₖ computed without member k.
    """
    K = len(risks)
    variance_pseudo_values = K * plug_in - (K - 1) * leave_one_out  # (K, m)
    example_variance = variance_pseudo_values.mean(0)
    example_bias = risks.mean(0) - example_variance

    def standard_error(pseudo_values: Tensor) -> float:
        return float(pseudo_values.mean(1).std(correction=1)) / K**0.5

    has_variance_se = K >= 3  # with two members, leaving one out leaves a single member, which has no variance
    return Decomposition(
        loss=loss,
        n_members=K,
        risk=float(risks.mean()),
        risk_se=standard_error(risks),
        bias=float(example_bias.mean()),
        bias_se=standard_error(risks - variance_pseudo_values) if has_variance_se else float("nan"),
        variance=float(example_variance.mean()),
        variance_se=standard_error(variance_pseudo_values) if has_variance_se else float("nan"),
        plug_in_variance=float(plug_in.mean()),
        example_bias=example_bias,
        example_variance=example_variance,
    )


def _as_members(outputs: ArrayLike) -> Tensor:
    """Validate the outputs of K members, (K, m, C) or (K, m), and return them as float64 (K members, m examples, C outputs).

    Raises:
        InputError: there are fewer than two members, or the shape is not supported.
    """
    members = as_tensor(outputs, "outputs", dtype=torch.float64, squared=True).cpu()
    members = members[:, :, None] if members.ndim == 2 else members
    if members.ndim != 3 or len(members) < 2 or 0 in members.shape:
        raise InputError(
            f"outputs of shape {tuple(members.shape)}",
            expected="(K, m, C), K >= 2 members on the same m examples",
            hint="stack the outputs of the members along a first axis",
        )
    return members


def as_targets(targets: ArrayLike, outputs: Tensor) -> Tensor:
    """Return the targets of ``outputs`` (K, m, C) as float64 (m, C); labels (m,) become one-hot rows.

    Raises:
        InputError: the shapes do not match, or a label is out of range.
    """
    m, C = outputs.shape[1:]
    y = as_tensor(targets, "targets", squared=True).cpu()
    if y.ndim == 1 and not y.is_floating_point() and C > 1:
        return torch.nn.functional.one_hot(as_labels(y, "targets", n=m, n_classes=C), C).double()
    y = y[:, None] if y.ndim == 1 else y
    if tuple(y.shape) != (m, C):
        raise InputError(
            f"targets of shape {tuple(y.shape)} for outputs of shape {tuple(outputs.shape)}",
            expected=f"integer labels ({m},), or real targets ({m}, {C})",
            hint="pass the targets of the examples that the outputs belong to",
        )
    return y.double()
